"""A judge as the command line names it: what is an address, where a key may go, what no file can ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.fields import read
from harness.core.judging import address, judge_of, keeps_secrets, recorded_judge
from harness.core.options import Judge
from harness.running.request import SweepRequest, request_file


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v1",
        "https://HOST.example:8443/v1",
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "http://gpu-node_3:65535/v1",
    ],
)
def test_an_address_stays_as_it_is_but_for_a_slash_at_its_end(url: str):
    assert address(url) == address(f"{url}/") == url


@pytest.mark.parametrize(
    "url",
    [
        "host:8000",
        "//host/v1",
        "file:///etc/passwd",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://[::x]/v1",
        "http://[::1]x/v1",
        "http://host:port/v1",
        "http://host:0/v1",
        "http://host:65536/v1",
        "http://host:-1/v1",
        "http://ho st/v1",
        "http://host/v 1",
        "http://ho\nst/v1",
        "http://höst/v1",
        "http://localhost%2eelsewhere/v1",
        "http://here\\there/v1",
        f"http://{'x' * 20_000}/v1",
    ],
    ids=lambda url: url[:30],
)
def test_what_is_no_address_is_refused_in_one_short_sentence(url: str):
    with pytest.raises(UsageError, match="is no address: write http://HOST:PORT/v1 or https://HOST/v1") as refused:
        address(url)
    assert len(str(refused.value)) < 250
    assert ("characters left out" in str(refused.value)) == (len(url) > 80)


@pytest.mark.parametrize("url", ["https://me:hunter2@host/v1", "https://host/v1?api-key=hunter2", "https://host/v1#hunter2"])
def test_a_password_in_an_address_is_refused_and_not_told(url: str):
    with pytest.raises(UsageError, match=r"holds more than an address .* OPENAI_API_KEY") as refused:
        address(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        (Judge.url, True),
        ("https://host/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.8.9.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://host/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.elsewhere/v1", False),
        ("http://127.0.0.1.elsewhere/v1", False),
    ],
)
def test_secrets_are_kept_where_nobody_on_the_way_can_read(url: str, kept: bool):
    assert keeps_secrets(url) is kept


@pytest.mark.parametrize("repetitions", [-1, 0, 101, 10**9, "x", "٣", "2,3", "True"])
def test_repetitions_have_a_bound(repetitions: int | str):
    for name in ("openai:gpt-4", ""):
        with pytest.raises(UsageError, match=rf"--judge-repetitions {repetitions} is no whole number from 1 to 100\.$"):
            judge_of(name, repetitions=repetitions)


@pytest.mark.parametrize("name", ["vllm:--config", "openai:-x"])
def test_a_model_that_looks_like_a_flag_is_refused(name: str):
    with pytest.raises(UsageError, match="does not begin with '-'"):
        judge_of(name)


def test_a_record_names_its_judge():
    assert recorded_judge([{"data": "x"}, {"judge": "openai:gpt-4", "repetitions": 2}]) == ("openai:gpt-4", 2)
    assert recorded_judge([]) == recorded_judge([{"data": "x"}, "odd"]) == ("", 1)


@pytest.mark.parametrize("told", [{"judge": 7}, {"judge": ["openai:x"]}, {"judge": "openai:x", "repetitions": "2"}])
def test_a_record_with_an_odd_judge_is_refused(told: dict[str, Any]):
    with pytest.raises(UsageError, match="the record's judge is not written as this harness writes it"):
        recorded_judge([told])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trust_remote_code: true", "trust_remote_code is not taken from a file, for it runs code .* type --trust-remote-code"),
        ("trust_remote_code: false", "trust_remote_code is not taken from a file"),
        ("judge_url: https://host/v1", "judge_url is not taken from a file, for it says where .* type --judge-url"),
    ],
)
def test_a_sweeps_file_can_ask_neither_for_remote_code_nor_for_another_server(tmp_path: Path, line: str, said: str):
    (tmp_path / "sweep.yaml").write_text(f"method: ga\nbench: tofu10\njudge: openai:gpt-4\n{line}\n")
    with pytest.raises(UsageError, match=said):
        read(SweepRequest, request_file(SweepRequest, tmp_path / "sweep.yaml"))
