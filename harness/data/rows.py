"""Rows out of files, and examples into batches of tokens.

Rows come from a folder laid out by hub id (`DIR/locuslab/TOFU/forget10.json`) if one is given, else from the hub.
Tokenising follows ToFU's `data_module.py`: the prompt's tokens, counted by tokenising it alone, carry no label;
the end-of-text token is a label. It departs in padding: right-padded to the longest of the batch instead of
to 500, with attention 0 on the padding, which changes no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.documents import parse_json, place, read_text
from harness.core.errors import UsageError, cut
from harness.core.problem import Row
from harness.core.text import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NO_LABEL = -100
"""The label of positions on which no loss is taken."""
_PROBES = ("a", "A", "0", ".")
"""Texts that show what a tokenizer adds to any text; one is enough that has a token."""


# ---------------------------------------------------------------- rows


def dataset_file(dataset: str, name: str, data_dir: Path | None) -> Path:
    """A data set's file: in the data folder if one is given, else fetched from the hub (or its local cache).

    Args:
        dataset: the hub id, such as `locuslab/TOFU`.
        name: the file in it, such as `forget10.json`.
        data_dir: a folder laid out by hub id, or None.

    Raises:
        UsageError: if the file is not there, saying where it was looked for.
    """
    if data_dir is not None:
        path = data_dir / dataset / name
        if not path.is_file():
            raise UsageError(
                f"the data folder has no {dataset}/{name} (looked in {data_dir}). "
                f"Put the file of that name from the hub's {dataset} there."
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from harness.data.hub import commit, unreachable

    offline = unreachable()
    pinned = commit(dataset, kind="dataset")
    try:
        return Path(hf_hub_download(dataset, name, repo_type="dataset", revision=pinned, local_files_only=offline is not None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"{dataset}/{name} could not be fetched from the hub ({offline or type(error).__name__}). Without a network give "
            f"--data-dir DIR (or HARNESS_DATA) with DIR/{dataset}/{name}, or take the embedded model: --model mini."
        ) from error


def dataset_files(dataset: str, patterns: Sequence[str], data_dir: Path | None) -> list[Path]:
    """The files of a part of a data set: in the data folder if it holds any, else fetched from the hub (or its local cache).

    Args:
        dataset: the hub id, such as `cais/wmdp`.
        patterns: forms its name may have there, such as `wmdp-bio/test*`; the first one that fits any file is taken.
        data_dir: a folder laid out by hub id, or None.

    Raises:
        UsageError: if there is no such file, saying where it was looked for; if it is behind a licence gate, saying so.
    """
    files = dataset_files_or_reason(dataset, patterns, data_dir)
    if isinstance(files, list):
        return files
    where = f" (looked in {data_dir})" if data_dir else ""
    raise UsageError(f"{files}{where}, or take the embedded model: --model mini.")


def dataset_files_or_reason(dataset: str, patterns: Sequence[str], data_dir: Path | None) -> list[Path] | str:
    """As `dataset_files`, of a data set that one can do without: the files, or why there are none and what to do about it,
    with no path in it.

    Raises:
        UsageError: where the hub can be reached and gives no answer.
    """
    if data_dir is not None and (files := matching(data_dir / dataset, patterns)):
        return files
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    from harness.data.hub import commit, unreachable
    from harness.data.hub_errors import gated

    why, pinned = unreachable(), commit(dataset, kind="dataset")
    if not why:
        # Asked for also where files are in the local cache: a download that was killed has left some of them there.
        try:
            folder = Path(snapshot_download(dataset, repo_type="dataset", revision=pinned, allow_patterns=list(patterns)))
            if files := matching(folder, patterns):
                return files
            why = "it holds no such file"
        except GatedRepoError:
            why = gated(f"datasets/{dataset}").rstrip(".")
        except (HfHubHTTPError, OSError) as error:
            why = type(error).__name__
    elif cached := cached_snapshot(dataset, patterns):
        return matching(cached, patterns)
    looked = "is not in the data folder, and " if data_dir else ""
    return (
        f"{dataset}/{patterns[0]} {looked}could not be fetched from the hub ({why}). Give --data-dir DIR (or "
        f"HARNESS_DATA) with DIR/{dataset}/{patterns[-1]}"
    )


def cached_snapshot(dataset: str, patterns: Sequence[str]) -> Path | None:
    """The folder of the hub's local cache that holds files of a data set that fit one of some patterns, if any does."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from harness.data.hub import commit

    pinned, wanted = commit(dataset, kind="dataset"), list(patterns)
    try:
        folder = Path(
            snapshot_download(dataset, repo_type="dataset", revision=pinned, allow_patterns=wanted, local_files_only=True)
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    return folder if matching(folder, patterns) else None


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that fit the first of some patterns that fits any, sorted."""
    return next((files for pattern in patterns if (files := sorted(f for f in folder.glob(pattern) if f.is_file()))), [])


def read_rows(path: Path, fields: Mapping[str, type]) -> list[dict[str, object]]:
    """The rows of a JSON-lines file (or of one JSON list, or of a parquet file), with the fields they must have.

    Args:
        path: the file.
        fields: name → type; `str` fields must not be empty, `list` fields must hold non-empty strings.

    Raises:
        UsageError: naming the file, the line and the field.
    """
    rows = []
    for number, row in _lines(path):
        where = f"{place(path)}, line {number}"
        if not isinstance(row, dict):
            raise UsageError(f"{where}: expected an object, found {type(row).__name__}.")
        for field, kind in fields.items():
            value = row.get(field)
            if field not in row:
                raise UsageError(f"{where}: the field '{field}' is missing.")
            if not isinstance(value, kind) or not value:
                raise UsageError(f"{where}: the field '{field}' must be a non-empty {kind.__name__}, found {cut(repr(value))}.")
            if isinstance(value, list) and not all(isinstance(item, str) and item for item in value):
                raise UsageError(f"{where}: the field '{field}' must hold non-empty strings.")
        rows.append(row)
    if not rows:
        raise UsageError(f"{place(path)} is empty.")
    return rows


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            return list(enumerate(parquet.read_table(path).to_pylist(), start=1))
        except ArrowException as error:
            raise UsageError(f"{place(path)} is no parquet file ({type(error).__name__}).") from None
    text, where = read_text(path), place(path)
    if text.lstrip().startswith("["):
        return enumerate(parse_json(text, where), start=1)
    return ((n, parse_json(line, where, n)) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


# ---------------------------------------------------------------- tokens


MODEL_ROWS = "model_rows"
"""Attribute of a tokenizer that has tokens beyond its model's last row: how many rows there are."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids."""

    input_ids: list[int]
    """Prompt, answer and end token."""
    prompt_tokens: int
    """How many of them carry no label."""

    @property
    def labels(self) -> list[int]:
        """The token at the same position where a loss is taken on it, else -100 (not yet shifted)."""
        return [NO_LABEL] * self.prompt_tokens + self.input_ids[self.prompt_tokens :]

    @property
    def label_count(self) -> int:
        """Tokens on which a loss is taken; nothing predicts a text's first token."""
        return len(self.input_ids) - max(1, self.prompt_tokens)


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    end_after_cut: bool = False,
) -> list[Encoded]:
    """Each example's tokens: special tokens as the tokenizer adds them, the end token last (but for a `Window`).

    Args:
        examples: the texts.
        tokenizer: whose tokens.
        max_length: a text of so many tokens or more is cut there and loses its end token, as ToFU's is.
        end_after_cut: give a text that was cut an end token beyond `max_length`, as open-unlearning does.

    Raises:
        UsageError: if the tokenizer has no end token, or an example has no labelled token left.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-text token; its answers could not end.")
    texts = token_ids(tokenizer, [e.prompt + e.tag + e.answer for e in examples])
    unique = list(dict.fromkeys(e.prompt for e in examples))
    prompts = dict(zip(unique, token_ids(tokenizer, unique), strict=True))
    encoded = []
    for example, ids in zip(examples, texts, strict=True):
        prompt = prompts[example.prompt]
        end = [tokenizer.eos_token_id] if example.ends else []
        ids = [*ids[:max_length], *end] if end_after_cut else [*ids, *end][:max_length]
        if len(ids) <= len(prompt):
            raise UsageError(f"no answer is left within {max_length} tokens of '{example.prompt[:60]}…'.")
        if len(ids) == 1:
            raise UsageError(f"'{tokenizer.decode(ids)}' is a text of one token, which no token before it predicts.")
        encoded.append(Encoded(ids, len(prompt)))
    return encoded


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens behind the special tokens that the tokenizer puts first; those that it puts last are left out.

    Some add an end token, a separator or the end of a turn; none of them is part of the text, so none is read or scored.
    """
    if not texts:
        return []
    ids = tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    check_rows(tokenizer, ids)
    _, last = added_tokens(tokenizer)
    return [row[: len(row) - last] for row in ids]


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before a text, and how many behind it."""
    for text in _PROBES:
        whole, plain = (list(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False))
        for before in range(len(whole) - len(plain) + 1 if plain else 0):
            if whole[before : before + len(plain)] == plain:
                return before, len(whole) - before - len(plain)
    # It cuts the text itself differently behind special tokens, or knows none of these letters.
    return 0, 0


def check_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]]) -> None:
    """Whether the model has a row for every token of some texts.

    Raises:
        UsageError: for an added token beyond the model's last row; such tokens may be there as long as no text holds them.
    """
    rows: int | None = getattr(tokenizer, MODEL_ROWS, None)
    if rows is None:
        return
    for ids in texts:
        if (largest := max(ids, default=0)) >= rows:
            token, text = tokenizer.convert_ids_to_tokens(largest), tokenizer.decode(ids)
            raise UsageError(f"a text holds {token!r}, token number {largest}, and its model has {rows} rows: '{text[:60]}…'.")


@dataclass(frozen=True)
class Batch:
    """Padded examples; on the right unless it is said where a batch is made."""

    input_ids: Tensor
    """[B, T] token ids; padding holds the end token."""
    attention_mask: Tensor
    """[B, T] 1 on tokens, 0 on padding."""
    labels: Tensor
    """[B, T] the token at the same position where a loss is taken on it, else -100 (not yet shifted)."""
    rows: Tensor
    """[B] each example's position in the list the batches were made from."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        parts = (self.input_ids, self.attention_mask, self.labels, self.rows)
        return Batch(*(tensor.to(device) for tensor in parts))

    def part(self, examples: slice) -> Batch:
        """Some of its examples, as long as they are here."""
        return Batch(self.input_ids[examples], self.attention_mask[examples], self.labels[examples], self.rows[examples])

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def scored(self) -> Tensor:
        """[B, T - 1] whether a loss is taken on the next token."""
        return self.labels[:, 1:] != NO_LABEL

    @property
    def counts(self) -> Tensor:
        """[B] on how many tokens of each example a loss is taken."""
        return self.scored.sum(dim=1)


def collate(
    encoded: Sequence[Encoded], rows: Sequence[int], pad_id: int, padding_side: Literal["right", "left"] = "right"
) -> Batch:
    """Some encoded examples as one batch, padded to the longest of them."""
    import torch

    length = max(len(e.input_ids) for e in encoded)

    def padded(values: Sequence[int], padding: int) -> list[int]:
        missing = [padding] * (length - len(values))
        return [*values, *missing] if padding_side == "right" else [*missing, *values]

    ids = [padded(e.input_ids, pad_id) for e in encoded]
    labels = [padded(e.labels, NO_LABEL) for e in encoded]
    mask = [padded([1] * len(e.input_ids), 0) for e in encoded]
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels), torch.tensor(rows))


def by_length(encoded: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Positions of examples, grouped so that a batch has similar lengths and at most `max_tokens` padded tokens.

    For passes over all examples in which order does not matter: evaluation and curvature.
    """
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].input_ids), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * len(encoded[i].input_ids) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def batches(encoded: Sequence[Encoded], pad_id: int, max_tokens: int, device: torch.device | str) -> Iterator[Batch]:
    """All examples once, in batches of similar length (see `by_length`), on a device."""
    for group in by_length(encoded, max_tokens):
        yield collate([encoded[i] for i in group], group, pad_id).to(device)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What padding holds: the end token, as in ToFU; its attention is 0, so it changes nothing."""
    return int(tokenizer.eos_token_id)


def fingerprint(rows: Sequence[Row]) -> str:
    """A digest of rows' content."""
    from harness.storage.cache import digest

    return digest(list(rows))[:16]
