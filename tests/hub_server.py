"""A stand-in for the hub: a real HTTP server on this machine that can also do what servers do wrong."""

import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dreamoving_cli.weights import lock as locks
from dreamoving_cli.weights import transport
from dreamoving_cli.weights.fetch import OFFLINE
from dreamoving_cli.weights.lock import Entry, License, Lock

COMMIT = "c" * 40
TIMEOUT_S = 1


def content(seed: int, size: int = 300_000) -> bytes:
    """Bytes that compress to nothing smaller and repeat nowhere."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str
    token: str


Trouble = Callable[["Handler", bytes, int], None]  # (handler, content, first byte asked for) -> answers


@dataclass
class Hub:
    """What the server has, does, and was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # path -> content
    troubles: dict[str, list[Trouble]] = field(
        default_factory=dict
    )  # path -> what to do, one a GET; then all is well
    asked: list[Asked] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # path -> bytes of content
    url: str = ""

    def add(self, repo: str, path: str, data: bytes, *troubles: Trouble, rev: str = COMMIT) -> str:
        """A file at a revision; its address on the server."""
        address = f"/{repo}/resolve/{rev}/{path}"
        self.files[address] = data
        self.troubles[address] = list(troubles)
        return address

    def gets(self, path: str) -> list[Asked]:
        return [each for each in self.asked if each.method == "GET" and each.path == path]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._note()
        data = self.hub.files.get(self.path)
        if data is None:
            return self.say(404)
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{sha256(data)}"',
        }
        return self.say(200, headers | {"Content-Length": str(len(data))})

    def do_GET(self) -> None:
        self._note()
        troubles = self.hub.troubles.get(self.path, [])
        data = self.hub.files.get(self.path)
        if data is not None and self.headers.get("If-Range", f'"{sha256(data)}"') != f'"{sha256(data)}"':
            del self.headers["Range"]  # the file has changed since: all of it
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if troubles:
            troubles.pop(0)(self, data or b"", start)
        elif data is None:
            self.say(404)
        else:
            fine(self, data, start)

    def _note(self) -> None:
        headers = self.headers
        told = Asked(self.command, self.path, headers.get("Range", ""), headers.get("Authorization", ""))
        self.hub.asked.append(told)

    def say(self, status: int, headers: dict[str, str] | None = None) -> None:
        """An answer without content."""
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def give(self, data: bytes) -> None:
        """A piece of the content, counted before it is there to be read; whoever hangs up gets no more."""
        before = self.hub.sent.get(self.path, 0)
        self.hub.sent[self.path] = before + len(data)
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.hub.sent[self.path] = before


def begin(handler: Handler, data: bytes, start: int) -> None:
    """The head of an answer with the content from `start`."""
    if start >= len(data) > 0:
        handler.say(416, {"Content-Range": f"bytes */{len(data)}"})
        return
    headers = {"Content-Length": str(len(data) - start), "ETag": f'"{sha256(data)}"'}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    handler.say(206 if start else 200, headers)


def fine(handler: Handler, data: bytes, start: int) -> None:
    """As it should be."""
    begin(handler, data, start)
    if start < len(data):
        handler.give(data[start:])


def answer(status: int, **headers: str) -> Trouble:
    """This status and no file."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data, start: handler.say(status, named)


def cut(after: int) -> Trouble:
    """The connection closes after so many bytes of this answer."""

    def trouble(handler: Handler, data: bytes, start: int) -> None:
        begin(handler, data, start)
        handler.give(data[start : start + after])
        handler.close_connection = True

    return trouble


def cut_unseen(after: int) -> Trouble:
    """As `cut`, from a server that never said how long the file is."""

    def trouble(handler: Handler, data: bytes, start: int) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.give(data[:after])
        handler.close_connection = True

    return trouble


def without_range(handler: Handler, data: bytes, start: int) -> None:
    """All of it, whatever part was asked for."""
    fine(handler, data, 0)


def another_range(handler: Handler, data: bytes, start: int) -> None:
    """A part, but not the one that was asked for."""
    fine(handler, data, max(start - 1000, 1))


def other_bytes(handler: Handler, data: bytes, start: int) -> None:
    """As many bytes, of another file."""
    fine(handler, data[::-1], start)


def stalling(after: int) -> Trouble:
    """So many bytes, then nothing for longer than a reader waits."""

    def trouble(handler: Handler, data: bytes, start: int) -> None:
        begin(handler, data, start)
        handler.give(data[start : start + after])
        time.sleep(TIMEOUT_S * 1.3)
        handler.close_connection = True

    return trouble


def slow(piece: int, pause_s: float) -> Trouble:
    """A thin line."""

    def trouble(handler: Handler, data: bytes, start: int) -> None:
        begin(handler, data, start)
        for at in range(start, len(data), piece):
            if handler.close_connection and at > start:
                return
            handler.give(data[at : at + piece])
            time.sleep(pause_s)

    return trouble


def elsewhere(url: str) -> Trouble:
    """A redirect, as the hub sends readers to its content network."""
    return answer(302, Location=url)


class Server(ThreadingHTTPServer):
    """Clients that hang up are what is tested here, not errors."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Hub]:
    """A server on a free port, for as long as the block lasts."""
    hub = Hub()
    server = Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, an empty weight cache and hub cache, no patience, and a lock (see `write_lock`)."""
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", TIMEOUT_S)
    monkeypatch.setattr(transport, "BACKOFF_S", (0.01, 0.01, 0.01, 0.01))
    for name in (
        *OFFLINE,
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(locks.LOCK_VARIABLE, str(tmp_path / "models.lock"))
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
    close_session()


LICENSES = (License("free", "Free"), License("research", "Research only", accept=True))


def file(weight_id: str, data: bytes | None, *sources: dict[str, str], **more: Any) -> Entry:
    """An entry for these bytes; None: unlocked."""
    known = {"sha256": sha256(data), "size": len(data)} if data is not None else {}
    fields = {"kind": "other", "format": "bin", "license": "free", "groups": ("generate",), "default": True}
    return Entry(id=weight_id, sources=sources, **(fields | known | more))


def at_hub(path: str, repo: str = "team/repo", **more: str) -> dict[str, str]:
    """A hub source."""
    return {"hf": repo, "rev": COMMIT, "path": path, **more}


def write_lock(*entries: Entry) -> Lock:
    """Make these entries the lock in use."""
    lock = Lock({entry.id: entry for entry in entries}, {value.id: value for value in LICENSES})
    locks.lock_path().write_text(locks.lock_text(lock), encoding="utf-8")
    return locks.read_lock()
