"""What a launcher begins in tests: `python -m tests.launched FOLDER` works out numbers, and with `harness` it is the command line.

Every process works with random Llamas of some ten thousand parameters (see `tests.nano_sweep`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.core.config import resolve, settings
from harness.core.costs import Costs
from harness.core.errors import Diverged, UsageError
from harness.core.method import METHODS, Method, Progress, UnlearningContext
from harness.core.options import LoRA, Optimizer
from harness.core.registry import ROOT
from harness.numerics import group, sharding, training
from harness.numerics.shared_cache import SharedCache
from harness.storage.cache import Cache
from tests import nano_sweep
from tests.clock import A_HANG

ADAM = {"epochs": 2, "lr": 1e-3, "batch_size": 5, "warmup_epochs": 0}
"""Five rows a step: no number of processes has as many as another one."""
NEWTON = {"damping": 0.1, "damping_scale": "mean_eigenvalue", "kl_rows": 7}
CASES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "kfac": ("kfade", {**NEWTON, "estimator": "kfac", "step_size": 0.02}, {}),
    "ekfac, two steps to a KL": ("kfade", {**NEWTON, "estimator": "ekfac", "target_kl": 0.02, "steps": 2, "refit": True}, {}),
    "diagonal": ("kfade", {**NEWTON, "estimator": "diagonal", "step_size": 0.02}, {}),
    "two forget rows": ("kfade", {**NEWTON, "estimator": "identity", "step_size": 0.02, "forget_rows": 2}, {}),
    "corrected": ("predictor_corrector", {"predictor": "kfac", "damping": 0.1, "peak_kl": 0.02, "kl_rows": 7}, {}),
    "grad_diff": ("grad_diff", ADAM, {}),
    "npo, adapters": ("npo", ADAM, {"adapter": LoRA(rank=2, dropout=0.0)}),
    "grad_diff, weight by weight": ("grad_diff", ADAM, {"optimizer": Optimizer(clip="none")}),
    "npo, retain KL": ("npo", {**ADAM, "retain_loss": "kl"}, {}),
    "pdu": ("pdu", {**ADAM, "dual_warmup_epochs": 0}, {}),
    "npo_sam": ("npo_sam", ADAM, {}),
    "soul": ("soul", {**ADAM, "optimiser": "sophia_g", "hessian_interval": 2}, {}),
    "loku": ("loku", {**ADAM, "rank": 2, "fisher_batch": 4}, {}),
    "repselect": ("repselect", {"components": 2, "batch_size": 4}, {}),
    "rmu, not shared": ("rmu", {"steps": 3, "layer": 1, "layers": [1], "batch_size": 2}, {}),
}
"""What is worked out: method, settings, and what else its context says."""
SHARDED: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    name: (name, {**ADAM, **({"dual_warmup_epochs": 0} if name == "pdu" else {})}, {})
    for name, method in METHODS.all().items()
    if method.takes_shards
}
"""Likewise, where weights are sharded (`FSDP`)."""
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What accelerate's launcher says to processes that are to shard weights."""


def outcomes(folder: Path, cases: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]]) -> dict[str, Tensor]:
    """All numbers that methods log, and the weights that they come to, by case."""
    found = {}
    for case, (name, chosen, more) in cases.items():
        problem, method = nano_sweep.nano_problem(), METHODS.get(name)
        model, tokenizer = problem.sources["base"].load(Cache(folder / case), "cpu", "float32")
        if sharding.wanted():
            sharding.shard(model, "cpu")
        cache = SharedCache(Cache(folder / case))
        context = UnlearningContext(model, tokenizer, problem, 0, cache, Costs(), "nano", **more)
        steps = list(method.steps(context, resolve(method.config, chosen, owner=name)))
        logged = [value for step in steps for _, value in sorted(step.logged.items())]
        found[f"{case}: logged"] = torch.tensor(logged, dtype=torch.float64)
        found[f"{case}: weights"] = torch.cat(
            [weight.detach().flatten() for _, weight in sorted(sharding.state(model).items())]
        )
    return found


@settings
class EndingConfig:
    """Settings of a method that ends badly."""

    who: Literal["first", "other"] = "other"
    """Which processes end."""
    refused: bool = False
    """Whether they raise an error that the user can put right, and are not killed."""


def ending(context: UnlearningContext, config: EndingConfig) -> Iterator[Progress]:
    """Three steps, each with a sum over the processes; some end in the second one."""
    for step in (1, 2, 3):
        if step == 2 and config.who == ("first" if group.is_first() else "other"):
            if config.refused:
                raise UsageError("this cannot be done.")
            os.kill(os.getpid(), signal.SIGKILL)
        (total,) = group.summed(1.0)
        yield Progress(step, {"processes": total}, measure_here=True, total=3)


def diverging(context: UnlearningContext, config: nano_sweep.NanoConfig) -> Iterator[Progress]:
    """One step, and then no other on any process."""
    yield Progress(1, measure_here=True, total=2)
    raise Diverged("nothing is finite")


def register() -> None:
    nano_sweep.register()
    METHODS._registered["diverging"] = Method("diverging", nano_sweep.NanoConfig, "a test", diverging)
    METHODS._registered["ending"] = Method("ending", EndingConfig, "a test", ending)


def launch(processes: int, *words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What so many processes of this module come to, under torch's launcher and on a port that is free."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, "-m", "tests.launched", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160", **env},
        capture_output=True,
        text=True,
        timeout=A_HANG,
    )


def main() -> None:
    register()
    if sys.argv[1] == "harness":
        from harness.cli.entry import main

        sys.argv[:2] = ["harness"]
        main()
        return
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    group.join()
    sharded = sharding.wanted()
    if sharded:
        training.TOKENS_PER_MICRO_BATCH = 1  # a row each: of five, one of two processes has a pass more than the other
    with group.together():
        save_file(outcomes(folder / "shared", SHARDED if sharded else CASES), folder / f"{rank}.safetensors")
    sharding.end(0)


if __name__ == "__main__":
    main()
