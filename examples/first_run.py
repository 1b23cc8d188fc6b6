"""A first run and its numbers: K-FADE on ten of a hundred invented authors.

    python examples/first_run.py

The models are trained on the spot (about a minute), the record goes to ./harness-results; done once, it is read from there.
"""

import harness

runs = harness.run(["untouched", "retrained", "kfade"], bench="tofu10")
kfade = runs[2]
print(f"{kfade.spec.method}, run {kfade.spec.run_id}: {kfade.status} in {kfade.costs['unlearning'].seconds:.1f} s\n")

# One row for each run, measured point and metric; `arm` is "method" for what the run itself measured.
table = runs.table()
ends = table[table["arm"] == "method"].groupby(["metric", "method"], sort=False).tail(1)
metrics = ["forget_quality_d", "model_utility", "forget_probability", "retain_kl"]
print(ends.pivot(index="metric", columns="method", values="value").loc[metrics, ["untouched", "kfade", "retrained"]].round(3))

# What the model says now, beside the truth and what it said before.
for _, sample in runs[2:].samples("forget").head(3).iterrows():
    print(f"\n{sample['question']}")
    for whose in ("before", "after", "retrained"):
        print(f"  {whose:<10} {sample[whose]}")
