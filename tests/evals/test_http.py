"""One request over real sockets: it ends in time whatever is sent, reads no more than is wanted, and goes to one address."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest

from evals._http import BrokenOff, Reply, TooLate, TooLong, Unreachable, exchange
from tests.clock import A_HANG, SOON
from tests.judge_server import Answer, Script, deaf_address, judge_server, raw_server, sends

SECONDS = 0.4
"""For servers that go on for ever, or for hours."""
MOST = 1000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def post(url: str, seconds: float = SECONDS) -> Reply:
    return exchange(f"{url}/chat/completions", seconds, MOST, b"{}", {"Authorization": "Bearer sk-secret"})


def trickles(*parts: bytes) -> Script:
    return sends(*parts, again=b"1", pause=0.05)


ENDLESS = {
    "status": trickles(b"HTTP/1.1 200 "),
    "header": trickles(OK + b"X-A: "),
    "headers": sends(OK, again=b"X-A: 1\r\n", pause=0.02),
    "early hints": sends(again=b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
    "body": trickles(OK + b"Content-Length: 900\r\n\r\n"),
    "body without a length": trickles(OK + b"\r\n"),
    "chunks": sends(CHUNKED, again=b"1\r\n1\r\n", pause=0.05),
    "size of a chunk": trickles(CHUNKED),
    "trailers": sends(CHUNKED + b"0\r\n", again=b"X-A: 1\r\n", pause=0.01),
    "nothing": lambda connection, closed: closed.wait(A_HANG),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_server_that_goes_on_for_ever_is_left_when_the_time_is_up(what: str):
    with raw_server(ENDLESS[what]) as url:
        started = time.monotonic()
        with pytest.raises((TooLate, BrokenOff)) as ended:
            post(url)
        assert time.monotonic() - started < SOON
    assert ended.type is TooLate or what in ("headers", "size of a chunk", "early hints"), "the library bounds these itself"


def test_a_handshake_that_goes_on_for_ever_is_left_when_the_time_is_up():
    """A TLS server that sends the beginning of a long message, a byte at a time."""
    with raw_server(sends(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", again=b"\x03", pause=0.05)) as url:
        started = time.monotonic()
        with pytest.raises(TooLate):
            post(url.replace("http:", "https:"))
        assert time.monotonic() - started < SOON


def test_addresses_that_say_nothing_are_left_when_the_time_of_them_all_is_up(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        place = full.getsockname()
        for waiting in (first, second):  # no more are taken: whoever comes next hears nothing
            waiting.setblocking(False)
            waiting.connect_ex(place)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)] * int(3 * SOON / SECONDS)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        started = time.monotonic()
        with pytest.raises(TooLate):
            post("http://somewhere.invalid")
        assert time.monotonic() - started < SOON


def test_a_proxy_that_goes_on_for_ever_is_left_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch):
    with raw_server(trickles(b"HTTP/1.1 200 ")) as url:
        monkeypatch.setenv("https_proxy", url.removesuffix("/v1"))
        started = time.monotonic()
        with pytest.raises(TooLate):
            post("https://somewhere.invalid")
        assert time.monotonic() - started < SOON


def test_a_quick_answer_is_whole_and_leaves_no_thread_behind():
    with judge_server(lambda number, asked: Answer(body="x" * MOST, headers={"Retry-After": "3"})) as server:
        before = threading.active_count()
        for _ in range(5):
            reply = post(server.url, seconds=A_HANG)
        assert (reply.status, reply.headers.get("retry-after"), len(reply.body)) == (200, "3", MOST)
        until = time.monotonic() + A_HANG  # the server's own threads end a little later than its answers
        while threading.active_count() > before + 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert threading.active_count() <= before + 1


TOO_LONG = {
    "said": sends(OK + b"Content-Length: 10000000000\r\n\r\n", again=b"1" * 1000),
    "unsaid": sends(OK + b"\r\n", again=b"1" * 1000),
    "chunks": sends(CHUNKED, again=b"100\r\n" + b"1" * 256 + b"\r\n"),
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_no_more_is_read_than_is_wanted(what: str):
    with raw_server(TOO_LONG[what]) as url, pytest.raises(TooLong):
        post(url, seconds=A_HANG)


def test_what_is_compressed_is_not_unpacked():
    packed = gzip.compress(b"0" * 500_000, compresslevel=9)
    assert len(packed) < MOST
    header = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    with raw_server(sends(OK + header, packed)) as url:
        assert post(url, seconds=A_HANG).body == packed


def reset(connection: socket.socket, closed: threading.Event) -> None:
    connection.recv(2**20)
    connection.sendall(OK + b"Content-Length: 100\r\n\r\nhalf")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN = {
    "no answer": sends(),
    "no HTTP": sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half a status": sends(b"HTTP/1.1 2"),
    "no number": sends(b"HTTP/1.1 two OK\r\n\r\n"),
    "a chunk without a size": sends(CHUNKED + b"size\r\n"),
    "half a chunk": sends(CHUNKED + b"5\r\n12"),
    "a header without end": sends(OK + b"X-A: " + b"1" * 70_000 + b"\r\n\r\n"),
    "reset": reset,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_connection_that_breaks_off_is_said_to_have(what: str):
    with raw_server(BROKEN[what]) as url, pytest.raises(BrokenOff):
        post(url, seconds=A_HANG)


@pytest.mark.parametrize("error", [ConnectionResetError, ConnectionAbortedError, BrokenPipeError])
def test_so_is_one_that_breaks_off_before_all_was_sent(error: type[OSError], monkeypatch: pytest.MonkeyPatch):
    def breaks(*_: object) -> None:
        raise error

    monkeypatch.setattr("http.client.HTTPConnection.send", breaks)
    with raw_server(sends()) as url, pytest.raises(BrokenOff):
        post(url, seconds=A_HANG)


@pytest.mark.parametrize("length", [b"-5", b"many", b"2", b"9" * 30], ids=str)
def test_a_length_that_is_not_right_ends_in_an_answer_or_an_error_of_ours(length: bytes):
    with raw_server(sends(OK + b"Content-Length: " + length + b"\r\n\r\nabcd")) as url, suppress(BrokenOff):
        assert post(url, seconds=A_HANG).body in (b"abcd", b"ab")


def test_nobody_at_the_address():
    with deaf_address() as url, pytest.raises(Unreachable):
        post(url, seconds=A_HANG)
    with pytest.raises(Unreachable):
        exchange("ftp://localhost/x", A_HANG, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int):
    with judge_server() as other:
        answer = Answer(status=status, body="", headers={"Location": f"{other.url}/chat/completions"})
        with judge_server(lambda number, asked: answer) as server:
            assert post(server.url, seconds=A_HANG).status == status
    assert not other.asked


def test_every_status_is_an_answer():
    for status in (204, 400, 401, 407, 418, 429, 500, 599, 999):
        with raw_server(sends(b"HTTP/1.1 %d Odd\r\nContent-Length: 0\r\n\r\n" % status)) as url:
            assert post(url, seconds=A_HANG).status == status


def test_an_error_holds_nothing_of_what_was_sent():
    with raw_server(sends(b"HTTP/1.1 nonsense\r\n")) as url, pytest.raises(BrokenOff) as ended:
        post(url, seconds=A_HANG)
    assert "sk-secret" not in repr(ended.value)
    assert ended.value.__cause__ is None
