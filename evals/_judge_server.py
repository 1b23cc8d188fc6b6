"""Where a judge is asked: at its address, or at a server that vLLM runs here for as long as a local model is asked."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from evals._http import BrokenOff, TooLate, TooLong, Unreachable, exchange
from harness.core.options import Judge
from harness.models.sources import CheckpointSource
from harness.numerics.vllm import CPU_CACHE_GIB, child, free_share
from harness.storage.temporary import temporary_file

log = logging.getLogger("harness.core.judging")

SECONDS_TO_SERVE = 1800.0
"""How long vLLM may take to load a model."""


class Unavailable(Exception):
    """No verdict is to be had from the judge; the message says why. It may pass."""


@contextmanager
def address(judge: Judge) -> Iterator[str]:
    """Where the judge is asked, up to `/v1`; for a local model, a server that runs until it has been asked.

    It gets nine tenths of the GPU memory that is free. For a model that needs other settings, start a server of your own and
    name it by --judge-url.

    Raises:
        Unavailable: if vLLM does not come up with the model.
    """
    if judge.kind == "openai":
        yield judge.url
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--model", judge.model, "--served-model-name", judge.name, *_memory()]
    if commit := CheckpointSource(judge.model).commit:  # the one that names its verdicts
        words += ["--revision", commit, "--tokenizer-revision", commit]
    # On a CPU vLLM would take nearly all memory.
    env = {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB), **os.environ, "VLLM_NO_USAGE_STATS": "1"}
    for key in ("OPENAI_API_KEY", "VLLM_API_KEY"):  # it needs none, and would want the second one
        env.pop(key, None)
    with temporary_file() as said, child(words, env, said) as server:
        try:
            started = time.monotonic()
            while not _up(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() - started > SECONDS_TO_SERVE:
                    raise Unavailable(f"vLLM did not come up with the judge {judge.name}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        except Unavailable:
            said.seek(0)
            log.warning("vLLM's last words:\n%s", "".join(said.readlines()[-15:]))
            raise


def _memory() -> list[str]:
    import torch

    return ["--gpu-memory-utilization", f"{free_share():.2f}"] if torch.cuda.is_available() else []


def _up(url: str) -> bool:
    try:
        return exchange(url, 5, 1000).status == 200
    except (TooLate, TooLong, Unreachable, BrokenOff):
        return False
