"""One HTTP request with an end: so many seconds in all, so many bytes, and to no other address than the one given.

A name's lookup is the system's, and its time is not counted.

The standard library bounds each wait for bytes, not all of them together, so that a server that sends a byte a minute is waited
for for ever, and it reads as much as is sent. Here a connection is cut when its time is up, and no more is read than is wanted.
Redirects are not followed, so that what is sent (a key among it) goes nowhere else. Nothing is unpacked: an answer that is
compressed, although nobody asked for that, is taken as the bytes it is.
"""

from __future__ import annotations

import http.client
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any, NamedTuple
from urllib.error import URLError

from harness.core.judging import on_this_machine


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    """Such as 200; the redirecting ones, too."""
    headers: Mapping[str, str]
    """By name, in whatever case."""
    body: bytes
    """As sent."""


class TooLate(Exception):
    """The time was up before all was there."""


class TooLong(Exception):
    """More bytes were sent than are wanted."""


class Unreachable(Exception):
    """No connection came about."""


class BrokenOff(Exception):
    """The connection ended before all was there, or what came is no HTTP."""


def exchange(
    url: str,
    seconds: float,
    most_bytes: int,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    line: Line | None = None,
) -> Reply:
    """Send a request and read the answer: POST where there is content, else GET.

    The user's proxies are asked for every address but this machine's own.

    Args:
        url: where to.
        seconds: for all of it but the lookup of a name: connecting, sending, waiting, reading.
        most_bytes: of the answer's body.
        content: what is sent.
        headers: what is said beside it.
        line: which can cut it before its time; it is then too late.

    Raises:
        TooLate, TooLong, Unreachable, BrokenOff: as they say; none of them holds a word of what was sent.
    """
    request = urllib.request.Request(url, content, dict(headers or {}))
    with (line or Line()).limit(seconds) as limit:
        try:
            with _opener(limit, proxies=not on_this_machine(url)).open(request, timeout=seconds) as response:
                reply = Reply(response.status, response.headers, response.read(most_bytes + 1))
        except URLError as error:
            late = limit.passed or isinstance(error.reason, TimeoutError)
            ended = isinstance(error.reason, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
            raise (TooLate if late else BrokenOff if ended else Unreachable) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = limit.passed or isinstance(error, TimeoutError)
            raise (TooLate if late else BrokenOff) from None
    if limit.passed:
        raise TooLate
    if len(reply.body) > most_bytes:
        raise TooLong
    return reply


class Line:
    """The requests that somebody has under way."""

    def __init__(self) -> None:
        self._limits: set[_Limit] = set()
        self._is_cut = False

    def cut(self) -> None:
        """End them all, and those to come: nobody waits for an answer any more."""
        self._is_cut = True
        for limit in list(self._limits):
            limit.cut()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[_Limit]:
        """One that may take so long."""
        with _Limit(seconds) as limit:
            self._limits.add(limit)
            if self._is_cut:
                limit.cut()
            try:
                yield limit
            finally:
                self._limits.discard(limit)


class _Limit:
    """Cuts a connection when its time is up, however slowly bytes still come in."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        """Whether the time is up."""
        self._connection: socket.socket | None = None
        self._end = time.monotonic() + seconds
        self._timer = Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> _Limit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        if self._connection:
            self._connection.close()

    def left(self) -> float:
        """The seconds that are left.

        Raises:
            TimeoutError: where there are none.
        """
        if self.passed or (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def watch(self, connection: socket.socket) -> None:
        """From now on it is this one."""
        if self._connection:
            self._connection.close()
        self._connection = connection.dup()  # a descriptor of our own: encryption takes the other one away
        if self.passed:
            self.cut()

    def cut(self) -> None:
        """The time is up."""
        self.passed = True
        if self._connection:
            with suppress(OSError):  # it has ended by itself
                self._connection.shutdown(socket.SHUT_RDWR)


class _Plain(http.client.HTTPConnection):
    limit: _Limit

    def connect(self) -> None:
        self._create_connection = self._reached
        super().connect()

    def _reached(self, place: tuple[str, int], timeout: float, _: object = None) -> socket.socket:
        """A connection to the first of a name's addresses that answers, as the library makes it, but all in one time.

        What comes after it (a proxy's answer, a handshake) is within the limit too.
        """
        last: OSError = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(*place, 0, socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                self.limit.watch(connection)
                connection.settimeout(self.limit.left())
                connection.connect(address)
            except OSError as error:
                connection.close()
                last = error
            else:
                connection.settimeout(timeout)
                return connection
        raise last


class _Encrypted(http.client.HTTPSConnection, _Plain):
    """As `_Plain`, with a handshake."""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Takes every status for an answer: no redirect is followed, no error raised."""

    def http_response(self, request: Any, response: Any) -> Any:
        """The response, whatever it says."""
        return response

    https_response = http_response


def _opener(limit: _Limit, proxies: bool) -> urllib.request.OpenerDirector:
    def connection(kind: type[_Plain]) -> Callable[..., _Plain]:
        def connect(*args: Any, **options: Any) -> _Plain:
            made = kind(*args, **options)
            made.limit = limit
            return made

        return connect

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(connection(_Plain), request)

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(connection(_Encrypted), request)

    opener = urllib.request.OpenerDirector()
    proxy, other = urllib.request.ProxyHandler(None if proxies else {}), urllib.request.UnknownHandler()
    for handler in (proxy, Plain(), Encrypted(), _AsItIs(), other):
        opener.add_handler(handler)
    return opener
