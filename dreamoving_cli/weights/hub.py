"""The Hugging Face hub, through huggingface_hub: addresses, tokens, what its cache holds already.

$HF_ENDPOINT, $HF_TOKEN, $HF_HOME and $HF_HUB_CACHE mean here what they mean there. Not here: the bytes
(transport.py).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreamoving_cli import __version__
from dreamoving_cli.weights.lock import Entry, Source
from dreamoving_cli.weights.transport import UnreachableError, refusal

HASH_LENGTH = 64  # hex digits: the hub names large files by their sha256, small ones by git's shorter hash


@dataclass(frozen=True)
class Facts:
    """What a source says of a file without sending it."""

    size: int | None
    sha256: str  # empty where the source does not know
    revision: str


def address(source: Source) -> str:
    """The URL of a hub or url source."""
    if "url" in source:
        return source["url"]
    from huggingface_hub import hf_hub_url

    return hf_hub_url(
        source["hf"],
        source["path"],
        repo_type=source.get("type"),
        revision=source.get("rev"),
        endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
    )


def headers(source: Source) -> dict[str, str]:
    """Who asks: the hub gets the user's token, nobody else does."""
    if "hf" not in source:
        return {"user-agent": f"dreamoving/{__version__}"}
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="dreamoving", library_version=__version__)


def page(source: Source) -> str:
    """The page where a person reads the license of a hub repository and asks for access."""
    kind = {"space": "spaces/", "dataset": "datasets/"}.get(source.get("type", ""), "")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return f"{endpoint}/{kind}{source['hf']}"


def cached(entry: Entry) -> Path | None:
    """A file in the user's hub cache that may be this one; its hash is not checked here."""
    for source in entry.sources:
        if "hf" in source and "member" not in source:
            for path in _cached_at(source, entry):
                if entry.size in (None, path.stat().st_size):
                    return path
    return None


def _cached_at(source: Source, entry: Entry) -> Iterator[Path]:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    kind = source.get("type", "model")
    blob = Path(
        constants.HF_HUB_CACHE, repo_folder_name(repo_id=source["hf"], repo_type=kind), "blobs", entry.sha256
    )
    if entry.sha256 and blob.is_file():
        yield blob
    found = try_to_load_from_cache(source["hf"], source["path"], revision=source.get("rev"), repo_type=kind)
    if isinstance(found, str):
        yield Path(found)


def ask(source: Source) -> Facts:
    """What the hub or a web server says of a file; SourceError where it says nothing."""
    return _ask_hub(source) if "hf" in source else _ask_server(source)


def _ask_hub(source: Source) -> Facts:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    url = address(source)
    try:
        told = get_hf_file_metadata(url, headers=headers(source), endpoint=os.environ.get("HF_ENDPOINT"))
    except HfHubHTTPError as error:
        raise refusal(error.response.status_code, url) from error
    except HTTPError as error:
        raise UnreachableError(f"{url} cannot be reached ({error})") from error
    etag = told.etag or ""
    return Facts(told.size, etag if len(etag) == HASH_LENGTH else "", told.commit_hash or "")


def _ask_server(source: Source) -> Facts:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    url, timeout_s = address(source), constants.HF_HUB_ETAG_TIMEOUT
    asked: Mapping[str, str] = {**headers(source), "Accept-Encoding": "identity"}
    try:
        answer = get_session().head(url, headers=asked, timeout=timeout_s, follow_redirects=True)
    except HTTPError as error:
        raise UnreachableError(f"{url} cannot be reached ({error})") from error
    if answer.status_code >= 400:
        raise refusal(answer.status_code, url)
    length = answer.headers.get("Content-Length")
    return Facts(int(length) if length else None, "", "")
