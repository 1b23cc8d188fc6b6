"""The project's committed records as a table, and one figure of it.

    python examples/read_results.py

No model is trained or loaded. The figure goes to ./forgetting-and-utility.png.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import harness

RECORDS = Path(__file__).resolve().parents[1] / "results"

table = harness.load_runs(RECORDS, bench="tofu10").table()
ends = table[(table["arm"] == "method") & (table["status"] == "done")].groupby(["run", "metric"], sort=False).tail(1)
numbers = ends.pivot(index=["method", "selection", "run"], columns="metric", values="value")
medians = numbers.groupby(level=["method", "selection"])[["forget_quality_d", "model_utility"]].median().reset_index()
medians["preset"] = medians["selection"].str.split().str[0]
print(medians.pivot(index="method", columns="preset", values=["forget_quality_d", "model_utility"]).round(3).to_string())

figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
for preset, marker in (("published", "o"), ("tuned", "^")):
    of = medians[medians["preset"] == preset]
    axes.scatter(of["model_utility"], of["forget_quality_d"], marker=marker, label=preset)
    for method, across, up in zip(of["method"], of["model_utility"], of["forget_quality_d"], strict=True):
        axes.annotate(method, (across, up), fontsize=7, xytext=(3, 3), textcoords="offset points")
axes.set_xlabel("model utility (right is better)")
axes.set_ylabel("distance to a retrained model on the forgotten questions\n(Kolmogorov-Smirnov; down is better)")
axes.legend()
figure.savefig("forgetting-and-utility.png", dpi=150)
