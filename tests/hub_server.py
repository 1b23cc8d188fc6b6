"""A hub of a few repositories on this machine, speaking what `huggingface_hub` asks: commits, trees, files.

A repository is a list of commits, each a folder; the last one is `main`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What it holds and what it was asked."""

    url: str = ""
    repositories: dict[str, list[Path]] = field(default_factory=dict)
    """`model` or `dataset`, a slash, the hub id → its commits' folders."""
    asked: list[str] = field(default_factory=list)
    """Paths, in order."""

    def push(self, repository: str, folder: Path, kind: str = "model") -> str:
        """Add a commit; returns its name."""
        self.repositories.setdefault(f"{kind}/{repository}", []).append(folder)
        return name_of(folder)


def name_of(folder: Path) -> str:
    """A commit's forty digits, from the place of its folder."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *args: object) -> None: ...

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(path)
            words = path.split("/")
            api = words[0] == "api"
            words = words[1:] if api else words
            kind = "dataset" if words[0] == "datasets" else "model"
            words = words[1:] if words[0] in ("models", "datasets") else words
            commits = hub.repositories.get(f"{kind}/{'/'.join(words[:2])}", [])
            if not commits:
                return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, body)
            what, revision, rest = (words[2], words[3], words[4:]) if len(words) > 3 else ("revision", "main", [])
            by_name = {"main": commits[-1], **{name_of(folder): folder for folder in commits}}
            if revision not in by_name:
                return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}, body)
            folder = by_name[revision]
            told = {"X-Repo-Commit": name_of(folder)}
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            if api and what == "revision":
                siblings = [{"rfilename": f.relative_to(folder).as_posix()} for f in files]
                about = {"id": "/".join(words[:2]), "sha": name_of(folder), "siblings": siblings, "tags": []}
                return self._send(200, about, told, body)
            if api and what == "tree":
                listed = [
                    {"type": "file", "path": f.relative_to(folder).as_posix(), "size": f.stat().st_size, "oid": _etag(f)}
                    for f in files
                ]
                return self._send(200, listed, told, body)
            file = folder.joinpath(*rest)
            if what != "resolve" or not file.is_file():
                return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **told}, body)
            return self._send(200, file.read_bytes(), {"ETag": f'"{_etag(file)}"', **told}, body)

        def _send(self, status: int, what: object, headers: dict[str, str], body: bool) -> None:
            content = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
