"""vLLM in a process of its own, which takes all its memory along when it ends. Tokens go in, tokens come out."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness.core.documents import parse_json
from harness.core.errors import UsageError
from harness.storage.temporary import temporary_file

log = logging.getLogger(__name__)

SECONDS_TO_START = 1800.0
"""How long vLLM may take to load a model."""
CPU_CACHE_GIB = 4
"""Room for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise."""
LAST_LINES = 15
"""How many of a failed engine's lines are shown."""
_CHILD = Path(__file__).with_name("vllm_child.py")


@dataclass(frozen=True)
class Prompt:
    """What is to be continued, and how."""

    prompt: list[int]
    """Token ids."""
    max_tokens: int
    """At most this many new ones."""
    temperature: float
    """0 is greedy."""
    seed: int
    """Of the draw."""
    ends: list[int]
    """The tokens that end an answer."""


@dataclass(frozen=True)
class Candidates:
    """Tokens that may follow a text."""

    prompt: list[int]
    """Token ids of the text."""
    candidates: list[int]
    """Token ids, each of them once."""


class Engine:
    """A vLLM that has loaded a model."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[str]) -> None:
        self._process = process
        self._said = said

    def wait_until_ready(self) -> None:
        """Return when the model is loaded.

        Raises:
            UsageError: if it does not come up.
        """
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], SECONDS_TO_START)
        if not readable or not self._process.stdout.readline():
            raise self._failure("did not come up with this model")

    def complete(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The new tokens of each prompt, the ending one included.

        Raises:
            UsageError: if vLLM breaks off.
        """
        answers: list[list[int]] = self._ask([asdict(prompt) for prompt in prompts])
        return answers

    def score(self, prefixes: Sequence[Candidates]) -> list[list[float]]:
        """For each prefix its candidates' log-likelihoods as the next token, in nats.

        Raises:
            UsageError: if vLLM breaks off.
        """
        scores: list[list[float]] = self._ask([asdict(each) for each in prefixes])
        return scores

    def _ask(self, prompts: Sequence[dict[str, Any]]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(prompts).encode() + b"\n")
            self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise self._failure("broke off")
        return parse_json(line, "what vLLM sends", finite=False)

    def _failure(self, what: str) -> UsageError:
        time.sleep(0.5)  # where a scheduler has ended both, let its signal come here, too: then it is no failure
        self._said.seek(0)
        log.warning("vLLM's last words:\n%s", "".join(self._said.readlines()[-LAST_LINES:]).rstrip())
        return UsageError(
            f"vLLM {what} (its last words are shown above). Hugging Face is the way out: --generator hf, --likelihoods hf."
        )


@contextmanager
def engine(folder: Path, dtype: str, device: str, max_length: int) -> Iterator[Engine]:
    """A vLLM that runs for as long as it is asked, on the same device as the model.

    Args:
        folder: a checkpoint; its tokenizer and generation settings are not read.
        dtype: as torch names it.
        device: `cpu`, `cuda` or `cuda:1`.
        max_length: of a prompt with its answer, in tokens.

    Raises:
        UsageError: if vLLM does not come up, or breaks off.
    """
    settings: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": dtype,
        "max_model_len": max_length,
        "enforce_eager": True,  # compiling takes longer than these answers
        "enable_prefix_caching": False,
        "seed": 0,
    }
    if device.startswith("cuda"):
        settings["gpu_memory_utilization"] = free_share(device)
    with temporary_file() as said, child(["engine", json.dumps(settings)], _environment(device), said) as process:
        running = Engine(process, said)
        running.wait_until_ready()
        yield running


@contextmanager
def child(words: Sequence[str], environment: Mapping[str, str], said: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program of `vllm_child.py` in a session of its own, until the end; or that of this process, however it comes.

    Args:
        words: what the program is to be, and what it is told.
        environment: its environment.
        said: where its stderr goes.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(_CHILD), *words],  # -P: the folder of that file is no place to import from
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if words[0] == "engine" else said,
        stderr=said,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def _environment(device: str) -> dict[str, str]:
    """The child's: no network, no statistics, one process, and no GPU but the model's."""
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if not device.startswith("cuda"):
        return {**env, "CUDA_VISIBLE_DEVICES": ""}
    number = int(device.partition(":")[2] or 0)
    visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {**env, "CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)}


def free_share(device: str = "cuda") -> float:
    """Nine tenths of what is free of a GPU's memory, as a share of all of it."""
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return round(0.9 * free / total, 2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with all it started: kindly, then what is left of them."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()
