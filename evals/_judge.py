"""Asking a judge for verdicts: an OpenAI-compatible server, or a local model that vLLM serves for as long as it is asked.

A verdict is kept in the cache by all that decides it, so that none is paid for twice, and a run that was cut off asks only for
what it lacks. As FastChat does (`llm_judge/common.py` of lm-sys/FastChat): a system message, a user message, temperature 0, at
most 2,048 tokens. It departs in how it fails: instead of going on with an error's text for a verdict, it gives up on the judge.

The key comes from the environment variable OPENAI_API_KEY, goes to the judge's address alone (redirects are not followed), and
is neither kept nor told anywhere.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from harness.cache import Cache, CacheEntry
from harness.config import JSON
from harness.documents import parse_json, read_json
from harness.errors import UsageError
from harness.interfaces import Judge
from harness.scratch import temporary_file
from harness.vllm import CPU_CACHE_GIB, end, free_share

log = logging.getLogger("harness.judging")
"""Named for the command line, which shows what it says of costs."""

MAX_TOKENS = 2048
"""Of a verdict (FastChat)."""
TRIES = 5
"""How often one verdict is asked for."""
SECONDS_TO_ANSWER = 120.0
"""How long one try may take."""
FIRST_PAUSE = 1.0
"""Seconds before the second try; they double from try to try."""
LONGEST_PAUSE = 300.0
"""Seconds that a server may make us wait by its Retry-After."""
AT_ONCE = 8
"""Verdicts asked for at the same time."""
SECONDS_TO_SERVE = 1800.0
"""How long vLLM may take to load a model."""
CHARACTERS_PER_TOKEN = 4
"""For the estimate of what judging costs."""


@dataclass(frozen=True)
class Prompt:
    """What a judge is asked."""

    system: str
    """The system message; empty for none."""
    user: str
    """The user's message."""
    repetition: int = 0
    """Which of several: each repetition has a verdict of its own, although the words are the same."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Verdict:
    """What a judge said."""

    text: str
    """Its answer, empty if it gave none."""
    model: str
    """Who answered, as the server names it: `gpt-4-0613` where `gpt-4` was asked for. A path is cut to its last part."""


class Unavailable(Exception):
    """No verdict is to be had from the judge; the message says why. It may pass."""


class _Again(Exception):
    """A try that failed and may succeed later."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server wants to be left alone."""


def identity(judge: Judge) -> dict[str, JSON]:
    """What names a judge: its name, and for a local model the digest of its weights; no address, no key."""
    if judge.kind == "openai":
        return {"judge": judge.name}
    from harness.models import CheckpointSource, source_digest

    return {"judge": judge.name, "weights": source_digest(CheckpointSource(judge.model))}


def check(judge: Judge) -> None:
    """Refuse a judge that certainly cannot be asked, before anything is computed.

    Raises:
        UsageError: if vLLM is not installed, or the address that needs a key has none.
    """
    if judge.kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UsageError(
            f"--judge {judge.name} needs vLLM, which is not installed here: pip install vllm, or give the address of a server "
            "that has the model: --judge openai:MODEL --judge-url URL."
        )
    if judge.kind == "openai" and judge.url == Judge.url and not _key():
        raise UsageError(
            f"--judge {judge.name} needs a key in the environment variable OPENAI_API_KEY; a server of your own that wants "
            "none is given by --judge-url."
        )


def verdicts(judge: Judge, prompts: Sequence[Prompt], cache: Cache) -> list[Verdict]:
    """Each prompt's verdict, from the cache or from the judge; what it costs is told before it is asked.

    Args:
        judge: who is asked.
        prompts: the questions.
        cache: where verdicts are kept; those got before a failure are.

    Raises:
        Unavailable: if the judge gives no verdict after all tries.
        UsageError: if its server refuses the key, or does not have the model.
    """
    named = identity(judge)
    keys = [{**named, "messages": p.messages, "repetition": p.repetition, "max_tokens": MAX_TOKENS} for p in prompts]
    kept = [_read(cache.find("verdicts", key)) for key in keys]
    missing = [i for i, verdict in enumerate(kept) if verdict is None]
    if missing:
        characters = sum(len(prompts[i].system) + len(prompts[i].user) for i in missing)
        log.info(
            "judging: %d answers are put to %s (%d verdicts are here already): about %s tokens to read, at most %s to write",
            len(missing),
            judge.name,
            len(prompts) - len(missing),
            f"{characters // CHARACTERS_PER_TOKEN:,}",
            f"{len(missing) * MAX_TOKENS:,}",
        )
        with _address(judge) as url:
            for i, verdict in _asked(_Client(judge, url, Event()), prompts, missing):

                def write(folder: Path, verdict: Verdict = verdict) -> None:
                    (folder / "verdict.json").write_text(json.dumps(asdict(verdict), ensure_ascii=False), encoding="utf-8")

                kept[i] = _read(cache.get("verdicts", keys[i], write))
    return [verdict for verdict in kept if verdict is not None]


def _read(entry: CacheEntry | None) -> Verdict | None:
    return Verdict(**read_json(entry.path / "verdict.json")) if entry else None


def _asked(client: _Client, prompts: Sequence[Prompt], which: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
    """(position, verdict) as they come. After the first failure nothing more is asked; it is raised when all are back."""
    from tqdm import tqdm

    failure: Exception | None = None
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {pool.submit(client.ask, prompts[i]): i for i in which}
        for future in tqdm(as_completed(asked), total=len(asked), desc="judging", unit="verdict", delay=2, leave=False):
            try:
                verdict = future.result()
            except CancelledError:
                continue
            except (Unavailable, UsageError) as error:
                failure = failure or error
            else:
                yield asked[future], verdict
    finally:
        client.stop.set()
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to no other address than the one given."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _open(request: urllib.request.Request, seconds: float) -> Any:
    """The response; the user's proxies are asked for every address but this machine's own."""
    here = urlsplit(request.full_url).hostname in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(_NoRedirect())
    if here:
        opener = urllib.request.build_opener(_NoRedirect(), urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=seconds)


def _key() -> str:
    """The key in the environment, or nothing.

    Raises:
        UsageError: for one that cannot be sent; without telling it.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UsageError("OPENAI_API_KEY holds characters that no key has.")
    return key


@dataclass(frozen=True)
class _Client:
    """Asks for one verdict after the other; may be used by several threads."""

    judge: Judge
    url: str
    stop: Event
    """Set when nothing more is to be asked."""

    def ask(self, prompt: Prompt) -> Verdict:
        """One verdict, after pauses that double, or last as long as the server wants. A failure stops all that ask.

        Raises:
            Unavailable: after all tries, or for what no further try would change.
            UsageError: for a refused key or an unknown model.
            CancelledError: if another one failed meanwhile.
        """
        pause, reason = 0.0, ""
        for tried in range(TRIES):
            if self.stop.wait(pause):
                raise CancelledError
            try:
                return self._post(prompt)
            except _Again as again:
                reason = str(again)
                pause = min(max(FIRST_PAUSE * 2**tried, again.pause), LONGEST_PAUSE)
            except (Unavailable, UsageError):
                self.stop.set()
                raise
        self.stop.set()
        raise Unavailable(f"the judge {self.judge.name} gave no verdict in {TRIES} tries: {reason}")

    def _post(self, prompt: Prompt) -> Verdict:
        asked = {"model": self._model, "messages": prompt.messages, "n": 1, "temperature": 0, "max_tokens": MAX_TOKENS}
        headers = {"Content-Type": "application/json"}
        key = _key() if self.judge.kind == "openai" else ""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(asked).encode(), headers)
        try:
            with _open(request, SECONDS_TO_ANSWER) as response:
                told = parse_json(response.read(), "the verdict")
            text, model = told["choices"][0]["message"]["content"], told.get("model")
            return Verdict(str(text or ""), _named(str(model or self._model)))
        except HTTPError as error:
            raise self._refusal(error, bool(key)) from None
        except TimeoutError:
            raise _Again(f"it did not answer within {SECONDS_TO_ANSWER:.0f} s") from None
        except URLError as error:
            late = isinstance(error.reason, TimeoutError)
            why = f"did not answer within {SECONDS_TO_ANSWER:.0f} s" if late else "cannot be reached"
            raise _Again(f"it {why}") from None
        except (OSError, HTTPException):
            raise _Again("the connection broke off") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Again("what its server sends is no chat completion") from None

    @property
    def _model(self) -> str:
        return self.judge.model if self.judge.kind == "openai" else self.judge.name

    def _refusal(self, error: HTTPError, with_key: bool) -> Exception:
        """What a status that is no success means: another try, the end, or something to put right."""
        code = _code(error)
        status = f"HTTP {error.code}" + (f", {code}" if code else "")
        if error.code in (401, 403):
            why = "refuses the key in OPENAI_API_KEY" if with_key else "wants a key: set OPENAI_API_KEY"
            return UsageError(f"the server of the judge {self.judge.name} {why} ({status}).")
        if error.code == 404:
            return UsageError(f"the judge's server does not know {self.judge.model}, or --judge-url is not right ({status}).")
        if error.code in (408, 409, 429) or error.code >= 500:
            return _Again(status, _pause(error.headers.get("Retry-After")))
        return Unavailable(f"the server of the judge {self.judge.name} does not take the question ({status})")


def _named(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() else model


def _code(error: HTTPError) -> str:
    """The server's short name of an error, such as `insufficient_quota`. Its prose is left out: it may quote the key."""
    with suppress(Exception):
        told = parse_json(error.read(), "the refusal")["error"]
        for name in (told.get("code"), told.get("type")):
            if isinstance(name, str) and re.fullmatch(r"[A-Za-z_]{3,40}", name):
                return name
    return ""


def _pause(told: str | None) -> float:
    """Seconds out of a Retry-After header: a number or a date; 0 for none or another."""
    if told is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(told))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    return 0.0


# ---------------------------------------------------------------- a local model


@contextmanager
def _address(judge: Judge) -> Iterator[str]:
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
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--model", judge.model, "--served-model-name", judge.name, *_memory()]
    # On a CPU vLLM would take nearly all memory.
    env = {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB), **os.environ}
    with temporary_file() as said:
        server = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=env, start_new_session=True)
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
        finally:
            end(server)


def _memory() -> list[str]:
    import torch

    return ["--gpu-memory-utilization", f"{free_share():.2f}"] if torch.cuda.is_available() else []


def _up(url: str) -> bool:
    try:
        with _open(urllib.request.Request(url), 5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False
