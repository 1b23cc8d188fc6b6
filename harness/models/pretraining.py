"""Models trained on the spot and kept in the cache: small ones several at a time in processes of their own, large ones in turn.

A `TrainedSource` is a recipe with its data. Models that share a parent start from its weights, as ToFU's full and
retain models share a pretrained one, which may be a checkpoint. They are saved as ordinary checkpoints.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.arithmetic import PORTABLE, begun_with, is_portable, kind_of_machine
from harness.core.caching import CacheEntry, CacheView
from harness.core.config import JSON
from harness.core.errors import Diverged, UsageError, reason
from harness.core.memory import ran_out
from harness.core.problem import ModelSource
from harness.core.progress import progress_bar
from harness.core.streams import streams
from harness.core.text import Example
from harness.core.workers import Progress, Work, do_all
from harness.data.hub import Commits, known_commits, take_commits
from harness.models.device_memory import trainings_at_once
from harness.models.kept_epochs import KeptEpochs
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.numerics import group
from harness.numerics.identity import versions
from harness.storage.cache import Cache, digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tqdm import tqdm
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

    from harness.data.rows import Batch, Encoded
    from harness.models.gguf import GgufSource
    from harness.models.sources import CheckpointSource
    from harness.numerics.training import StepLog

    Base = CheckpointSource | GgufSource

log = logging.getLogger(__name__)

RECIPE_VERSION = 1
"""Raised when this file, or `harness.models.recipes`, changes what a recipe yields."""
LOOKED_AT = 200
"""Of so many of its examples, about, it is looked how well a fine-tuned model has learned them."""


@dataclass(frozen=True)
class TrainedSource:
    """A model made by training on the spot."""

    name: str
    """For progress bars, such as `mini@0 retain90-1`."""
    examples: tuple[Example, ...]
    """What it learns."""
    recipe: Recipe
    """How."""
    architecture: Architecture | None
    """Its shape; a checkpoint's if None."""
    vocabulary: Vocabulary | None
    """Its tokenizer; a checkpoint's if None."""
    seed: int
    """Initial weights (without a parent), data order, replay."""
    parent: TrainedSource | Base | None = None
    """The model it starts from."""
    replay: tuple[tuple[tuple[Example, ...], int], ...] = ()
    """Pools of earlier examples, and how many of each are drawn anew every epoch."""

    @cached_property
    def identity(self) -> Mapping[str, JSON]:
        """Everything above but the name, large parts as digests."""
        return {
            "kind": "trained",
            "version": RECIPE_VERSION,
            "recipe": self.recipe.identity,
            "architecture": asdict(self.architecture) if self.architecture else None,
            "vocabulary": digest(asdict(self.vocabulary)) if self.vocabulary else None,
            "examples": digest([asdict(e) for e in self.examples]),
            "replay": digest([[[asdict(e) for e in pool], count] for pool, count in self.replay]),
            "seed": self.seed,
            "parent": self._parent_identity(),
        }

    def _parent_identity(self) -> JSON:
        """A digest; of a checkpoint what it is, for readers of a record."""
        if isinstance(self.parent, TrainedSource):
            return digest(self.parent.identity)
        return dict(self.parent.identity) if self.parent else None

    def entry(self, cache: CacheView, progress: Progress = lambda done, steps: None) -> CacheEntry:
        """The cached checkpoint, trained in this process if it is not there, or in one of its own if its recipe wants that.

        Args:
            cache: where.
            progress: told after every step how many are done, of how many.
        """
        while self._elsewhere:
            train_all([self], cache)
            if entry := cache.find("model", self.identity):  # else the cache was removed in between: it is trained again
                return entry
        entry = cache.get("model", self.identity, lambda folder: self._train(cache, folder, progress))
        self._kept(cache).forget()
        return entry

    @property
    def _elsewhere(self) -> bool:
        """Whether this process computes in another way than the recipe wants."""
        return self.recipe.arithmetic == "portable" and not is_portable()

    def load(self, cache: CacheView, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer, trained first where it is not cached."""
        from harness.numerics.loading import load_checkpoint

        while True:
            train_all([self], cache)
            entry = self.entry(cache)
            try:
                return load_checkpoint(str(entry.path), device, dtype)
            except UsageError:
                if cache.find(entry.kind, entry.key):
                    raise
                # The cache was removed in between: it is trained again.

    def seconds(self, cache: CacheView) -> float | None:
        """What training it took by the clock, that of a process which was killed before included; its parent's share not."""
        entry = cache.find("model", self.identity)
        return entry.seconds + entry.facts.get("earlier_seconds", 0.0) if entry else None

    def _train(self, cache: CacheView, folder: Path, progress: Progress) -> Mapping[str, JSON]:
        if self._elsewhere:
            raise RuntimeError("a portable model is trained in a process of its own, see harness.core.arithmetic")
        import torch

        from harness.data.rows import encode
        from harness.models.sources import save_checkpoint, weights_fingerprint

        threads = torch.get_num_threads()
        torch.set_num_threads(self.recipe.threads or threads)
        try:
            model, tokenizer = self._start(cache)
            items = encode([*self.examples, *(e for pool, _ in self.replay for e in pool)], tokenizer)
            kept = self._kept(cache)
            log = None
            for log in self._steps_on(model, items, kept):
                progress(log.step, self._steps())
            save_checkpoint(model, tokenizer, folder, {"recipe": self.name})
            return {
                "weights": weights_fingerprint(model),
                "loss": log.loss if log else None,
                "name": self.name,
                "arithmetic": {**kind_of_machine()},
                "libraries": versions(),
            } | (self._learned(model, items, kept) if self.recipe.device else {})
        finally:
            torch.set_num_threads(threads)

    def _steps_on(self, model: PreTrainedModel, items: Sequence[Encoded], kept: KeptEpochs) -> Iterator[StepLog]:
        """Train the model in place, from after the last epoch that is kept."""
        import torch

        from harness.numerics import training

        recipe, steps = self.recipe, self._steps()
        adamw = training.AdamW(
            lr=recipe.lr,
            steps=steps,
            warmup=min(recipe.warmup, steps // 10) if recipe.warmup else max(1, steps // 20),
            schedule="cosine_with_min_lr",
            min_lr_rate=recipe.min_lr_rate,
            betas=recipe.betas,
        )
        device = next(model.parameters()).device

        def loss(part: tuple[Batch, int]) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                return training.pooled_nll(model, *part)

        kept.restore(model)
        batches = self._batches(items, min(recipe.tokens_at_once, training.tokens_at_once(model)), kept.done, device)
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
            for log in training.optimise(
                model, batches, loss, adamw, partial(kept.optimiser, adamw), begin=kept.done * self._epoch_steps()
            ):
                yield log
                if log.step % self._epoch_steps() == 0 and log.step < steps:
                    kept.keep(model, log.step // self._epoch_steps())

    def _learned(self, model: PreTrainedModel, items: Sequence[Encoded], kept: KeptEpochs) -> dict[str, JSON]:
        """Facts of a model that was fine-tuned: the mean probability it gives the answers it was shown, by the token."""
        import numpy as np

        from harness.numerics.likelihood import answer_nll

        own = len(self.examples)
        nll, tokens = answer_nll(model, items[: own : max(1, own // LOOKED_AT)], 0)
        return {"probability": float(np.exp(-nll / tokens).mean()), "earlier_seconds": kept.seconds}

    def _kept(self, cache: CacheView) -> KeptEpochs:
        return KeptEpochs(cache, self.name, self.identity, self.recipe.epochs if self.recipe.device else 0)

    def _start(self, cache: CacheView) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        import torch
        from transformers import LlamaForCausalLM

        if self.parent:
            return self.parent.load(cache, self.recipe.device or "cpu", "float32")
        if self.vocabulary is None:
            raise ValueError("a model without a parent needs a vocabulary and an architecture")
        tokenizer = self.vocabulary.build()
        with torch.random.fork_rng(devices=[]):
            streams(self.seed, "initial weights").seed_torch()
            return LlamaForCausalLM(self._config(tokenizer)), tokenizer

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        from transformers import LlamaConfig

        shape = self.architecture
        if shape is None:
            raise ValueError("a model without a parent needs a vocabulary and an architecture")
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.max_positions,
            tie_word_embeddings=shape.tied_embeddings,
            initializer_range=shape.initializer_range,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def _epoch_size(self) -> int:
        return len(self.examples) + sum(count for _, count in self.replay)

    def _epoch_steps(self) -> int:
        return math.ceil(self._epoch_size() / self.recipe.batch_size)

    def _steps(self) -> int:
        return self.recipe.epochs * self._epoch_steps()

    def _batches(
        self, items: Sequence[Encoded], tokens: int, done: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[list[tuple[Batch, int]]]:
        """Every epoch anew, after those that are done: all examples and a fresh draw of each replay pool, shuffled.

        Batches mix lengths (sorting the epoch by length was tried: the loss stayed five times higher, since length
        goes with the kind of question); within a batch shorter and longer ones are padded apart.
        """
        from harness.numerics.training import micro_batches

        rng = streams(self.seed, "order").python()
        for epoch in range(self.recipe.epochs):
            order = list(range(len(self.examples)))
            start = len(self.examples)
            for pool, count in self.replay:
                order += rng.sample(range(start, start + len(pool)), count)
                start += len(pool)
            rng.shuffle(order)
            if epoch < done:
                continue
            if self.recipe.device:  # so that an epoch's dropout does not depend on those before it
                streams(self.seed, "dropout of an epoch", epoch).seed_torch()
            for k in range(0, len(order), self.recipe.batch_size):
                yield micro_batches(items, order[k : k + self.recipe.batch_size], 0, device, tokens)


def weights_digest(source: ModelSource, cache: CacheView) -> str:
    """A digest that names a source's weights as they are here: part of the keys of what was computed with them.

    A recipe does not decide the weights, the kind of machine does too: a model that is trained on the spot is named by what
    this cache holds of it, and trained first where it holds nothing.
    """
    from harness.models.sources import source_digest

    if not isinstance(source, TrainedSource):
        return source_digest(source)
    train_all([source], cache)
    return digest([source.identity, source.entry(cache).facts["weights"]])[:16]


# ---------------------------------------------------------------- several at a time


def train_all(sources: Sequence[TrainedSource], cache: CacheView) -> None:
    """Train what is not cached, parents first: without a device as many at a time as there are cores, others on theirs.

    Raises:
        UsageError: if the cache cannot be written, or one of them diverges or runs out of its device's memory.
        BrokenProcessPool: if a process without a device is killed.
    """
    wanted = {digest(s.identity): s for source in sources for s in _lineage(source)}
    missing = {key: s for key, s in wanted.items() if not cache.find("model", s.identity)}
    for elsewhere in (False, True):
        anywhere = {key: s for key, s in missing.items() if s._elsewhere == elsewhere and not s.recipe.device}
        workers = min(len(anywhere), os.cpu_count() or 1)
        if workers > 1 or (workers and elsewhere):
            _train_in_processes(anywhere, cache, workers, PORTABLE if elsewhere else {})
        else:
            _train_here(anywhere.values(), cache)
    on_device = {key: s for key, s in missing.items() if s.recipe.device}
    if (workers := _at_once(list(on_device.values()), cache)) > 1:
        try:
            return _train_in_processes(on_device, cache, workers, {})
        except UsageError:
            raise
        except Exception as error:  # no memory after all, a GPU that takes one process, a process that was killed
            log.warning("training side by side broke off (%s): they are trained one after the other", reason(error))
    _train_here(on_device.values(), cache)


def _at_once(sources: Sequence[TrainedSource], cache: CacheView) -> int:
    """How many of them are trained on their device at the same time."""
    device, *others = {source.recipe.device for source in sources} or {""}
    bases = [source.parent for source in sources if source.parent and not isinstance(source.parent, TrainedSource)]
    if others or len(bases) < len(sources) or group.processes() > 1:
        return 1
    return trainings_at_once(bases, device, cache.root)


def _train_here(sources: Iterable[TrainedSource], cache: CacheView) -> None:
    """Train them in this process, one after the other; one that runs out of a device's memory is refused in a sentence."""
    for source in sources:
        try:
            with progress_bar(desc=f"training {source.name}", unit="step", leave=True) as bar:
                _train_one(source, cache, lambda done, steps, bar=bar: _show(bar, done, steps))  # type: ignore[misc]
        except Exception as error:
            if not source.recipe.device or not ran_out(error):
                raise
            raise UsageError(
                f"fine-tuning {source.name} ran out of memory on {source.recipe.device}: it holds 16 bytes a weight, and "
                "activations. Take a larger device, --device cuda:all, or a smaller model; what was kept of it stays."
            ) from error


def _train_in_processes(
    sources: dict[str, TrainedSource], cache: CacheView, workers: int, variables: Mapping[str, str]
) -> None:
    """Train them by name, in processes that begin with some variables."""
    pieces = {
        key: Work(
            partial(_train_in_worker, source, cache.root, known_commits()),
            source._steps(),
            digest(source.parent.identity) if isinstance(source.parent, TrainedSource) else "",
        )
        for key, source in sources.items()
    }
    label = f"training {len(sources)} models ({next(reversed(sources.values())).name} …)"
    try:
        with begun_with(variables):
            do_all(pieces, workers, label, _warm_up)
    except BaseException:
        cache.sweep()
        raise


def _warm_up() -> None:
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401


def _train_in_worker(source: TrainedSource, root: Path, commits: Commits, progress: Progress) -> None:
    take_commits(commits)
    _train_one(source, Cache(root), progress)


def _train_one(source: TrainedSource, cache: CacheView, progress: Progress) -> None:
    try:
        source.entry(cache, progress)
    except Diverged as error:
        way_out = f"Take a lower learning rate than {source.recipe.lr:g}."
        raise UsageError(f"training {source.name} broke off: {error}. {way_out}") from error


def _lineage(source: TrainedSource) -> Iterator[TrainedSource]:
    if isinstance(source.parent, TrainedSource):
        yield from _lineage(source.parent)
    yield source


def _show(bar: tqdm[object], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
