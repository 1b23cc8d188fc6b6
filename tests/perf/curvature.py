"""How far the curvature engine is from what its arithmetic costs at least, and from the libraries that do the same.

    python -m tests.perf.curvature --json out.json [--size 10M|1M] [--threads 1] [--also FOLDER]

The floor is written out by hand on the same Hugging Face model: forward, backward without any weight gradient (the graph begins
at the first targeted layer) and one full matrix product per covariance, A shared by gate and up; it is fed a ready-made logit
gradient, so it samples no labels. It is no bound: who computes only half of a symmetric matrix can pass under it. Everything
else is a ratio to the floor runs just before and just after it, in one process, in an order that rotates, on one thread in CPU
time; the column "fastest" is the fastest pass over the fastest floor, which neighbours on the machine disturb least. Models are randomly initialised, all sequences of one length, all positions but the first labelled, no padding
(curvlinops could not mask it). Eigendecompositions are not counted.

curvlinops: `check_deterministic=False`, numbers of data and loss terms given, only the targeted weights as parameters, outputs
flattened to two dimensions. kronfluence: its inner loops, without the analyzer's files on disk.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import methods
from harness.data.rows import Encoded
from tests.perf._machine import gemm_rate, machine, table, write

KFAC_REACH = 1.04
EKFAC_REACH = 1.2
TARGETS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """A model and the data one pass goes over."""

    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width of the MLP."""
    layers: int
    """Decoder layers."""
    heads: int
    """Attention heads."""
    vocabulary: int
    """Tokens; the embedding is tied."""
    length: int = 64
    """Tokens of a sequence."""
    sequences: int = 16
    """In a batch."""
    batches: int = 2
    """In a pass: few, so that passes that are compared lie close in time."""


SIZES = {
    "10M": Size(hidden=320, intermediate=1024, layers=6, heads=5, vocabulary=4096),
    "1M": Size(hidden=128, intermediate=384, layers=4, heads=4, vocabulary=1024, batches=12),
}


@dataclass(frozen=True)
class Contender:
    """Something to be measured."""

    name: str
    """As printed."""
    algorithm: str
    """`kfac` or `ekfac`."""
    run: Callable[[], object]
    """One pass over the data."""


# ---------------------------------------------------------------- what is measured


def build(size: Size) -> LlamaForCausalLM:
    """A random model, frozen, in eval mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.length,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


class Floor:
    """Forward, backward without weight gradients, covariance products, and nothing else.

    Args:
        model: frozen.
        data: [sequences, tokens] of each batch.
    """

    def __init__(self, model: LlamaForCausalLM, data: Sequence[Tensor]) -> None:
        self.model, self.data = model, data
        predictions = data[0][:, 1:].numel()
        self.signal = torch.randn(predictions, model.config.vocab_size) / model.config.vocab_size**0.5
        self.sums: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        """The sums Σ a aᵀ and Σ g gᵀ by name."""
        handles = []
        self.sums = {}
        for i, block in enumerate(self.model.model.layers):
            for name in TARGETS:
                linear = getattr(block.mlp, name)
                handles.append(linear.register_forward_hook(self._hook(f"{i}.{name}", linear, name != "up_proj")))
        for ids in self.data:
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            self.model.lm_head(hidden.flatten(0, 1)).backward(self.signal)
        for handle in handles:
            handle.remove()
        return self.sums

    def _hook(self, name: str, linear: nn.Linear, with_input: bool) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        s = self.sums[f"S {name}"] = torch.zeros(linear.out_features, linear.out_features)
        if with_input:
            a = self.sums[f"A {name}"] = torch.zeros(linear.in_features, linear.in_features)

        def forward(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            if with_input:
                x = args[0].detach().flatten(0, 1)
                a.addmm_(x.T, x)
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(backward)

        def backward(gradient: Tensor) -> None:
            g = gradient.flatten(0, 1)
            s.addmm_(g.T, g)

        return forward


@dataclass(frozen=True)
class Engine:
    """What is measured of `methods/curvature/`, this checkout's or another one's."""

    passes: ModuleType
    """Holds `TOKENS_PER_BATCH`."""
    layers: ModuleType
    """Which layers there are."""
    signals: ModuleType
    """Draws labels."""
    factors: ModuleType
    """K-FAC's pass."""
    spectrum: ModuleType
    """EK-FAC's."""

    @staticmethod
    def here() -> Engine:
        """The one that is imported now."""
        return Engine(**{field.name: importlib.import_module(f"methods.curvature.{field.name}") for field in fields(Engine)})


def own(label: str, engine: Engine, model: LlamaForCausalLM, data: Sequence[Tensor]) -> list[Contender]:
    """This project's two passes.

    Args:
        label: how they are called in the table.
        engine: this checkout's, or another one's.
        model: frozen.
        data: [sequences, tokens] of each batch.
    """
    engine.passes.TOKENS_PER_BATCH = data[0].numel()
    encoded = [Encoded(row, 1) for ids in data for row in ids.tolist()]
    layers = engine.layers.mlp_layers(model)

    def factors() -> Any:
        return engine.factors.covariance_sums(model, layers, encoded, 0, engine.signals.SampledLabels(encoded, 1, 0))

    bases = engine.spectrum.eigenbases(layers, factors())

    def spectrum() -> Any:
        return engine.spectrum.square_sums(model, layers, encoded, 0, engine.signals.SampledLabels(encoded, 1, 0), bases)

    return [Contender(f"{label} K-FAC", "kfac", factors), Contender(f"{label} EK-FAC", "ekfac", spectrum)]


class _Flat(nn.Module):
    """A model whose output is one row per predicted token."""

    def __init__(self, inner: LlamaForCausalLM) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        return self.inner.lm_head(hidden.flatten(0, 1))


def curvlinops(model: LlamaForCausalLM, data: Sequence[Tensor]) -> list[Contender]:
    """curvlinops-for-pytorch, as fast as it can be asked for."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    flat = _Flat(copy.deepcopy(model))
    parameters = [weight for name, weight in flat.named_parameters() if name.split(".")[-2] in TARGETS]
    for weight in parameters:
        weight.requires_grad_()

    def operator(kind: Any) -> Any:
        return kind(
            flat,
            nn.CrossEntropyLoss(reduction="sum"),
            parameters,
            [(ids, ids[:, 1:].flatten()) for ids in data],
            check_deterministic=False,
            num_data=sum(len(ids) for ids in data),
            num_per_example_loss_terms=data[0].shape[1] - 1,
        )

    decomposed = operator(EKFACLinearOperator)
    decomposed.compute_kronecker_factors()
    decomposed._compute_eigenvectors()

    def factors() -> Any:
        found = operator(KFACLinearOperator)
        found.compute_kronecker_factors()
        return found

    def spectrum() -> Any:
        decomposed._corrected_eigenvalues.clear()
        decomposed.compute_eigenvalue_correction()
        return decomposed

    return [Contender("curvlinops K-FAC", "kfac", factors), Contender("curvlinops EK-FAC", "ekfac", spectrum)]


def kronfluence(model: LlamaForCausalLM, data: Sequence[Tensor]) -> list[Contender]:
    """kronfluence's covariance and lambda passes over the same modules."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader, perform_eigendecomposition
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    class LanguageModelling(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(batch["ids"])
            labels = logits.detach().softmax(dim=-1).multinomial(1).squeeze(1)
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return [name for name, _ in flat.named_modules() if name.split(".")[-1] in TARGETS]

    flat = _Flat(copy.deepcopy(model))
    task, state, settings = LanguageModelling(), State(cpu=True), FactorArguments()
    prepared = prepare_model(flat, task)
    loader = [{"ids": ids} for ids in data]

    def factors() -> Any:
        return fit_covariance_matrices_with_loader(prepared, state, task, loader, settings, disable_tqdm=True)[1]

    basis = perform_eigendecomposition(factors(), prepared, state, settings, disable_tqdm=True)

    def spectrum() -> Any:
        return fit_lambda_matrices_with_loader(prepared, state, task, loader, settings, basis, disable_tqdm=True)[1]

    return [Contender("kronfluence K-FAC", "kfac", factors), Contender("kronfluence EK-FAC", "ekfac", spectrum)]


# ---------------------------------------------------------------- measuring


def seconds(run: Callable[[], object], threads: int) -> float:
    """What one pass takes: CPU time on one thread, since others share the machine; wall-clock time on several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    gc.collect()
    started = clock()
    run()
    return clock() - started


def measure(floor: Floor, contenders: Sequence[Contender], repetitions: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """For the floor and each contender seconds, and ratios to the mean of the floor's runs before and after."""
    for run in (floor, *(c.run for c in contenders)):
        run()  # warms up
    found: dict[str, dict[str, list[float]]] = {c.name: {"seconds": [], "ratios": []} for c in contenders}
    floors = [seconds(floor, threads)]
    for repetition in range(repetitions):
        shift = repetition % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            took = seconds(contender.run, threads)
            floors.append(seconds(floor, threads))
            found[contender.name]["seconds"].append(took)
            found[contender.name]["ratios"].append(2 * took / (floors[-2] + floors[-1]))
    return {"floor": {"seconds": floors, "ratios": [1.0]}, **found}


def report(
    found: dict[str, dict[str, list[float]]], contenders: Sequence[Contender], missing: Sequence[str]
) -> list[list[str]]:
    """The table's rows."""
    median = {name: statistics.median(values["ratios"]) for name, values in found.items()}
    floors = found["floor"]["seconds"]
    rows = [["floor", "1.00", "", "1.00", f"{statistics.median(floors):.2f}", "", ""]]
    for contender in contenders:
        name, took = contender.name, found[contender.name]
        reach = met = ""
        if name.startswith("own"):
            limit = KFAC_REACH if contender.algorithm == "kfac" else EKFAC_REACH
            others = [c.name for c in contenders if c.algorithm == contender.algorithm and not c.name.startswith("own")]
            reach = f"≤ {limit}" + (f" and under {' and '.join(other.split()[0] for other in others)}" if others else "")
            met = "yes" if median[name] <= limit and all(median[name] < median[other] for other in others) else "no"
        rows.append(
            [
                name,
                f"{median[name]:.2f}",
                f"{min(took['ratios']):.2f}–{max(took['ratios']):.2f}",
                f"{min(took['seconds']) / min(floors):.2f}",
                f"{statistics.median(took['seconds']):.2f}",
                reach,
                met,
            ]
        )
    return rows + [[name, "not installed", "", "", "", "", ""] for name in missing]


def another_engine(folder: Path) -> Engine:
    """The engine of another checkout, whose `methods/curvature/` is given, beside this one's."""
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("methods.curvature")}
    path, methods.__path__ = methods.__path__, [str(folder.resolve().parent)]
    try:
        return Engine.here()
    finally:
        methods.__path__ = path
        sys.modules.update(mine)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The curvature engine's cost as a ratio to its floor.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--size", choices=SIZES, default="10M", help="the model")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with one CPU time is measured, else wall-clock time")
    parser.add_argument("--repetitions", type=int, default=7, help="of every contender")
    parser.add_argument("--sequences", type=int, help="in a batch, if not the size's own number")
    parser.add_argument("--batches", type=int, help="in a pass, if not the size's own number")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another checkout's methods/curvature")
    parser.add_argument("--only-own", action="store_true", help="leave the libraries out")
    options = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    size = replace(size, sequences=options.sequences or size.sequences, batches=options.batches or size.batches)
    model = build(size)
    ids = torch.randint(size.vocabulary, (size.batches * size.sequences, size.length))
    data = list(ids.split(size.sequences))

    contenders = own("own", Engine.here(), model, data)
    for folder in options.also:
        contenders += own(f"own ({folder})", another_engine(folder), model, data)
    libraries = {} if options.only_own else {"curvlinops": curvlinops, "kronfluence": kronfluence}
    missing = [name for name in libraries if not importlib.util.find_spec(name)]
    for name, library in libraries.items():
        if name not in missing:
            contenders += library(model, data)
    contenders.sort(key=lambda c: c.algorithm != "kfac")

    before = gemm_rate(options.threads)
    found = measure(Floor(model, data), contenders, options.repetitions, options.threads)
    after = gemm_rate(options.threads)

    parameters = sum(p.numel() for p in model.parameters())
    clock = "CPU" if options.threads == 1 else "wall-clock"
    print(f"{parameters / 1e6:.1f} M parameters, {size}")
    print(f"{options.threads} thread(s), {options.repetitions} repetitions, {clock} time")
    print(f"1024³ float32 product: {before:.0f} GFLOP/s before, {after:.0f} after")
    rows = report(found, contenders, missing)
    print(table(["pass", "ratio to floor", "min–max", "fastest", "seconds", "reach", "met"], rows))
    write(
        options.json,
        {
            "machine": machine(),
            "threads": options.threads,
            "clock": clock,
            "repetitions": options.repetitions,
            "parameters": parameters,
            "size": asdict(size),
            "reference_gflops": {"before": before, "after": after},
            "reach": {"kfac": KFAC_REACH, "ekfac": EKFAC_REACH},
            "not_installed": missing,
            "passes": found,
            "median_ratio": {name: statistics.median(values["ratios"]) for name, values in found.items()},
        },
    )


if __name__ == "__main__":
    main()
