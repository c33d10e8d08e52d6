"""Files from and for other machines, and the store looked after."""

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from dreamoving_cli import weights
from dreamoving_cli.errors import InputError, MismatchError, OutputError, WeightsError
from dreamoving_cli.weights import hub as hub_api
from dreamoving_cli.weights import overlay, store, upkeep
from dreamoving_cli.weights.fetch import Rules
from dreamoving_cli.weights.lock import Lock
from dreamoving_cli.weights.refresh import refresh
from dreamoving_cli.weights.transport import SourceError
from dreamoving_cli.weights.travel import export, import_from
from tests import hub_server as server
from tests.hub_server import Hub, at_hub, content, file, hub, sha256, write_lock

__all__ = ["hub"]  # a fixture

ONE, TWO, EVA = content(1, 5000), content(2, 6000), content(3, 7000)


@pytest.fixture
def lock(hub: Hub) -> Lock:
    """Two files and an unlocked one, all of which the hub has."""
    for name, data in (("one.bin", ONE), ("two.bin", TWO), ("eva.pth", EVA)):
        hub.add("team/repo", name, data)
    return write_lock(
        file("one", ONE, at_hub("one.bin")),
        file("two", TWO, at_hub("two.bin"), groups=("pose",)),
        file("eva", None, at_hub("eva.pth"), groups=("caption",)),
    )


def move_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine: an empty cache and no network."""
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("DREAMOVING_OFFLINE", "1")


# ---- out and in again


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_what_is_exported_is_imported_elsewhere(
    lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    weights.weight_path("eva", Rules(allow_unlocked=frozenset(["eva"])))
    for each in ("one", "two"):
        weights.weight_path(each)
    known = list(weights.known().entries.values())
    assert export(known, tmp_path / name) == ["one", "two", "eva"]
    assert not list(tmp_path.glob(".*"))

    move_house(tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="--allow-unlocked eva"):
        import_from([tmp_path / name], weights.known())
    result = import_from([tmp_path / name], weights.known(), ["eva"])
    assert {*result.taken, *result.present} == {"one", "two", "eva"}
    assert not result.unknown
    assert weights.weight_path("two").read_bytes() == TWO
    assert weights.weight_path("eva").read_bytes() == EVA
    assert set(import_from([tmp_path / name], weights.known()).present) == {"one", "two", "eva"}


def test_an_export_is_whole_or_not_there(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="dreamoving models pull one"):
        export([lock.find("one")], tmp_path / "out.tar")
    weights.weight_path("one")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        export([lock.find("one")], tmp_path / "taken")
    monkeypatch.setattr(
        tarfile.TarFile, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OutputError, match="the disk is full"):
        export([lock.find("one")], tmp_path / "out.tar")
    assert not list(tmp_path.glob("*out*"))


def test_known_files_are_found_among_others(lock: Lock, tmp_path: Path) -> None:
    folder = tmp_path / "comfy" / "models"
    folder.mkdir(parents=True)
    (folder / "renamed.safetensors").write_bytes(ONE)
    (folder / "same-size.bin").write_bytes(TWO[::-1])
    (folder / "other.bin").write_bytes(b"something else")
    result = import_from([tmp_path / "comfy"], lock)
    assert result.taken == ["one"]
    assert result.unknown == [str(folder / "same-size.bin")]
    assert (folder / "renamed.safetensors").exists()
    (folder / "renamed.safetensors").write_bytes(b"overwritten later")
    assert weights.weight_path("one").read_bytes() == ONE  # the store has bytes of its own


def test_a_file_of_unknown_size_is_found_by_its_name(hub: Hub, tmp_path: Path) -> None:
    lock = write_lock(file("one", ONE, at_hub("folder/one.bin"), size=None))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.bin").write_bytes(ONE)
    assert import_from([tmp_path / "in"], lock).taken == ["one"]


def test_members_of_zips_and_wheels_are_found(lock: Lock, tmp_path: Path) -> None:
    for name, data in (("a.zip", ONE), ("b.whl", TWO)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("deep/inside.bin", data)
            archive.writestr("readme.txt", "hello")
    assert import_from([tmp_path / "a.zip", tmp_path / "b.whl"], lock).taken == ["one", "two"]


def test_a_file_given_by_name_must_be_a_known_one(lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(MismatchError, match=sha256(b"x")):
        import_from([tmp_path / "x.bin"], lock)
    with pytest.raises(InputError, match="is not there"):
        import_from([tmp_path / "y.bin"], lock)
    (tmp_path / "bad.zip").write_bytes(b"x")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    for name in ("bad.zip", "bad.tar"):
        with pytest.raises(InputError, match=r"damaged|no zip"):
            import_from([tmp_path / name], lock)


def test_the_user_can_say_which_file_an_unlocked_one_is(lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "eva.pth").write_bytes(EVA)
    assert import_from([tmp_path / "eva.pth"], lock, ["eva"]).taken == ["eva"]
    assert weights.weight_path("eva").read_bytes() == EVA
    assert weights.entry("eva").observed
    (tmp_path / "one.bin").write_bytes(ONE[::-1])
    with pytest.raises(MismatchError):  # a locked one stays what the lock says
        import_from([tmp_path / "one.bin"], weights.known(), ["one"])


# ---- upkeep


def test_verify_tells_and_puts_aside(lock: Lock) -> None:
    entries = list(lock.entries.values())
    assert upkeep.verify(entries, full=False) == {"one": "missing", "two": "missing", "eva": "unlocked"}
    path = weights.weight_path("one")
    weights.weight_path("two")
    assert upkeep.verify(entries[:2], full=True) == {"one": "ok", "two": "ok"}
    path.write_bytes(ONE[::-1])
    store.blob_path(sha256(TWO)).write_bytes(b"short")
    assert upkeep.verify(entries[:2], full=False) == {"one": "mismatch", "two": "mismatch"}
    assert sorted(each.name for each in (store.weight_cache() / "quarantine").iterdir()) == ["one", "two"]
    assert upkeep.verify(entries[:2], full=False) == {"one": "missing", "two": "missing"}


def test_only_a_full_check_sees_what_the_disk_changed_behind_our_back(lock: Lock) -> None:
    path = weights.weight_path("one")
    stat = path.stat()
    path.write_bytes(ONE[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert upkeep.verify([lock.find("one")], full=False) == {"one": "ok"}
    assert upkeep.verify([lock.find("one")], full=True) == {"one": "mismatch"}


def test_du_and_prune_agree(lock: Lock, tmp_path: Path) -> None:
    for each in ("one", "two"):
        weights.weight_path(each)
    store.part_path("begun").write_bytes(b"x" * 10)
    store.quarantine(store.part_path("begun"), "wrong")
    store.part_path("begun").write_bytes(b"x" * 20)
    store.blob_path("f" * 64).write_bytes(b"x" * 40)
    assert upkeep.usage(lock) == {"generate": 5000, "pose": 6000, "total": 11000, "prunable": 70}

    with store.locked("begun"):  # a process works on it
        assert "half fetched" not in {item.why for item in upkeep.debris(lock)}
    items = upkeep.debris(lock, [lock.find("two")])
    assert [(item.size_bytes, item.why) for item in sorted(items, key=lambda item: item.size_bytes)] == [
        (10, "in quarantine"), (20, "half fetched"), (40, "in no lock"), (6000, "two"),
    ]  # fmt: skip
    assert store.is_here(lock.find("two"))  # only said
    assert upkeep.remove(items) == 6070
    assert upkeep.debris(lock) == []
    assert [store.is_here(lock.find(name)) for name in ("one", "two")] == [True, False]


def test_pruning_removes_no_file_that_is_not_ours(lock: Lock, tmp_path: Path) -> None:
    mine = tmp_path / "mine.bin"
    mine.write_bytes(ONE)
    path = store.blob_path(sha256(ONE))
    path.parent.mkdir(parents=True)
    path.symlink_to(mine)
    items = upkeep.debris(lock, [lock.find("one")])
    assert [item.size_bytes for item in items] == [0]  # a link frees nothing
    upkeep.remove(items)
    assert mine.read_bytes() == ONE
    assert not path.exists()


# ---- the lock against its sources


def test_refresh_fills_in_and_reports_and_downloads_nothing(hub: Hub) -> None:
    unpinned = {"hf": "team/repo", "path": "new.bin"}
    lock = write_lock(
        file("full", ONE, at_hub("one.bin")),
        file("new", None, unpinned),
        file("unsized", TWO, at_hub("two.bin"), size=None),
        file("changed", b"the locked one", at_hub("changed.bin")),
        file("gone", b"g", at_hub("gone.bin")),
        file("by-url", b"u", {"url": hub.url + "/web/resolve/x/u.bin"}, size=None),
    )
    hub.add("team/repo", "one.bin", ONE)
    hub.add("team/repo", "new.bin", EVA, rev="main")
    hub.add("team/repo", "two.bin", TWO)
    hub.add("team/repo", "changed.bin", b"another one!!!")
    hub.add("web", "u.bin", b"u", rev="x")
    fresh, findings = refresh(lock, list(lock.entries.values()))
    assert {each.method for each in hub.asked} == {"HEAD"}
    assert [(each.id, each.what, each.detail.split(":")[0].split(" ")[0]) for each in findings] == [
        ("new", "new", "size"), ("new", "new", "sha256"), ("new", "new", "rev"), ("unsized", "new", "size"),
        ("changed", "changed", "sha256"), ("gone", "failed", "http"), ("by-url", "new", "size"),
    ]  # fmt: skip
    assert fresh.find("new").sha256 == sha256(EVA)
    assert fresh.find("new").sources[0] == {**unpinned, "rev": server.COMMIT}
    assert fresh.find("unsized").size == len(TWO)
    assert fresh.find("changed") == lock.find("changed")
    assert fresh.find("full") == lock.find("full")


def test_asking_for_what_is_not_there_says_so(hub: Hub) -> None:
    with pytest.raises(SourceError, match="404"):
        hub_api.ask(at_hub("nothing"))
    with pytest.raises(SourceError, match="cannot be reached"):
        hub_api.ask({"url": "http://127.0.0.1:9/x"})


def test_the_overlay_travels_only_for_what_is_exported(lock: Lock, tmp_path: Path) -> None:
    weights.weight_path("eva", Rules(allow_unlocked=frozenset(["eva"])))
    weights.weight_path("one")
    overlay.accept("research")
    export([weights.entry("one")], tmp_path / "out")
    assert overlay.read_overlay(tmp_path / "out" / "overlay.toml") == overlay.Overlay({}, frozenset())
