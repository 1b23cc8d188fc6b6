"""Two methods on the same questions: by how much they differ, with an interval, and whether that can be chance.

    python examples/compare_methods.py

Both are run with the same three seeds; whole authors are resampled, not single questions.
"""

import harness

runs = harness.sweep(["kfade", "npo"], bench="tofu10", seeds=[0, 1, 2], points="all")
differences = runs.compare("npo")

for each in differences:
    if each.metric in ("model_utility", "forget_probability", "retain_kl"):
        sure = "not to be told from chance" if each.p_corrected > 0.05 else "more than chance"
        print(
            f"{each.metric}: {each.first} minus {each.second} = {each.value:+.3f} [{each.low:+.3f} to {each.high:+.3f}], "
            f"p = {each.p_corrected:.2g} corrected for {len(differences)} comparisons: {sure}"
        )
