"""A small server that speaks the chat-completions protocol, for tests of judges: it answers as it is told, and remembers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server sends."""

    text: str = "Well done. Rating: [[7]]"
    """The verdict, sent as a chat completion."""
    status: int = 200
    body: str | None = None
    """Sent instead of a chat completion."""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Before anything is sent; cut short when the server is closed."""


@dataclass
class Asked:
    """One request that came."""

    path: str
    authorization: str | None
    body: dict[str, Any]

    @property
    def user(self) -> str:
        """The user's message."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class JudgeServer:
    """A server that runs; its address, and what it was asked."""

    url: str
    asked: list[Asked]


@contextmanager
def judge_server(answer: Callable[[int, Asked], Answer] = lambda number, asked: Answer()) -> Iterator[JudgeServer]:
    """Serve on a free port of this machine; `answer` gets the number of the request, from 0, and what it says."""
    asked: list[Asked] = []
    lock, closed = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                one = Asked(self.path, self.headers.get("Authorization"), json.loads(content))
                asked.append(one)
                told = answer(len(asked) - 1, one)
            closed.wait(told.seconds)
            body = told.body
            if body is None:
                message = {"role": "assistant", "content": told.text}
                body = json.dumps({"model": f"{one.body['model']}-0613", "choices": [{"index": 0, "message": message}]})
            try:
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())
            except OSError:
                pass  # who asked has given up

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        closed.set()
        server.shutdown()
        server.server_close()


@contextmanager
def deaf_address() -> Iterator[str]:
    """An address where nobody listens, nor can begin to meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


Script = Callable[[socket.socket, threading.Event], object]
"""What a server does with a connection; the event is set when it is to end."""


@contextmanager
def raw_server(script: Script) -> Iterator[str]:
    """A server that sends what it likes, HTTP or not; its address, up to `/v1`."""
    closed = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            script(connection, closed)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        closed.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def sends(*parts: bytes, again: bytes = b"", pause: float = 0.0) -> Script:
    """Reads the request, sends some bytes, then others again and again; the connection ends where there are none."""

    def script(connection: socket.socket, closed: threading.Event) -> None:
        connection.recv(2**20)
        for part in parts:
            connection.sendall(part)
        while again and not closed.wait(pause):
            connection.sendall(again)

    return script
