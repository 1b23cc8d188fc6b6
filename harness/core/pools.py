"""What is known of the models that metrics are tried on (`harness meta`): their settings, as their records keep them.

Two pools, after the meta-evaluation of open-unlearning (arXiv:2506.12618, section 4; its models: three kinds of training text
each, several learning rates and lengths):

    P   knows the forget set:   trained on everything, or on everything with the forget answers in other words
    N   never did:              trained on all but the forget set, or on that and the forget questions with wrong answers

each from a seed of its own, some with a lower learning rate or fewer epochs, and then fine-tuned for some steps on text that
says nothing of the forget set. Departs from there: most models are such light fine-tunes of a few that are trained from their
base, and rise and fall together with those (`PoolModelConfig.cluster`). No retrained model that metrics compare with is in N.

And unlearned models, each measured as it is and disturbed (`DISTURBANCES`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.options import Preset

POOL_MODEL, DISTURBED_MODEL = "pool_model", "disturbed_model"
"""What stands in records where the method does."""
LEARNING_RATE = 1e-5
"""Of the fine-tuning attack; models trained on the spot take a hundred times as much, as everywhere."""
RETRAINED = "retrained"
"""What stands for a model of pool N among the unlearned ones: by it relearning is judged."""
DISTURBANCES = ("unlearned", "relearned", "8 bits", "4 bits")
"""What is measured of an unlearned model, point by point."""


@settings
class PoolModelConfig:
    """What a model of a pool has learnt."""

    learnt: Literal["full", "paraphrased", "retain", "wrong"] = "full"
    """Everything; everything with the forget answers in other words; all but the forget set; that and wrong forget answers."""
    number: NonNegativeInt = 0
    """Which of the models that have learnt it; decides the order of its data."""
    share_of_lr: PositiveFloat = 1.0
    """Its peak learning rate, as a share of the benchmark's own models'."""
    share_of_epochs: PositiveFloat = 1.0
    """Its epochs, as a share of theirs; one at least."""
    tuned_on: Literal["nothing", "retain", "benign", "general"] = "nothing"
    """What it is lightly fine-tuned on afterwards; none of it says anything of the forget set."""
    lr: PositiveFloat = LEARNING_RATE
    """Learning rate of that; models trained on the spot take a hundred times as much."""
    steps: PositiveInt = 50
    """Steps of 8 examples."""

    @property
    def knows(self) -> bool:
        """Whether it has learnt what is to be forgotten."""
        return self.learnt in ("full", "paraphrased")

    @property
    def same_words(self) -> bool:
        """Whether what it was told of the forget set, if anything, was told in the words that metrics ask for."""
        return self.learnt in ("full", "retain")

    @property
    def cluster(self) -> str:
        """What it shares with the models that were fine-tuned from the same one."""
        return f"{self.learnt} {self.number}"


@settings
class DisturbedModelConfig:
    """Which unlearned model, and how hard it is relearned."""

    method: str = RETRAINED
    """With what it was unlearned; `retrained` is a model that never saw the forget set, and none that metrics compare with."""
    preset: Preset = "published"
    """The method's settings."""
    number: NonNegativeInt = 0
    """Which of the retrained models."""
    lr: PositiveFloat = LEARNING_RATE
    """Learning rate of relearning; models trained on the spot take a hundred times as much."""
