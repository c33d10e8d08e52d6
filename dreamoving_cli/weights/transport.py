"""Bytes over HTTP: one file, continued where it stops, hashed while it comes; what a server's answer means.

huggingface_hub gives the address, the token and the client (with the user's proxy and certificates). The
bytes are received here: its own download checks a file by its size only and names a part by what the server
says of it. Ours is known by its sha256, hashed as it comes, and continued from whichever source has the rest.
Not here: which address (hub.py), what becomes of the file (fetch.py).
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreamoving_cli.weights.store import sync, writing

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)  # pauses between tries that brought nothing; then the source is given up
MAX_PAUSE_S = 60.0  # however long a server asks to wait
LATER = {408, 425, 429, 500, 502, 503, 504}
GATED = {401, 403}
OnBytes = Callable[[int], None]  # called with the number of bytes that are here

_log = logging.getLogger(__name__)


class SourceError(Exception):
    """One source did not deliver; the next is tried."""


class GatedAnswerError(SourceError):
    """The source wants to know who asks."""


class UnreachableError(SourceError):
    """No connection to the source's host."""


class _TryAgainError(Exception):
    """Nothing is wrong that a little time could not mend."""

    def __init__(self, reason: str, pause_s: float | None = None, *, connected: bool = True) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.connected = connected


class Part:
    """The bytes of a file that are here, and their hash.

    checked: whether the whole can be checked in the end. If not, only the same answer is continued, never
    what an earlier process or another source began.
    """

    def __init__(self, path: Path, checked: bool = True) -> None:
        self.path = path
        self.checked = checked
        self.validator = ""  # the server's name for what it sends; if that changes, a Range brings all of it
        with writing():
            if not checked:
                path.unlink(missing_ok=True)
            self._file = path.open("a+b")
        self._file.seek(0)
        self._digest = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.seek(0, 2)

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        with writing():
            self._file.flush()
            sync(self._file.fileno())
            self._file.close()
        if not self.size:
            self.path.unlink()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        with writing():
            self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        with writing():
            self._file.truncate(0)
        self._digest, self.size = hashlib.sha256(), 0


def receive(part: Part, url: str, headers: Mapping[str, str], size: int | None, on_bytes: OnBytes) -> None:
    """Complete `part` from `url`; what is in it is not transferred again where the server can do that."""
    part.validator = ""
    if (size is not None and part.size > size) or not part.checked:
        part.restart()
    idle = 0
    while size is None or part.size != size:
        before = part.size
        try:
            return _stream(part, url, headers, size, on_bytes)
        except _TryAgainError as again:
            idle = 0 if part.size > before else idle + 1
            if not again.connected and idle > 1:  # most often there is no network: one more try, not four
                raise UnreachableError(f"{url}: {again}") from again
            if idle > len(BACKOFF_S):
                raise SourceError(f"{url}: {again}, {idle} times") from again
            pause_s = again.pause_s if again.pause_s is not None else BACKOFF_S[max(idle - 1, 0)]
            _log.info("%s: %s; trying again in %.0f s", url, again, pause_s)
            time.sleep(min(pause_s, MAX_PAUSE_S))
    return None


def _stream(part: Part, url: str, headers: Mapping[str, str], size: int | None, on_bytes: OnBytes) -> None:
    """One request."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # the client's own: httpx's in hub 1, httpx2's in hub 2

    if not (part.checked or part.validator):
        part.restart()
    asked = {**headers, "Accept-Encoding": "identity"}
    if part.size:
        asked["Range"] = f"bytes={part.size}-"
        asked |= {"If-Range": part.validator} if part.validator else {}
    try:
        timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", url, headers=asked, timeout=timeout_s, follow_redirects=True
        ) as answer:
            _check_status(answer, url, part)
            total = _begin(answer, url, part, size)
            for chunk in answer.iter_bytes():  # as it comes: what is collected is lost with the line
                part.write(chunk)
                if size is not None and part.size > size:
                    raise SourceError(f"{url} sends more than the {size} bytes of the file")
                on_bytes(part.size)
    except HTTPError as error:
        kind = type(error).__name__
        reason = f"the connection failed ({str(error) or kind})"
        raise _TryAgainError(reason, connected=not kind.startswith("Connect")) from error
    if total is not None and part.size < total:
        raise _TryAgainError(f"the connection closed after {part.size} of {total} bytes")


def _check_status(answer: Any, url: str, part: Part) -> None:
    """Raise what an answer without the file means."""
    status = answer.status_code
    if status in LATER:
        raise _TryAgainError(f"the server answers {status}", _asked_pause(answer.headers.get("Retry-After")))
    if status == 416 and part.size:  # what is here is longer than the file there
        part.restart()
        raise _TryAgainError("the server has fewer bytes than are here", 0.0)
    if status >= 400:
        raise refusal(status, url)


def refusal(status: int, url: str) -> SourceError:
    """What a server means that will not give a file."""
    if status in GATED:
        return GatedAnswerError(
            f"{url} answers {status}: not without an account that may read it (or it is gone)"
        )
    if status in (404, 410):
        return SourceError(f"{url} answers {status}: the file was moved or removed")
    return SourceError(f"{url} answers {status}")


def _asked_pause(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None


def _begin(answer: Any, url: str, part: Part, size: int | None) -> int | None:
    """The length of the file there; a part that the server does not continue starts anew."""
    length = answer.headers.get("Content-Length")
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    total = int(length) if length and not encoded else None
    if part.size and answer.status_code == 206:
        span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] == str(part.size):
            total = int(whole) if whole.isdigit() else size
        else:
            part.restart()
            raise _TryAgainError("the server continues at another byte than asked for", 0.0)
    elif part.size:
        part.restart()
    named = str(answer.headers.get("ETag", ""))
    part.validator = "" if named.startswith("W/") else named
    if size is not None and total is not None and total != size:
        raise SourceError(f"{url} has {total} bytes, the file has {size}")
    return total if total is not None else size
