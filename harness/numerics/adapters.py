"""LoRA and its kin beside a checkpoint's weights, or alone with the name of their base: merged into the weights when loaded.

A model with an adapter on it is not what the methods edit, and saved it keeps the adapter alone. Merged it is an ordinary
model that answers alike:

    W_merged = W + s B A      (LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1)

The merging is PEFT's own (`merge_and_unload`), which knows DoRA, rank-stabilised scales, embeddings and saved modules too.
It adds in the type that the weights are loaded in: exact to rounding in float32, rounded as any weight in bfloat16.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.data.hub import file_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
"""Beside the weights of an adapter: its kind, its shape and its base."""
NO_ADAPTER = "no-adapter"
"""A subfolder that is nowhere: transformers looks for adapters there, finds none, and puts none onto the model by itself."""


class Adapter(NamedTuple):
    """What an adapter says of itself."""

    base: str
    """The model it was trained on: a hub id or a folder, empty where it does not say."""
    revision: str | None
    """That model's revision on the hub, if it says one."""


def adapter_of(name: str, revision: str | None = None) -> Adapter | None:
    """The adapter in a folder or in a repository of the hub, or None where there is none.

    Raises:
        UsageError: for a file of that name that is none.
    """
    if (file := file_of(name, ADAPTER_CONFIG, revision)) is None:
        return None
    about = read_json(file)
    if not isinstance(about, dict) or not isinstance(about.get("peft_type"), str):
        raise UsageError(f"{ADAPTER_CONFIG} of {name} is no configuration of an adapter; move it away.")
    base, at = about.get("base_model_name_or_path"), about.get("revision")
    return Adapter(base if isinstance(base, str) else "", at if isinstance(at, str) else None)


def merged(model: PreTrainedModel, name: str, revision: str | None = None, local_files_only: bool = False) -> PreTrainedModel:
    """A model with an adapter merged into its weights; every weight needs gradients again, as before.

    Args:
        model: the base.
        name: where the adapter is: a folder or a hub id.
        revision: of the hub id.
        local_files_only: whether the hub is left alone.

    Raises:
        UsageError: for an adapter that cannot be read, does not fit, or is of a kind that has no place in the weights.
    """
    from peft import PeftModel

    adapter_of(name, revision)  # says more of a file that is none
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            put_on: Any = PeftModel.from_pretrained(model, name, revision=revision, local_files_only=local_files_only)
    except Exception as error:  # whatever PEFT says of what a user's files hold
        text = " ".join(str(error).split())
        raise UsageError(f"the adapter of {name} cannot be put onto its base: {text[:300]}") from error
    if lacking := [str(w.message) for w in said if "missing adapter keys" in str(w.message)]:
        raise UsageError(f"the adapter of {name} lacks some of its tensors: {lacking[0][-200:]}")
    if not hasattr(put_on.base_model, "merge_and_unload"):
        kind = str(put_on.active_peft_config.peft_type.value).lower().replace("_", " ")
        raise UsageError(f"the adapter of {name} is of the kind {kind}, which cannot be merged into weights; LoRA can.")
    try:
        plain: PreTrainedModel = put_on.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"the adapter of {name} cannot be merged: {' '.join(str(error).split())[:300]}") from error
    plain.requires_grad_(True)
    log.warning("the adapter of %s is merged into the weights (in %s)", name, str(plain.dtype).removeprefix("torch."))
    return plain
