"""Whether the hub can be asked at all, and which commit of a repository is meant.

A machine without a network hears it at once and not after five retries. A branch such as `main` moves, so its commit is
looked up once, before anything is named, and everything is loaded from exactly that commit.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["model", "dataset"]
Commits = Mapping[tuple[Kind, str, str], str | None]
"""(kind, repository, branch) → the commit it stands for, or None where nobody knows."""
SECONDS_TO_ANSWER = 10.0
"""How long the hub may take to name a commit, before what its local cache knows is taken."""

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@cache
def unreachable() -> str | None:
    """Why the hub cannot be reached, or None if it may be: switched off, or its name not known here.

    Behind a proxy nothing is tried, since only the proxy knows.
    """
    from huggingface_hub import constants

    # Its retries are told by us, in one sentence.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in _PROXIES):
        return None
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return f"there is no network here: the name {address.hostname} is not known"
    return None


_commits: dict[tuple[Kind, str, str], str | None] = {}
"""What `commit` has answered. Looked up once, so that all of one command has the same commit, however long it takes."""


def commit(repository: str, revision: str | None = None, kind: Kind = "model") -> str | None:
    """The commit that a branch or tag of a repository stands for: as the hub says, else as its local cache remembers.

    Args:
        repository: a hub id.
        revision: a branch, a tag, or a commit already; `main` if not given.
        kind: what sort of repository.

    Returns:
        Forty hexadecimal digits, or None where nobody knows: nothing of it is in the local cache then.
    """
    branch = revision or "main"
    if re.fullmatch("[0-9a-f]{40}", branch):
        return branch
    key = (kind, repository, branch)
    if key not in _commits:
        _commits[key] = _asked(repository, branch, kind) or _remembered(repository, branch, kind)
    return _commits[key]


def pinned(name: str, revision: str | None = None) -> str | None:
    """The commit that is loaded of a checkpoint or tokenizer on the hub, the same all through a command; None for a folder."""
    return None if Path(name).is_dir() else commit(name, revision)


def known_commits() -> Commits:
    """What has been looked up, to be handed to another process of the same command."""
    return dict(_commits)


def take_commits(known: Commits) -> None:
    """Keep to what another process of the same command has looked up."""
    _commits.update(known)


def _asked(repository: str, branch: str, kind: Kind) -> str | None:
    """The hub's answer, written into the local cache, where what is fetched by its commit leaves no trace of the branch."""
    if unreachable():
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the HTTP library's own error, which a broken connection raises; which library that is has changed.
    broken: tuple[type[Exception], ...] = (HfHubHTTPError.__mro__[1], OSError, ValueError)
    try:
        told = HfApi().repo_info(repository, repo_type=kind, revision=branch, timeout=SECONDS_TO_ANSWER).sha
    except broken as error:
        logging.getLogger(__name__).debug("the hub did not name a commit of %s: %s", repository, error)
        return None
    if told:
        with suppress(OSError):  # a cache that others keep; then there is nothing to remember
            reference = _reference(repository, branch, kind)
            reference.parent.mkdir(parents=True, exist_ok=True)
            part = reference.with_name(f".{reference.name}.{os.getpid()}")
            part.write_text(told, encoding="utf-8")
            part.replace(reference)
    return told


def _remembered(repository: str, branch: str, kind: Kind) -> str | None:
    with suppress(OSError, ValueError):
        return _reference(repository, branch, kind).read_text(encoding="utf-8").strip() or None
    return None


def _reference(repository: str, branch: str, kind: Kind) -> Path:
    """Where the hub's local cache keeps which commit a branch stood for."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}", "refs", branch)
