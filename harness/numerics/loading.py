"""Checkpoints read from the hub or a folder: the configuration, the tokenizer, the weights, and what is refused of them.

What a checkpoint is called, and what names its weights, is told in `harness.models.sources`. Of a multimodal checkpoint the
part that reads and writes text is loaded; an adapter is merged into the weights (`harness.numerics.adapters`). Before any
weight is read, the model is put together on the meta device and its names and shapes are compared with those in the files, so
that what does not fit is told at once and takes no memory.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.errors import UsageError
from harness.data.hub import file_of, pinned, unreachable
from harness.data.hub_errors import quiet, refused
from harness.data.rows import MODEL_ROWS
from harness.numerics.adapters import NO_ADAPTER, merged
from harness.numerics.configurations import (
    TOKENIZER_FILES,
    Weights,
    check_document,
    meta_model,
    text_part,
    trusted,
    weights_of,
    whole_config,
)
from harness.numerics.identity import code_revision
from harness.numerics.placement import ALL_GPUS, plain_attention

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_TEXT_PART = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head": "lm_head",
}
"""Names of the text part's tensors in a multimodal checkpoint → in the model that is the text part alone."""
_BUFFERS = re.compile(r"(^|\.)(rotary\w*\..*|inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
"""Tables that older checkpoints hold and that models compute themselves: rotary frequencies, causal masks, positions."""


# ---------------------------------------------------------------- weights


def load_checkpoint(
    name: str,
    device: str,
    dtype: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    data_dir: Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from the hub or a folder; see `harness.models.sources.CheckpointSource.load`.

    On `cuda:all` the decoder layers are spread evenly over all GPUs (accelerate's `device_map="balanced"`), for a model larger
    than one of them. No machine with several GPUs was at hand: that path has never been run.
    """
    import torch

    from harness.numerics.products import in_wide_products

    examined, words = examine(name, revision, tokenizer, trust_remote_code, data_dir)
    trust_remote_code = trusted(name, examined.weights, trust_remote_code)
    model, loading = _from_pretrained(
        examined, trust_remote_code, getattr(torch, dtype), device_map="balanced" if device == ALL_GPUS else None
    )
    if unused := check_fit(examined.weights.name, loading, model):
        log.warning("%s: %d tensors are left out, of parts that the model does not have (%s)", name, len(unused), unused[0])
    if examined.weights.adapter:
        model = merged(model, name, pinned(name, revision), not Path(name).is_dir() and unreachable() is not None)
    plain_attention(device)
    if device != ALL_GPUS:
        model.to(device)  # type: ignore[arg-type]
    in_wide_products(model)
    _try_out(examined.weights.name, model.eval(), words)
    return model, words


class Examined(NamedTuple):
    """A checkpoint that fits together, as far as can be said without reading its weights."""

    weights: Weights
    """Where they are."""
    config: PretrainedConfig
    """Of the part that is loaded."""
    multimodal: bool
    """Whether that is the text part of more."""
    dtype: str = ""
    """What the weights are stored in; the first tensor of numbers says it for all."""


def examine(
    name: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    data_dir: Path | None = None,
) -> tuple[Examined, PreTrainedTokenizerBase]:
    """Look a checkpoint over: its tokenizer, its configuration, and whether its weights have the model's names and shapes.

    Only the names and shapes are read of safetensors files (`.bin` files are read, piece by piece).

    Raises:
        UsageError: for everything that `load_checkpoint` refuses.
    """
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UsageError(f"there is no checkpoint folder {name}.")
    weights = weights_of(name, revision, data_dir)
    words = tokenizer_of(name, revision, tokenizer, weights, trust_remote_code)
    trust_remote_code = trusted(name, weights, trust_remote_code)
    whole = whole_config(weights.name, weights.revision, trust_remote_code)
    config = text_part(weights.name, whole)
    examined = Examined(weights, config, multimodal=type(config) is not type(whole))
    if "auto_map" not in vars(config):  # what comes with code is put together by that code alone
        meta_model(config, weights.name)  # what cannot be made is told better without the files
    if getattr(config, "quantization_config", None):  # its tensors have the shapes of packed numbers; it is checked when loaded
        _check_vocabulary(name, words, int(config.vocab_size))
        return examined._replace(dtype=str(config.dtype or "float32").removeprefix("torch.")), words
    stored = copy.deepcopy(config)
    stored.dtype = None  # what it says of the type need not be so
    model, loading = _from_pretrained(examined._replace(config=stored), trust_remote_code, "auto", device_map={"": "meta"})
    check_fit(weights.name, loading, model)
    _check_vocabulary(name, words, len(model.get_input_embeddings().weight))  # type: ignore[arg-type]
    return examined._replace(dtype=str(model.dtype).removeprefix("torch.")), words


def _from_pretrained(
    examined: Examined, trust_remote_code: bool, dtype: object, device_map: object
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, without any adapter, and what transformers says of loading it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of many small files says nothing
    name, revision, _ = examined.weights
    offline = None if Path(name).is_dir() else unreachable()
    with refused(name, "model", offline), quiet():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
            name,
            config=examined.config,
            revision=pinned(name, revision),
            code_revision=code_revision(name, revision) if trust_remote_code else None,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
            device_map=device_map,
            key_mapping=_TEXT_PART if examined.multimodal else None,
            adapter_kwargs={"subfolder": NO_ADAPTER},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_ends(name, loaded[0].generation_config.eos_token_id)
    if examined.multimodal:
        loaded[0]._weight_conversions = None  # type: ignore[assignment]  # saved, it is a text model under its own names
    return loaded


def _check_ends(name: str, named: object) -> None:
    """Refuse ends of answers that are no tokens' numbers: transformers takes them as they are, and stumbles when it answers."""
    each = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(token, int) for token in each):
        raise UsageError(
            f"the generation settings of {name} say eos_token_id={named!r:.60}; it is a token's number or a list of them. Put "
            "its generation_config.json right."
        )


def _try_out(name: str, model: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    """Let a model read a word, with dropout and without, and continue it: some of what a configuration says is used only then.

    Raises:
        UsageError: if it cannot.
    """
    import torch
    from transformers import GenerationConfig

    how = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=words.eos_token_id)
    ids = torch.tensor([words("a")["input_ids"] or [words.eos_token_id]], device=model.device)
    gpus = range(torch.cuda.device_count()) if model.device.type == "cuda" else []
    with refused(name, "model"), quiet(), without_own_settings(model), torch.no_grad(), torch.random.fork_rng(gpus):
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)  # type: ignore[operator]
        model.train()(input_ids=ids, use_cache=False)
    model.eval()


def check_fit(name: str, loading: Mapping[str, Any], model: PreTrainedModel) -> list[str]:
    """Refuse weights that do not fit the model, by what transformers says of loading them; give the tensors left out.

    Raises:
        UsageError: where shapes differ, a tensor is missing, or one is left over that belongs into the model's own parts.
    """
    if loading["mismatched_keys"]:
        key, stored, expected = min(loading["mismatched_keys"])
        raise UsageError(
            f"the weights of {name} do not fit its configuration: {key} is {list(stored)}, by the configuration it is "
            f"{list(expected)}."
        )
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"the weights of {name} lack {len(missing)} of its model's tensors, {missing[0]} among them; they would be random."
        )
    unused = sorted(key for key in loading["unexpected_keys"] if not _BUFFERS.search(key))
    inside = [key for key in unused if _inside(model, key)]
    if inside:
        raise UsageError(
            f"the weights of {name} hold {len(inside)} tensors that its configuration has no place for, {inside[0]} "
            "among them; without them it is another model. Put its config.json right."
        )
    return unused


def _inside(model: PreTrainedModel, key: str) -> bool:
    """Whether a tensor belongs into a part that the model has, such as one more layer, and not to a part of its own.

    A vision tower, a value head or layers that predict further tokens are parts of their own: text goes through without them.
    """
    base: nn.Module = getattr(model, model.base_model_prefix, model)
    first, _, rest = key.partition(".")
    if first == model.base_model_prefix:
        return rest.partition(".")[0] in base._modules
    return first in model._modules or first in base._modules


# ---------------------------------------------------------------- tokenizer


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from the hub or a folder.

    Raises:
        UsageError: for one that is not there, or asks for remote code.
    """
    from transformers import AutoTokenizer

    offline = None if Path(name).is_dir() else unreachable()
    check_document(name)
    with refused(name, "tokenizer", offline), quiet():
        return AutoTokenizer.from_pretrained(
            name,
            revision=pinned(name, revision),
            code_revision=code_revision(name, revision) if trust_remote_code else None,
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
        )


def tokenizer_of(
    name: str, revision: str | None, tokenizer: str | None, weights: Weights, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or the checkpoint's own; of an adapter alone that has none, its base's.

    Raises:
        UsageError: for one that is not there, asks for remote code, knows no words, or has no token that ends a text.
    """
    place, at = (tokenizer, None) if tokenizer else (name, revision)
    if not tokenizer and weights.name != name and not any(file_of(name, file, revision) for file in TOKENIZER_FILES):
        place, at, trust_remote_code = weights.name, weights.revision, False
    words = load_tokenizer(place, at, trust_remote_code)
    if len(words) <= len(words.all_special_tokens):
        raise UsageError(f"the checkpoint {name} has no tokenizer files (tokenizer.json or tokenizer.model).")
    if words.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {place} has no end-of-text token; answers could not end. Name one of its tokens as eos_token in "
            "its tokenizer_config.json."
        )
    return words


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer whose words have no row in the model; of added tokens only those that every text gets.

    Llama-2's tokenizers come with a padding token that its models lack. Whether a text holds such a token is seen where its
    tokens are made (`harness.data.rows.token_ids`).
    """
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    every = {*tokenizer("a")["input_ids"], tokenizer.eos_token_id}
    if beyond - tokenizer.get_added_vocab().keys() or any(number is not None and number >= rows for number in every):
        raise UsageError(f"the tokenizer of {name} has {len(tokenizer)} tokens, its model only {rows}.")
    setattr(tokenizer, MODEL_ROWS, rows)


@contextmanager
def without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Leave aside the settings of the checkpoint's generation_config.json (a repetition penalty, say), but for its ends."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
