"""A judge over real HTTP: what it is sent, what is kept, and every way in which it can fail."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals import _judge, _judge_server
from evals._http import Line, Reply
from evals._judge import Prompt, Verdict, verdicts
from evals._judge_server import Unavailable
from harness.core.errors import UsageError
from harness.core.options import Judge
from harness.storage.cache import Cache
from tests.clock import A_HANG, SOON
from tests.conftest import Nano
from tests.judge_server import Answer, Asked, JudgeServer, deaf_address, judge_server, raw_server, sends

KEY = "sk-a-key-that-nobody-has"
COMMIT = "0123456789" * 4
PROMPTS = [Prompt("Be fair.", f"Grade answer {n}.") for n in range(12)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_judge, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(_judge, "TRIES", 3)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a proxy that must not be asked for this machine's own addresses


def judge(server: JudgeServer, **changes: object) -> Judge:
    return replace(Judge("openai", "gpt-4", server.url), **changes)  # type: ignore[arg-type]


def first(*answers: Answer) -> Callable[[int, Asked], Answer]:
    """These in turn, then good ones."""
    return lambda number, asked: answers[number] if number < len(answers) else Answer()


# ---------------------------------------------------------------- asking


def test_verdicts_come_in_the_order_of_the_prompts(cache: Cache):
    with judge_server(lambda number, asked: Answer(f"about {asked.user} [[{number % 10}]]")) as server:
        found = verdicts(judge(server), PROMPTS, cache)
    assert [v.text.partition(" [[")[0] for v in found] == [f"about {p.user}" for p in PROMPTS]
    assert {v.model for v in found} == {"gpt-4-0613"}, "as the server names it"


def test_what_is_sent_is_fastchats(cache: Cache):
    with judge_server() as server:
        verdicts(judge(server), PROMPTS[:1], cache)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.authorization == f"Bearer {KEY}"
    assert asked.body == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Grade answer 0."}],
        "n": 1,
        "temperature": 0,
        "max_tokens": 2048,
    }


def test_without_a_key_none_is_sent_and_without_a_system_message_neither(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with judge_server() as server:
        verdicts(judge(server), [Prompt("", "Grade.")], cache)
    assert server.asked[0].authorization is None
    assert server.asked[0].body["messages"] == [{"role": "user", "content": "Grade."}]


def test_a_second_time_nothing_is_asked(cache: Cache):
    with judge_server() as server:
        found = verdicts(judge(server), PROMPTS, cache)
        assert len(server.asked) == len(PROMPTS)
        assert verdicts(judge(server), PROMPTS, cache) == found
        assert len(server.asked) == len(PROMPTS)
    assert verdicts(judge(server), PROMPTS, Cache(cache.root)) == found, "the server is closed by now"


@pytest.mark.parametrize(
    "other", [Prompt("Be fair.", "Grade it."), Prompt("Be kind.", "Grade."), Prompt("Be fair.", "Grade.", 1)], ids=str
)
def test_other_words_and_other_repetitions_are_asked_anew(cache: Cache, other: Prompt):
    with judge_server() as server:
        verdicts(judge(server), [Prompt("Be fair.", "Grade.")], cache)
        verdicts(judge(server), [other], cache)
        assert len(server.asked) == 2


def test_another_judge_is_asked_anew_and_another_address_of_it_is_not(cache: Cache):
    with judge_server() as server, judge_server() as moved:
        verdicts(judge(server), PROMPTS[:1], cache)
        verdicts(judge(moved), PROMPTS[:1], cache)
        assert (len(server.asked), len(moved.asked)) == (1, 0)
        verdicts(judge(moved, model="gpt-5"), PROMPTS[:1], cache)
        assert len(moved.asked) == 1


def test_what_it_will_cost_is_told_before_and_never_the_key(cache: Cache, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with judge_server() as server:
        verdicts(judge(server), PROMPTS[:4], cache)
        verdicts(judge(server), PROMPTS, cache)
    assert "4 answers are put to openai:gpt-4 (0 verdicts are here already)" in caplog.messages[0]
    assert "8 answers are put to openai:gpt-4 (4 verdicts are here already)" in caplog.text
    characters = sum(len(p.system) + len(p.user) for p in PROMPTS[4:])
    assert f"about {characters // 4:,} tokens to read, at most {8 * 2048:,} to write" in caplog.text
    assert KEY not in caplog.text


def test_neither_key_nor_address_is_kept(cache: Cache):
    with judge_server() as server:
        verdicts(judge(server), PROMPTS[:1], cache)
    kept = "".join(file.read_text() for file in cache.root.rglob("*.json"))
    assert "Rating" in kept
    assert KEY not in kept
    assert "127.0.0.1" not in kept


# ---------------------------------------------------------------- failing


def test_a_refused_key_is_one_sentence_without_the_key(cache: Cache):
    body = json.dumps({"error": {"code": "invalid_api_key", "message": f"Incorrect API key provided: {KEY}"}})
    with judge_server(lambda number, asked: Answer(status=401, body=body)) as server:
        with pytest.raises(UsageError) as refused:
            verdicts(judge(server), PROMPTS, cache)
        assert len(server.asked) <= _judge.AT_ONCE, "nothing more is asked"
    assert str(refused.value) == (
        "the server of the judge openai:gpt-4 refuses the key in OPENAI_API_KEY (HTTP 401, invalid_api_key)."
    )


def test_a_server_that_wants_a_key_says_where_it_goes(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with (
        judge_server(lambda number, asked: Answer(status=401, body="no")) as server,
        pytest.raises(UsageError, match=r"wants a key: set OPENAI_API_KEY \(HTTP 401\)"),
    ):
        verdicts(judge(server), PROMPTS, cache)


def test_an_unknown_model_or_address_is_named(cache: Cache):
    with (
        judge_server(lambda number, asked: Answer(status=404, body="")) as server,
        pytest.raises(UsageError, match=r"does not know gpt-4, or --judge-url is not right \(HTTP 404\)"),
    ):
        verdicts(judge(server), PROMPTS[:1], cache)


@pytest.mark.parametrize("key", ["two words", "gänsefüßchen", "a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_told(cache: Cache, monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with judge_server() as server, pytest.raises(UsageError, match="holds characters that no key has") as refused:
        verdicts(judge(server), PROMPTS[:1], cache)
    assert key not in str(refused.value)
    assert not server.asked


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds before each try, which are not waited for; it is 1,000 s past the epoch."""
    pauses: list[float] = []

    class Unhurried(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr(_judge, "Event", Unhurried)
    monkeypatch.setattr(_judge, "time", SimpleNamespace(time=lambda: 1000.0))
    return pauses


@pytest.mark.parametrize(("told", "seconds"), [("0.4", 0.4), (formatdate(1002, usegmt=True), 2.0)], ids=["seconds", "date"])
def test_a_busy_server_is_left_alone_as_long_as_it_wants(cache: Cache, pauses: list[float], told: str, seconds: float):
    with judge_server(first(Answer(status=429, body="{}", headers={"Retry-After": told}))) as server:
        (found,) = verdicts(judge(server), PROMPTS[:1], cache)
    assert found.text == Answer().text
    assert len(server.asked) == 2
    assert pauses == [0.0, seconds]


def test_a_server_may_not_make_us_wait_for_hours(cache: Cache, pauses: list[float]):
    with judge_server(first(Answer(status=429, body="{}", headers={"Retry-After": "7200"}))) as server:
        verdicts(judge(server), PROMPTS[:1], cache)
    assert pauses == [0.0, _judge.LONGEST_PAUSE]


PASSING = [
    Answer(status=500, body="oops"),
    Answer(status=503, body="", headers={"Retry-After": "soon"}),
    Answer(body="this is no JSON {"),
    Answer(body="[]"),
    Answer(body="{}"),
    Answer(body='{"choices": []}'),
    Answer(body='{"choices": [{"message": "text"}]}'),
    Answer(body='{"choices": [{"mes'),
]


@pytest.mark.parametrize("answer", PASSING, ids=lambda a: f"{a.status} {a.body}")
def test_what_may_pass_is_tried_again(cache: Cache, answer: Answer):
    with judge_server(first(answer)) as server:
        assert verdicts(judge(server), PROMPTS[:1], cache) == [Verdict(Answer().text, "gpt-4-0613")]
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=500, body="oops"), "HTTP 500"),
        (Answer(status=429, body='{"error": {"code": "insufficient_quota"}}'), "HTTP 429, insufficient_quota"),
    ],
    ids=["500", "429"],
)
def test_a_judge_that_goes_on_failing_is_given_up_with_the_reason(cache: Cache, answer: Answer, reason: str):
    with judge_server(lambda number, asked: answer) as server:
        with pytest.raises(Unavailable) as given_up:
            verdicts(judge(server), PROMPTS[:1], cache)
        assert len(server.asked) == 3
    assert str(given_up.value) == f"the judge openai:gpt-4 gave no verdict in 3 tries: {reason}"


def test_a_judge_that_never_answers_is_given_up(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_judge, "SECONDS_TO_ANSWER", 0.2)
    started = time.monotonic()
    with judge_server(lambda number, asked: Answer(seconds=A_HANG)) as server:
        with pytest.raises(Unavailable, match=r"in 3 tries: it did not answer within 0 s"):
            verdicts(judge(server), PROMPTS, cache)
        assert len(server.asked) <= 3 * _judge.AT_ONCE, "one that was given up is not asked the rest"
    assert time.monotonic() - started < SOON


def test_a_judge_that_sends_a_byte_now_and_then_is_given_up(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_judge, "SECONDS_TO_ANSWER", 0.3)
    started = time.monotonic()
    trickling = sends(b"HTTP/1.1 200 OK\r\n\r\n", again=b" ", pause=0.05)
    with raw_server(trickling) as url, pytest.raises(Unavailable, match=r"in 3 tries: it did not answer within 0 s"):
        verdicts(Judge("openai", "gpt-4", url), PROMPTS[:1], cache)
    assert time.monotonic() - started < SOON


def test_a_judge_that_never_stops_talking_is_given_up(cache: Cache):
    talking = sends(b"HTTP/1.1 200 OK\r\n\r\n", again=b" " * 10_000)
    with raw_server(talking) as url, pytest.raises(Unavailable, match=r": its server sends more than 1,048,576 bytes$"):
        verdicts(Judge("openai", "gpt-4", url), PROMPTS[:1], cache)


def test_an_address_where_nobody_listens_is_given_up(cache: Cache):
    with deaf_address() as url, pytest.raises(Unavailable, match="it cannot be reached"):
        verdicts(Judge("openai", "gpt-4", url), PROMPTS[:1], cache)


def test_the_key_does_not_follow_a_redirect(cache: Cache):
    with judge_server() as other:
        answer = Answer(status=307, body="", headers={"Location": f"{other.url}/chat/completions"})
        with judge_server(lambda number, asked: answer) as server, pytest.raises(Unavailable, match="HTTP 307"):
            verdicts(judge(server), PROMPTS[:1], cache)
    assert not other.asked


def test_verdicts_got_before_a_failure_are_kept(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_judge, "AT_ONCE", 1)
    with judge_server(lambda number, asked: Answer(status=500 if number >= 5 else 200)) as server:
        with pytest.raises(Unavailable):
            verdicts(judge(server), PROMPTS, cache)
        assert len(server.asked) == 5 + 3
    with judge_server() as server:
        assert len(verdicts(judge(server), PROMPTS, cache)) == len(PROMPTS)
        assert len(server.asked) == len(PROMPTS) - 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError("no space is left")], ids=["Ctrl-C", "a full disk"])
def test_who_is_interrupted_does_not_wait_for_what_is_under_way(
    error: BaseException, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(_judge, "_keep", interrupted)
    started = time.monotonic()
    slow = Answer(seconds=A_HANG)
    with judge_server(lambda number, asked: Answer() if number == 0 else slow) as server:
        with pytest.raises((KeyboardInterrupt, UsageError)):
            verdicts(judge(server), PROMPTS, cache)
        assert time.monotonic() - started < SOON
        assert len(server.asked) <= _judge.AT_ONCE + 1, "and asks nothing more"


# ---------------------------------------------------------------- odd answers


def completion(content: object, **more: object) -> str:
    return json.dumps(
        {"model": "j", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": content}, **more}]}
    )


def odd(answer: Answer, cache: Cache, prompts: Sequence[Prompt] = PROMPTS) -> list[Verdict]:
    """The verdicts of a judge that says this to the fourth question and is sound on the others."""
    with judge_server(lambda number, asked: answer if asked.user == PROMPTS[3].user else Answer()) as server:
        return verdicts(judge(server), prompts, cache)


NO_COMPLETION = "what its server sends is no chat completion"
ODD = {
    "empty": (Answer(body=""), NO_COMPLETION),
    "no JSON": (Answer(body="<html>Log in</html>"), NO_COMPLETION),
    "half of it": (Answer(body=completion("[[7]]")[:-3]), NO_COMPLETION),
    "a list": (Answer(body="[]"), NO_COMPLETION),
    "null": (Answer(body="null"), NO_COMPLETION),
    "a number": (Answer(body="7"), NO_COMPLETION),
    "a long number": (Answer(body=f'{{"choices": {"9" * 5000}}}'), NO_COMPLETION),
    "no choices": (Answer(body="{}"), NO_COMPLETION),
    "choices of nothing": (Answer(body='{"choices": []}'), NO_COMPLETION),
    "choices by name": (Answer(body='{"choices": {"0": {"message": {"content": "[[7]]"}}}}'), NO_COMPLETION),
    "a message of null": (Answer(body='{"choices": [{"message": null}]}'), NO_COMPLETION),
    "a message of text": (Answer(body='{"choices": [{"message": "[[7]]"}]}'), NO_COMPLETION),
    "a number for content": (Answer(body=completion(7)), NO_COMPLETION),
    "an object for content": (Answer(body=completion({"text": "[[7]]"})), NO_COMPLETION),
    "parts that are none": (Answer(body=completion(["[[7]]"])), NO_COMPLETION),
    "nested too deep": (Answer(body="[" * 200_000), NO_COMPLETION),
    "an object nested too deep": (Answer(body='{"choices":' * 50_000), NO_COMPLETION),
    "half a surrogate pair": (Answer(body=completion("[[7]] \ud83d")), NO_COMPLETION),
    "another encoding": (Answer(body=completion("[[7]]"), headers={"Content-Encoding": "gzip"}), ""),
    "null for content": (Answer(body=completion(None)), "it gave no text (finish reason stop)"),
    "thought too long": (Answer(body=completion(None, finish_reason="length")), "it gave no text (finish reason length)"),
    "an odd reason": (Answer(body=completion("", finish_reason=["a\nb"])), "it gave no text"),
    "no content": (Answer(body='{"choices": [{"message": {"reasoning_content": "[[7]]"}}]}'), "it gave no text"),
    "blanks": (Answer(body=completion(" \n")), "it gave no text (finish reason stop)"),
    "only thoughts": (Answer(body=completion("<think>[[7]] perhaps")), "it gave no text (finish reason stop)"),
    "no parts": (Answer(body=completion([])), "it gave no text (finish reason stop)"),
    "parts without text": (
        Answer(body=completion([{"type": "thinking", "thinking": []}])),
        "it gave no text (finish reason stop)",
    ),
    "400": (
        Answer(status=400, body='{"error": {"code": "context_length_exceeded", "message": "read /home/me/secret"}}'),
        "its server does not take the question (HTTP 400, context_length_exceeded)",
    ),
    "413": (Answer(status=413, body="[" * 100_000), "its server does not take the question (HTTP 413)"),
    "418": (Answer(status=418, body='{"error": {"code": "a b"}}'), "its server does not take the question (HTTP 418)"),
    "302": (Answer(status=302, body="", headers={"Location": "/"}), "its server does not take the question (HTTP 302)"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_answer_is_an_absent_verdict_and_is_asked_again_when_the_judge_is_mended(what: str, cache: Cache):
    answer, reason = ODD[what]
    found = odd(answer, cache)
    assert found[3].absent == reason
    assert (found[3].text == "") == bool(reason)
    assert [v.text for i, v in enumerate(found) if i != 3] == [Answer().text] * 11
    json.dumps([v.text for v in found]).encode()
    with judge_server() as mended:
        assert verdicts(judge(mended), PROMPTS, cache)[3].text
        assert len(mended.asked) == bool(reason), "the odd one alone"


def test_what_parts_say_counts(cache: Cache):
    parts = [{"type": "thinking", "thinking": "[[3]]"}, {"type": "text", "text": "Well: "}, {"type": "text", "text": "[[7]]"}]
    assert odd(Answer(body=completion(parts)), cache)[3] == Verdict("Well: [[7]]", "j")


@pytest.mark.parametrize(
    ("model", "named"),
    [(None, "gpt-4"), (7, "gpt-4"), (["j"], "gpt-4"), ("", "gpt-4"), ("a\x1b[31m\nb", "a[31mb"), ("x" * 5000, "x" * 200)],
    ids=str,
)
def test_an_odd_name_of_a_model_harms_nobody(model: object, named: str, cache: Cache):
    body = json.dumps({"model": model, "choices": [{"message": {"content": "[[7]]"}}]})
    assert odd(Answer(body=body), cache)[3] == Verdict("[[7]]", named)


def test_a_judge_that_says_nothing_of_use_is_given_up_with_the_first_reason(cache: Cache):
    many = [Prompt("", f"Grade {n}.") for n in range(200)]
    with judge_server(lambda number, asked: Answer(body=completion(None))) as server:
        with pytest.raises(
            Unavailable, match=r"^the judge openai:gpt-4 gave no verdict: it gave no text \(finish reason stop\)$"
        ):
            verdicts(judge(server), many, cache)
        assert len(server.asked) < _judge.ODD_IN_A_ROW + _judge.AT_ONCE
        with pytest.raises(Unavailable):
            verdicts(judge(server), many[:1], cache)


def test_one_odd_answer_among_kept_verdicts_is_absent(cache: Cache):
    odd(Answer(), cache, [*PROMPTS[:3], *PROMPTS[4:]])
    assert [bool(v.absent) for v in odd(Answer(body=completion(None)), cache)] == [i == 3 for i in range(12)]


def test_an_empty_verdict_that_an_earlier_version_kept_is_asked_again(cache: Cache):
    """The same entry as those versions wrote, by its key and its file."""
    messages = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Grade answer 0."}]
    key = {"judge": "openai:gpt-4", "messages": messages, "repetition": 0, "max_tokens": 2048}

    def write(folder: Path) -> None:
        (folder / "verdict.json").write_text('{"text": "", "model": "gpt-4"}')

    cache.get("verdicts", key, write)
    for _ in range(2):
        with judge_server() as server:
            assert verdicts(judge(server), PROMPTS[:1], cache)[0].text == Answer().text
    assert not server.asked, "kept the second time"


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1e400", float("inf")),
        ("9" * 5000, float("inf")),
        ("-5", 0),
        ("nan", 0),
        ("", 0),
        ("soon", 0),
        ("Mon, 99 Xyz 2024 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0),
        ("Mon, 01 Jan 2024 00:00:00 +" + "9" * 30, 0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("\x00", 0),
        ("(" * 5000, 0),
        ("é", 0),
        (None, 0),
    ],
    ids=lambda v: str(v)[:20],
)
def test_whatever_retry_after_says_a_pause_comes_of_it(told: str | None, seconds: float):
    assert _judge._pause(told) == seconds
    assert 0 <= min(max(1.0, _judge._pause(told)), _judge.LONGEST_PAUSE) <= 300


@pytest.mark.parametrize(
    ("url", "sent"),
    [("https://host/v1", True), ("http://127.0.0.1:1/v1", True), ("http://host:8000/v1", False), (Judge.url, True)],
)
def test_the_key_is_not_sent_where_others_could_read_it(url: str, sent: bool, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    headers: list[dict[str, str]] = []

    def exchange(url: str, seconds: float, most: int, content: bytes, told: dict[str, str], line: Line) -> Reply:
        headers.append(told)
        return Reply(401, {}, b"")

    monkeypatch.setattr(_judge, "exchange", exchange)
    said = "refuses the key in OPENAI_API_KEY" if sent else "none is sent over http:// to another machine: use https://"
    with pytest.raises(UsageError, match=said):
        verdicts(Judge("openai", "gpt-4", url), PROMPTS[:1], cache)
    assert [told.get("Authorization") for told in headers] == [f"Bearer {KEY}" if sent else None]


# ---------------------------------------------------------------- who it is


def test_a_judge_is_named_without_paths(tmp_path: Path):
    assert Judge("openai", "gpt-4").name == "openai:gpt-4"
    assert Judge("openai", "/models/llama").name == "openai:llama"
    assert Judge("vllm", "org/model").name == "vllm:org/model"
    (tmp_path / "judge").mkdir()
    assert Judge("vllm", str(tmp_path / "judge")).name == "vllm:judge"


def test_a_server_that_names_its_model_by_a_path_does_not_bring_it_into_the_record(cache: Cache):
    body = '{"model": "/home/me/models/llama", "choices": [{"message": {"content": "[[3]]"}}]}'
    with judge_server(lambda number, asked: Answer(body=body)) as server:
        assert verdicts(judge(server), PROMPTS[:1], cache) == [Verdict("[[3]]", "llama")]


def test_a_local_judge_is_told_apart_by_its_weights(nano: Nano):
    one, other = (_judge.identity(Judge("vllm", str(nano.folder(seed)))) for seed in (0, 1))
    assert one["judge"] == "vllm:nano-0"
    assert one["weights"] != other["weights"]
    assert str(nano.root) not in json.dumps(one)


def test_a_judge_that_certainly_cannot_be_asked_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--judge vllm:some/model needs vLLM, which is not installed here: pip install vllm"):
        _judge.check(Judge("vllm", "some/model"))
    _judge.check(Judge("openai", "gpt-4"))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="--judge openai:gpt-4 needs a key in the environment variable OPENAI_API_KEY"):
        _judge.check(Judge("openai", "gpt-4"))
    _judge.check(Judge("openai", "gpt-4", "http://localhost:8000/v1"))


# ---------------------------------------------------------------- vLLM


def test_a_vllm_that_does_not_come_up_is_given_up(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any):
    """A `vllm` that leaves with an error stands in for one without the memory it needs."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text("raise SystemExit('no memory')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(Unavailable, match=r"vLLM did not come up with the judge vllm:some/model$"):
        verdicts(Judge("vllm", "some/model"), PROMPTS[:1], cache)
    assert "vLLM's last words:\nno memory" in caplog.text


def test_a_server_of_a_local_model_runs_as_long_as_it_is_asked(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A `vllm` of a few lines: the words it is started with, the health it reports, its end."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(
        "import json, os, pathlib, sys\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).write_text(json.dumps([os.getpid(), *sys.argv[1:]]))\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/health' else 404)\n"
        "        self.end_headers()\n"
        "    def do_POST(self):\n"
        "        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))\n"
        "        assert 'Authorization' not in self.headers\n"
        "        assert not {'OPENAI_API_KEY', 'VLLM_API_KEY'} & {*os.environ}\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "        content = None if asked['messages'][-1]['content'].endswith('2.') else '[[4]]'\n"
        "        told = {'model': asked['model'], 'choices': [{'message': {'content': content}}]}\n"
        "        self.wfile.write(json.dumps(told).encode())\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Handler).serve_forever()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(_judge_server, "_memory", lambda: [])
    monkeypatch.setenv("VLLM_API_KEY", "another")
    monkeypatch.setattr("harness.models.sources.pinned", lambda name, revision: COMMIT)
    found = verdicts(Judge("vllm", "some/model"), PROMPTS[:3], cache)
    assert found == [*[Verdict("[[4]]", "vllm:some/model")] * 2, Verdict("", "vllm:some/model", "it gave no text")]
    process, *words = json.loads((tmp_path / "started").read_text())
    assert words[words.index("--model") + 1] == "some/model"
    assert words[words.index("--revision") + 1] == words[words.index("--tokenizer-revision") + 1] == COMMIT
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
