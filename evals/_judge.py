"""Asking a judge for verdicts: an OpenAI-compatible server, or a local model that vLLM serves for as long as it is asked.

A verdict is kept in the cache by all that decides it, so that none is paid for twice, and a run that was cut off asks only for
what it lacks. As FastChat does (`llm_judge/common.py` of lm-sys/FastChat): a system message, a user message, temperature 0, at
most 2,048 tokens. It departs in how it fails: where FastChat goes on with an error's text for a verdict, a question without a
verdict (for an odd answer, one without text, or a refusal of this question) is left without one and asked again another time,
and a server that cannot be reached, is late, or gives no verdict at all is given up.

The key comes from the environment variable OPENAI_API_KEY and goes to the judge's address alone: redirects are not followed.
Where others on the way could read it (http:// to another machine) it is not sent. It is neither kept nor told anywhere.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from threading import Event

from evals._http import BrokenOff, Line, Reply, TooLate, TooLong, Unreachable, exchange
from evals._judge_server import Unavailable, address
from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.documents import parse_json, read_json
from harness.core.errors import UsageError
from harness.core.judging import keeps_secrets
from harness.core.options import Judge
from harness.numerics.thoughts import without_thoughts

log = logging.getLogger("harness.core.judging")
"""Named for the command line, which shows what it says of costs."""

MAX_TOKENS = 2048
"""Of a verdict (FastChat)."""
TRIES = 5
"""How often one verdict is asked for."""
SECONDS_TO_ANSWER = 120.0
"""How long one try may take, from connecting to the last byte."""
MOST_BYTES = 2**20
"""Of an answer; 2,048 tokens take some ten thousand."""
ODD_IN_A_ROW = 16
"""So many questions may be left without a verdict before there is any; then there is no use in asking the rest."""
FIRST_PAUSE = 1.0
"""Seconds before the second try; they double from try to try."""
LONGEST_PAUSE = 300.0
"""Seconds that a server may make us wait by its Retry-After."""
AT_ONCE = 8
"""Verdicts asked for at the same time."""
LONGEST_NAME = 200
"""Characters of the name that a server gives its model."""
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
    absent: str = ""
    """Why there is none, if so."""


class _Odd(Exception):
    """No verdict on this question, whatever the judge says of others; the message says why."""


class _Again(Exception):
    """A try that failed and may succeed later."""

    def __init__(self, reason: str, pause: float = 0.0, odd: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server wants to be left alone."""
        self.odd = odd
        """Whether it answers, and only what it says is of no use."""


def identity(judge: Judge) -> dict[str, JSON]:
    """What names a judge: its name, and for a local model the digest of its weights; no address, no key."""
    if judge.kind == "openai":
        return {"judge": judge.name}
    from harness.models.sources import CheckpointSource, source_digest

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


def verdicts(judge: Judge, prompts: Sequence[Prompt], cache: CacheView) -> list[Verdict]:
    """Each prompt's verdict, from the cache or from the judge; what it costs is told before it is asked.

    Args:
        judge: who is asked.
        prompts: the questions.
        cache: where verdicts are kept; those got before a failure are, and none that is absent.

    Returns:
        One for each prompt; some may be absent, but not all of them.

    Raises:
        Unavailable: if the judge gives no verdict after all tries.
        UsageError: if its server refuses the key, or does not have the model.
    """
    named = identity(judge)
    keys = [{**named, "messages": p.messages, "repetition": p.repetition, "max_tokens": MAX_TOKENS} for p in prompts]
    kept = [_kept(cache, key) for key in keys]
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
        given = len(missing) < len(prompts)
        with address(judge) as url, closing(_answers(_Client(judge, url, Event(), Line()), prompts, missing, given)) as pairs:
            for i, verdict in pairs:
                kept[i] = verdict
                if not verdict.absent:
                    _keep(cache, keys[i], verdict)
    return [verdict for verdict in kept if verdict is not None]


def _kept(cache: CacheView, key: Mapping[str, JSON]) -> Verdict | None:
    """The verdict in the cache, if there is one; an empty one, as earlier versions kept them, is none."""
    if (entry := cache.find("verdicts", key)) is None:
        return None
    verdict = Verdict(**read_json(entry.path / "verdict.json"))
    if without_thoughts(verdict.text):
        return verdict
    cache.forget("verdicts", key)
    return None


def _keep(cache: CacheView, key: Mapping[str, JSON], verdict: Verdict) -> None:
    def write(folder: Path) -> None:
        fields = {"text": verdict.text, "model": verdict.model}
        (folder / "verdict.json").write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")

    cache.get("verdicts", key, write)


def _answers(client: _Client, prompts: Sequence[Prompt], which: Sequence[int], given: bool) -> Generator[tuple[int, Verdict]]:
    """(position, verdict) as they come. After the first failure nothing more is asked; it is raised when all are back.

    Args:
        client: who asks.
        prompts: the questions.
        which: of them are asked.
        given: whether the judge has given a verdict on any of the others.

    Raises:
        Unavailable, UsageError: as `_Client.ask`; or if no verdict at all has come, for the first one's reason.
    """
    from harness.core.progress import progress_bar

    failure: Exception | None = None
    odd: list[str] = []
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        answers = _in_window(pool, lambda i: client.ask(prompts[i]), which)
        for i, future in progress_bar(answers, total=len(which), desc="judging", unit="verdict"):
            try:
                verdict = future.result()
            except CancelledError:
                continue
            except (Unavailable, UsageError) as error:
                failure = failure or error
            else:
                yield i, verdict
                given = given or not verdict.absent
                odd += [verdict.absent] if verdict.absent else []
                if not given and (len(odd) >= ODD_IN_A_ROW or len(odd) == len(which)):
                    client.stop.set()
                    failure = failure or Unavailable(f"the judge {client.judge.name} gave no verdict: {odd[0]}")
    except BaseException:  # Ctrl-C, or a full disk: nobody waits for what is under way
        client.stop.set()
        client.line.cut()
        raise
    finally:
        client.stop.set()
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


def _in_window(
    pool: ThreadPoolExecutor, ask: Callable[[int], Verdict], which: Sequence[int]
) -> Iterator[tuple[int, Future[Verdict]]]:
    """(position, its finished future); the next question is asked only once the reader has taken an answer.

    So whoever stops after n answers has asked at most n + AT_ONCE - 1 questions, however fast the server is.
    """
    left = iter(which)
    under_way: dict[Future[Verdict], int] = {}
    while True:
        for i in islice(left, AT_ONCE - len(under_way)):
            under_way[pool.submit(ask, i)] = i
        if not under_way:
            return
        future = wait(under_way, return_when=FIRST_COMPLETED).done.pop()
        yield under_way.pop(future), future


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
    line: Line
    """What is being asked."""

    def ask(self, prompt: Prompt) -> Verdict:
        """One verdict, after pauses that double, or last as long as the server wants. A failure stops all that ask.

        Raises:
            Unavailable: after all tries, if the server was not there, late or busy.
            UsageError: for a refused key or an unknown model.
            CancelledError: if another one failed meanwhile.
        """
        pause = 0.0
        for tried in range(TRIES):
            if self.stop.wait(pause):
                raise CancelledError
            try:
                return self._post(prompt)
            except _Odd as odd:
                return Verdict("", _named(self._model), str(odd))
            except _Again as again:
                last = again
                pause = min(max(FIRST_PAUSE * 2**tried, again.pause), LONGEST_PAUSE)
            except UsageError:
                self.stop.set()
                raise
        if last.odd:
            return Verdict("", _named(self._model), str(last))
        self.stop.set()
        raise Unavailable(f"the judge {self.judge.name} gave no verdict in {TRIES} tries: {last}")

    def _post(self, prompt: Prompt) -> Verdict:
        request = {"model": self._model, "messages": prompt.messages, "n": 1, "temperature": 0, "max_tokens": MAX_TOKENS}
        headers = {"Content-Type": "application/json"}
        key = _key() if self.judge.kind == "openai" and keeps_secrets(self.url) else ""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            content = json.dumps(request).encode()
            reply = exchange(f"{self.url}/chat/completions", SECONDS_TO_ANSWER, MOST_BYTES, content, headers, self.line)
        except TooLate:
            raise _Again(f"it did not answer within {SECONDS_TO_ANSWER:.0f} s") from None
        except Unreachable:
            raise _Again("it cannot be reached") from None
        except BrokenOff:
            raise _Again("the connection broke off") from None
        except TooLong:
            raise _Again(f"its server sends more than {MOST_BYTES:,} bytes", odd=True) from None
        if not 200 <= reply.status < 300:
            raise self._refusal(reply, bool(key))
        return self._verdict(reply.body)

    def _verdict(self, body: bytes) -> Verdict:
        """The verdict in a chat completion."""
        try:
            completion = parse_json(body, "the completion", finite=False)
            choice = completion["choices"][0]
            text, model, reason = _text(choice["message"].get("content")), completion.get("model"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Again("what its server sends is no chat completion", odd=True) from None
        if not without_thoughts(text):
            why = f" (finish reason {reason})" if isinstance(reason, str) and _NAME.fullmatch(reason) else ""
            raise _Odd(f"it gave no text{why}")
        return Verdict(text, _named(model if isinstance(model, str) and model else self._model))

    @property
    def _model(self) -> str:
        return self.judge.model if self.judge.kind == "openai" else self.judge.name

    def _refusal(self, reply: Reply, with_key: bool) -> Exception:
        """What a status that is no success means: another try, the end, or something to put right."""
        code = _code(reply.body)
        status = f"HTTP {reply.status}" + (f", {code}" if code else "")
        if reply.status in (401, 403):
            why = "refuses the key in OPENAI_API_KEY" if with_key else "wants a key: set OPENAI_API_KEY"
            if not keeps_secrets(self.url):
                why = "wants a key, and none is sent over http:// to another machine: use https://, or a tunnel to localhost"
            return UsageError(f"the server of the judge {self.judge.name} {why} ({status}).")
        if reply.status == 404:
            return UsageError(f"the judge's server does not know {self.judge.model}, or --judge-url is not right ({status}).")
        if reply.status in (408, 409, 425, 429) or reply.status >= 500:
            return _Again(status, _pause(reply.headers.get("Retry-After")))
        return _Odd(f"its server does not take the question ({status})")


def _text(content: object) -> str:
    """What a message says, without what is no text: nothing, one text, or parts of which some are text.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(content, list):
        return "".join(_text(part["text"]) for part in content if part["type"] == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError


def _named(model: str) -> str:
    """A model's name as it is recorded: of a path the last part, no character that does something on a terminal."""
    cut = Path(model).name if Path(model).is_absolute() else model
    return "".join(c for c in cut if c.isprintable())[:LONGEST_NAME]


_NAME = re.compile(r"[A-Za-z_]{3,40}")


def _code(body: bytes) -> str:
    """The server's short name of an error, such as `insufficient_quota`. Its prose is left out: it may quote the key."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        refusal = parse_json(body, "the refusal", finite=False)["error"]
        for name in (refusal.get("code"), refusal.get("type")):
            if isinstance(name, str) and _NAME.fullmatch(name):
                return name
    return ""


def _pause(header: str | None) -> float:
    """Seconds out of a Retry-After header: a number or a date; 0 for none or another."""
    if header is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(Exception):  # the parser of dates fails in many ways
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
