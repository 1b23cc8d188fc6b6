"""Whether the hub can be asked at all, so that a machine without a network hears it at once and not after five retries."""

from __future__ import annotations

import logging
import os
import socket
from functools import cache
from urllib.parse import urlsplit

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
