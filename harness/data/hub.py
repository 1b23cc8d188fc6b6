"""Whether the hub can be asked at all, which commit of a repository is meant, and its small files.

A machine without a network hears it at once and not after five retries. A branch such as `main` moves, so its commit is
looked up once, before anything is named, and everything is loaded from exactly that commit.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness.core.errors import UsageError

log = logging.getLogger(__name__)

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

    Raises:
        UsageError: where the hub can be reached, gives no answer, and nothing is remembered. Nobody could say afterwards what
            had been loaded.
    """
    branch = revision or "main"
    if re.fullmatch("[0-9a-f]{40}", branch):
        return branch
    key = (kind, repository, branch)
    if key not in _commits:
        remembered = _remembered(repository, branch, kind)
        _commits[key] = _commit_on_hub(repository, branch, kind, remembered) or remembered
    return _commits[key]


def pinned(name: str, revision: str | None = None) -> str | None:
    """The commit that is loaded of a checkpoint or tokenizer on the hub, the same all through a command; None for a folder.

    Where nobody knows the commit it is the revision as it was asked for, and never another one.
    """
    return None if Path(name).is_dir() else commit(name, revision) or revision


def file_of(name: str, file: str, revision: str | None = None) -> Path | None:
    """A small file of a checkpoint, fetched where it is not here yet; None where there is none to be had.

    The local cache remembers of a commit which files it has not, so that the hub is asked for each of them once.

    Args:
        name: a folder, or a hub id.
        file: its name in there.
        revision: of the hub id.

    Raises:
        UsageError: where the hub can be reached and gives no answer.
    """
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    at = pinned(name, revision)
    try:
        if (known := try_to_load_from_cache(name, file, revision=at)) is not None:
            return Path(known) if isinstance(known, str) else None
        return None if unreachable() else Path(hf_hub_download(name, file, revision=at))
    except LocalEntryNotFoundError as error:
        raise UsageError(f"the hub did not say whether {name} has a file {file}; try again. ({_short(error)})") from error
    except (HfHubHTTPError, OSError, ValueError):
        return None  # what is wrong with it is told when it is loaded


def files_of(name: str, revision: str | None = None) -> Sequence[str]:
    """The files at the top of a checkpoint on the hub; without a network those of it that are in the local cache.

    Raises:
        UsageError: where the hub can be reached and gives no answer.
    """
    from huggingface_hub import try_to_load_from_cache

    at = pinned(name, revision)
    if not unreachable():
        try:
            return _listed(name, at)
        except _broken() as error:
            if _unanswered(error):
                raise UsageError(f"the hub did not say which files {name} has; try again. ({_short(error)})") from error
    for file in ("config.json", "adapter_config.json"):
        if isinstance(cached := try_to_load_from_cache(name, file, revision=at), str):
            return [each.name for each in Path(cached).parent.iterdir()]
    return []


@cache
def _listed(name: str, revision: str | None) -> Sequence[str]:
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER).siblings
    return [each.rfilename for each in siblings or () if "/" not in each.rfilename]


def known_commits() -> Commits:
    """What has been looked up, to be handed to another process of the same command."""
    return dict(_commits)


def take_commits(known: Commits) -> None:
    """Keep to what another process of the same command has looked up."""
    _commits.update(known)


def _commit_on_hub(repository: str, branch: str, kind: Kind, remembered: str | None) -> str | None:
    """The hub's answer, written into the local cache, where what is fetched by its commit leaves no trace of the branch."""
    if unreachable():
        return None
    from huggingface_hub import HfApi

    try:
        sha = HfApi().repo_info(repository, repo_type=kind, revision=branch, timeout=SECONDS_TO_ANSWER).sha
    except _broken() as error:
        if not _unanswered(error):
            log.debug("the hub did not name a commit of %s: %s", repository, error)
            return None  # what is wrong with it is told when it is loaded
        if remembered is None:
            raise UsageError(
                f"the hub did not say which commit {branch!r} of {repository} is; try again. ({_short(error)})"
            ) from error
        log.warning(
            "the hub did not say which commit %r of %s is; taking %s, known from before", branch, repository, remembered
        )
        return None
    if sha:
        with suppress(OSError):  # a cache that others keep; then there is nothing to remember
            reference = _reference(repository, branch, kind)
            reference.parent.mkdir(parents=True, exist_ok=True)
            part = reference.with_name(f".{reference.name}.{os.getpid()}")
            part.write_text(sha, encoding="utf-8")
            part.replace(reference)
    return sha


def _broken() -> tuple[type[Exception], ...]:
    """What the hub's library raises of a request that came to nothing.

    Its error's first base is the HTTP library's own, which a broken connection raises; which library that is has changed.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1], OSError, ValueError


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unanswered(error: Exception) -> bool:
    """Whether the hub might answer another time: it was not reached, is busy, or broken."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return not isinstance(error, ValueError)  # no name that the hub could have


def _remembered(repository: str, branch: str, kind: Kind) -> str | None:
    with suppress(OSError, ValueError):
        return _reference(repository, branch, kind).read_text(encoding="utf-8").strip() or None
    return None


def _reference(repository: str, branch: str, kind: Kind) -> Path:
    """Where the hub's local cache keeps which commit a branch stood for."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}", "refs", branch)
