"""Where a checkpoint's parts are, and its configuration: read, looked over, and put together without numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.data.hub import file_of, files_of, pinned, unreachable
from harness.data.hub_errors import quiet, refused
from harness.numerics.adapters import ADAPTER_CONFIG, adapter_of
from harness.numerics.anatomy import MOST_LAYERS
from harness.numerics.identity import IDLE, code_revision

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG_FILES = ("config.json", ADAPTER_CONFIG)
"""Either makes a folder a checkpoint."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of them makes a folder a tokenizer."""
_SIZES = {
    "num_hidden_layers": MOST_LAYERS,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "num_attention_heads": 100_000,
    "num_key_value_heads": 100_000,
    "head_dim": 1_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 10**10,
}
"""Field of a configuration → the most it may be: far more than the largest known models have."""
_REQUIRED = ("num_hidden_layers", "vocab_size")
_COUNT = re.compile(r"(?:^|_)(?:layers?|experts?|heads?|groups?|blocks?)$")
"""How the fields end that say how many modules are made; no more than `_MODULES`, or making them never ends."""
_MODULES = 100_000
_LAYERS = re.compile(r"(?:^|_)layers?$")
"""Those that say how many layers there are; no more than `MOST_LAYERS`."""

_SAY_NO_DECODER = ("gpt_neox", "gpt_neox_japanese")
"""Decoders whose configurations have a field is_decoder that is false, as those of encoders are."""


def local_folder(name: str, data_dir: Path | None, files: Sequence[str]) -> Path | None:
    """The folder that a checkpoint's name stands for, or None if it has to come from the hub.

    Args:
        name: a folder's path, or a hub id.
        data_dir: a folder laid out by hub id, or None.
        files: any of them makes the hub id's folder there count.
    """
    if Path(name).is_dir():
        return Path(name)
    if data_dir is None or Path(name).is_absolute():
        return None
    folder = data_dir / name
    return folder if any((folder / file).is_file() for file in files) else None


class Weights(NamedTuple):
    """Where a checkpoint's own weights are."""

    name: str
    """A folder or a hub id."""
    revision: str | None
    """Of the hub id."""
    adapter: bool
    """Whether an adapter has to be merged into them: the one where the checkpoint itself is."""


def weights_of(name: str, revision: str | None = None, data_dir: Path | None = None) -> Weights:
    """Where the weights of a checkpoint are: with it, or, if it is an adapter alone, where its base is.

    Raises:
        UsageError: for an adapter whose base is not named, is named as a folder that is not there, or has an adapter, too.
    """
    beside = file_of(name, ADAPTER_CONFIG, revision) is not None
    if not beside or has_weights(name, revision):
        return Weights(name, revision, adapter=beside)
    adapter = adapter_of(name, revision)
    if adapter is None or not adapter.base:
        raise UsageError(f"{name} holds an adapter alone, and it does not name its base model; merge it first.")
    base = local_folder(adapter.base, data_dir, CONFIG_FILES)
    if base is None and (Path(adapter.base).is_absolute() or adapter.base.startswith((".", "~"))):
        raise UsageError(
            f"{name} holds an adapter alone, for the model in {adapter.base}, which is not there. Put that path right in its "
            f"{ADAPTER_CONFIG}, or merge the adapter first."
        )
    weights = Weights(str(base or adapter.base), None if base else adapter.revision, adapter=True)
    if adapter_of(weights.name, weights.revision):
        raise UsageError(f"{name} is an adapter, and its base {weights.name} is or has one, too; merge that one first.")
    return weights


def trusted(name: str, weights: Weights, trust_remote_code: bool) -> bool:
    """Whether code beside the weights may run: the word is for the checkpoint named, not for a base its adapter names."""
    return trust_remote_code and weights.name == name


def has_weights(name: str, revision: str | None = None) -> bool:
    """Whether a folder or a repository of the hub holds a whole model's weights; an adapter's are none.

    Raises:
        UsageError: where the hub can be reached and gives no answer.
    """
    files = [file.name for file in Path(name).iterdir()] if Path(name).is_dir() else files_of(name, revision)
    return any(
        file.endswith((".safetensors", ".bin")) and not file.startswith("adapter_") and file not in IDLE for file in files
    )


def read_config(
    name: str, revision: str | None = None, trust_remote_code: bool = False, data_dir: Path | None = None
) -> PretrainedConfig:
    """A checkpoint's configuration, looked over; of a multimodal one, that of its text part.

    Raises:
        UsageError: for one that is not there, asks for remote code, or says what cannot be.
    """
    weights = weights_of(name, revision, data_dir)
    return text_part(weights.name, whole_config(weights.name, weights.revision, trusted(name, weights, trust_remote_code)))


def whole_config(name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration in one place, as it stands there; see `read_config`."""
    from transformers import AutoConfig

    offline = None if Path(name).is_dir() else unreachable()
    check_document(name)
    with refused(name, "configuration", offline), quiet():
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name,
            revision=pinned(name, revision),
            code_revision=code_revision(name, revision) if trust_remote_code else None,
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
        )
        return config


def check_document(name: str) -> None:
    """Refuse a folder whose config.json is no JSON object, or counts modules without end.

    transformers reads it for the tokenizer too, says less of it, and makes lists of as many entries as there are layers.
    """
    file = Path(name) / "config.json"
    if not file.is_file():
        return
    if not isinstance(whole := read_json(file, finite=False), dict):
        raise UsageError(f"{file} is no configuration of a model: a JSON object is wanted.")
    for part in (whole, *(part for part in whole.values() if isinstance(part, dict))):
        for field, value in part.items():
            most = MOST_LAYERS if _LAYERS.search(field) else _MODULES
            if _COUNT.search(field) and isinstance(value, int | float) and value > most:
                raise _impossible(name, field, value, most)


def _impossible(name: str, field: str, value: object, most: int) -> UsageError:
    return UsageError(f"the configuration of {name} says {field}={value!r:.60}; it is a whole number from 1 to {most:,}.")


def text_part(name: str, whole: PretrainedConfig) -> PretrainedConfig:
    """What a configuration says of the part that reads and writes text, looked over; see `read_config`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

    with refused(name, "configuration"):
        text = whole.get_text_config()
    if not isinstance(text, PretrainedConfig):
        raise UsageError(f"the configuration of {name} says {text!r:.60} of its text part; a configuration is wanted there.")
    _check_sizes(name, text)
    if type(text) is type(whole) or "AutoModelForCausalLM" in (getattr(whole, "auto_map", None) or {}):
        return whole
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{name} is a multimodal checkpoint ({whole.model_type}), and transformers has no model of its text part alone "
            f"({text.model_type}). Take a checkpoint of text."
        )
    if quantised := getattr(whole, "quantization_config", None):
        text.quantization_config = quantised
    return text


def _check_sizes(name: str, config: Any) -> None:
    """Refuse what no model has, before a model of it is put together (a thousand million layers take for ever)."""
    for field, most in _SIZES.items():
        value = getattr(config, field, None)
        if value is None and field not in _REQUIRED:
            continue
        each = value if isinstance(value, list | tuple) and field != "hidden_size" and value else [value]  # one a layer
        if any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= most for v in each):
            raise _impossible(name, config.attribute_map.get(field, field), value, most)


def meta_model(config: PretrainedConfig, name: str = "this configuration") -> PreTrainedModel:
    """The model of a configuration without its numbers: every tensor lies on the meta device and takes no memory.

    Raises:
        UsageError: where no model can be put together, such as with heads that do not divide the hidden size, or one that wants
            another text beside the one it continues, or reads in both directions.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with refused(name, "model"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if model.config.is_encoder_decoder:
        raise UsageError(
            f"the configuration of {name} says is_encoder_decoder={model.config.is_encoder_decoder!r:.60}; "
            "only a decoder alone can be unlearned here."
        )
    if getattr(model.config, "is_decoder", None) is False and model.config.model_type not in _SAY_NO_DECODER:
        raise UsageError(
            f"{name} is an encoder ({model.config.model_type}): it reads text in both directions and continues none. Take a "
            "causal language model."
        )
    return model
