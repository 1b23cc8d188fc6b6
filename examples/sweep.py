"""A sweep: five budgets of K-FADE's one knob, chosen among by a score that needs no retrained model's test set.

    python examples/sweep.py

It runs on another embedded world than the one that results are reported on: whoever chooses settings on the reported one
reports how well they fit it. Every try is a record; the same command goes on where it was stopped.
"""

import harness

runs = harness.sweep(
    "kfade",
    bench="tofu10",
    model="mini@1",
    grid={"target_kl": [0.01, 0.03, 0.1, 0.3, 1.0]},
    evals=["forget_quality", "probability", "truth_ratio", "selection_score"],
    by="selection_score",
)

table = runs.table()
scores = table[(table["arm"] == "method") & (table["metric"] == "selection_score")].set_index("run")["value"]
best = max(runs, key=lambda result: scores[result.spec.run_id])
for result in runs:
    mark = "  <- best" if result is best else ""
    print(f"target_kl = {result.spec.config['target_kl']:<5} selection_score = {scores[result.spec.run_id]:.2g}{mark}")
