"""Who grades answers, as the command line says it: a judge's name and, where it is no service of everybody's, its address.

An address comes from the command line alone, never out of a file: it says where a model's answers go, and the user's key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from harness.core.config import JSON
from harness.core.documents import whole_number
from harness.core.errors import UsageError, cut
from harness.core.options import Judge

MOST_REPETITIONS = 100
"""How often all may be answered and judged; papers take 5."""
_LONGEST_SHOWN = 80
_ADDRESS = re.compile(
    r"https?://(\[(?P<ipv6>[0-9a-f:.]+)\]|[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9.])?)(:(?P<port>[0-9]{1,5}))?(/[!-~]*)?",
    re.IGNORECASE,
)


def judge_of(name: str, url: str = "", repetitions: int | str = 1) -> Judge | None:
    """The judge of `--judge`, `--judge-url` and `--judge-repetitions`; None where none is named.

    Raises:
        UsageError: for a name or an address that is none, an address without a judge, or repetitions out of bounds.
    """
    times = whole_number(str(repetitions))
    if times is None or not 1 <= times <= MOST_REPETITIONS:
        raise UsageError(f"--judge-repetitions {cut(str(repetitions))} is no whole number from 1 to {MOST_REPETITIONS}.")
    kind, _, model = name.partition(":")
    if not name:
        if url:
            raise UsageError("--judge-url says where a judge is, and --judge which: add --judge openai:MODEL.")
        return None
    if kind not in ("openai", "vllm") or not model:
        raise UsageError(f"--judge {cut(name)} is no judge: write openai:MODEL or vllm:MODEL.")
    if model.startswith("-"):  # vLLM would read it as one of its flags
        raise UsageError(f"--judge {cut(name)} is no judge: a model's name does not begin with '-'.")
    if kind == "vllm" and url:
        raise UsageError(
            "--judge vllm:MODEL is served here, it has no --judge-url; a server of your own is --judge openai:MODEL."
        )
    return Judge("vllm" if kind == "vllm" else "openai", model, address(url) if url else Judge.url, times)


def address(url: str) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        UsageError: for one that is none, or holds more than an address; a password in it is not told.
    """
    if "@" in url or "?" in url or "#" in url:
        raise UsageError(
            "--judge-url holds more than an address ('@', '?' or '#'). Write http://HOST:PORT/v1 or https://HOST/v1, and put "
            "the key into the environment variable OPENAI_API_KEY."
        )
    if not _is_address(url):
        raise UsageError(f"--judge-url {cut(url, _LONGEST_SHOWN)} is no address: write http://HOST:PORT/v1 or https://HOST/v1.")
    return url.rstrip("/")


def _is_address(url: str) -> bool:
    parts = _ADDRESS.fullmatch(url)
    if not parts or not 1 <= int(parts["port"] or 1) <= 65_535:
        return False
    try:
        return not parts["ipv6"] or bool(ip_address(parts["ipv6"]))
    except ValueError:
        return False


def on_this_machine(url: str) -> bool:
    """Whether an address is this machine's own, so that what is sent there crosses no network."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def keeps_secrets(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: it is encrypted, or does not leave this machine."""
    return urlsplit(url).scheme == "https" or on_this_machine(url)


def recorded_judge(evaluator_inputs: Iterable[JSON]) -> tuple[str, int]:
    """A recorded run's judge and how often all was judged; an empty name where there was none.

    Args:
        evaluator_inputs: what the numbers of the run's evaluators rest on, one item for each of them.

    Raises:
        UsageError: for a record that says something else there.
    """
    for inputs in evaluator_inputs:
        name, repetitions = (inputs.get("judge"), inputs.get("repetitions", 1)) if isinstance(inputs, dict) else (None, 1)
        if name is None:
            continue
        if not isinstance(name, str) or type(repetitions) is not int:
            raise UsageError("the record's judge is not written as this harness writes it.")
        return name, repetitions
    return "", 1
