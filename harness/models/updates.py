"""What unlearning adds to a model's weights: taken off, put onto another model, and taken back.

    θ_new = θ_onto + (θ_unlearned − θ_base)      for every tensor   (K-FADE, arXiv:2602.10568: transfer to fine-tuned models)

Both are computed in float64 and the sum is rounded to the model's own type; the difference is kept in float32 where that is
enough. So an update put onto the model it was taken from gives the unlearned weights bit by bit, unless a float32 weight
became 2^29 times smaller. The sum cannot be undone by subtracting, for rounding forgets: what stood there before is kept
beside the new checkpoint (`undo.safetensors`, as large as the tensors that moved).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.models.saving import save_tensors
from harness.models.sources import CheckpointSource, read_sidecar, save_checkpoint, weights_fingerprint
from harness.numerics.identity import UNDO
from harness.storage.cache import disk_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UPDATE = "update"
"""What a checkpoint's sidecar tells of the update that was put onto it."""


def difference(new: Tensor, old: Tensor) -> Tensor:
    """What has to be added to `old` to get `new`, on the CPU: in float32 if that gives `new` back exactly, else in float64."""
    new, old = new.detach().cpu(), old.detach().cpu()
    exact = new.double() - old.double()
    short = exact.float()
    return short if added(old, short).equal(new) else exact


def added(old: Tensor, update: Tensor) -> Tensor:
    """`old` with an update on top, in its own type."""
    return (old.double() + update.to(old.device).double()).to(old.dtype)


def changed(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The update of every tensor that differs."""
    return {name: difference(new[name], old[name]) for name in new if not new[name].cpu().equal(old[name].cpu())}


def put_onto(file: Path, onto: CheckpointSource, out: Path, cache: CacheView) -> int:
    """Write a checkpoint with an update put onto it, and what is needed to take it back.

    Args:
        file: an update, as `harness run --save-update` writes it.
        onto: the checkpoint; its weights keep their type.
        out: a new folder.
        cache: as models are loaded with.

    Returns:
        How many tensors moved.

    Raises:
        UsageError: for a file that is no update, one of another architecture, or a folder that is not empty.
    """
    update, about = _read(file)
    _check_empty(out)
    model, tokenizer = onto.load(cache, "cpu", onto.examine().dtype)
    state = model.state_dict()
    for name, tensor in update.items():
        if name not in state:
            raise UsageError(f"{file.name} updates {name}, which {onto.name} does not have: it is of another architecture.")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"{file.name} updates {name} as {list(tensor.shape)}, in {onto.name} it is {list(state[name].shape)}: "
                "an update fits models of one shape."
            )
    _check_tied(file, update, state, onto.name)
    before = {name: state[name].clone() for name in update}
    account = {**about, "before": weights_fingerprint(model)}
    model.load_state_dict({name: added(before[name], tensor) for name, tensor in update.items()}, strict=False)
    account["after"] = weights_fingerprint(model)
    _write(model, tokenizer, out, {**read_sidecar(onto.folder), UPDATE: account}, before)
    return len(update)


def _check_tied(file: Path, update: Mapping[str, Tensor], state: Mapping[str, Tensor], onto: str) -> None:
    """Refuse to move one tensor in two ways: the embeddings of a model that reads and writes with the same ones.

    From such a model onto one with two of them it fits: its update holds both names, and each is moved alike.
    """
    shared: dict[int, list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(tensor.data_ptr(), []).append(name)
    for names in shared.values():
        moved = [name for name in names if name in update]
        if moved and any(name not in update or not update[name].equal(update[moved[0]]) for name in names):
            raise UsageError(
                f"{' and '.join(names)} are one tensor in {onto}, and {file.name} does not move them alike: it comes from a "
                "model with embeddings that are not tied. Untie those of the target first (tie_word_embeddings)."
            )


def take_back(folder: Path, out: Path, cache: CacheView) -> int:
    """Write a checkpoint as it was, bit by bit, before an update was put onto it.

    Args:
        folder: what `put_onto` wrote.
        out: a new folder.
        cache: as models are loaded with.

    Returns:
        How many tensors were put back.

    Raises:
        UsageError: for a folder that holds no such thing, or whose weights have changed since.
    """
    sidecar = read_sidecar(folder if folder.is_dir() else None)
    account = sidecar.get(UPDATE)
    if not isinstance(account, dict) or not (folder / UNDO).is_file():
        raise UsageError(f"{folder} holds no checkpoint that harness transfer wrote (with {UNDO} beside it).")
    before, _ = _tensors(folder / UNDO)
    _check_empty(out)
    source = CheckpointSource(str(folder))
    model, tokenizer = source.load(cache, "cpu", source.examine().dtype)
    if weights_fingerprint(model) != account.get("after"):
        raise UsageError(f"the weights in {folder} have changed since the update was put onto them; it cannot be taken back.")
    model.load_state_dict(before, strict=False)
    if weights_fingerprint(model) != account.get("before"):
        raise UsageError(f"{folder / UNDO} does not give back the weights that were there before; it was changed.")
    _write(model, tokenizer, out, {key: value for key, value in sidecar.items() if key != UPDATE})
    return len(before)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = _tensors(file)
    if not {"run", "method"} <= metadata.keys():
        raise UsageError(f"{file} is no update; harness run --save-update FILE writes one.")
    return tensors, {key: metadata[key] for key in ("run", "method")}


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is no safetensors file ({type(error).__name__}).") from None


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty; give a new folder with --out.")


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    about: Mapping[str, JSON],
    before: Mapping[str, Tensor] | None = None,
) -> None:
    with disk_errors(f"the folder {out}", "Choose another with --out", within=out):
        save_checkpoint(model, tokenizer, out, about)
        if before is not None:
            save_tensors(before, out / UNDO)
