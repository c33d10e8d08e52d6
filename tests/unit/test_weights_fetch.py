"""Fetching from a real server that does what servers do wrong: nothing half-written, no wrong byte kept."""

import io
import resource
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dreamoving_cli import weights
from dreamoving_cli.errors import GatedError, MismatchError, OfflineError, OutputError, WeightsError
from dreamoving_cli.weights import overlay, store
from dreamoving_cli.weights import pull as pulling
from dreamoving_cli.weights.fetch import Rules
from dreamoving_cli.weights.lock import Entry
from dreamoving_cli.weights.pull import plan, pull
from tests import hub_server as server
from tests.hub_server import Hub, Trouble, at_hub, content, file, hub, sha256, write_lock

__all__ = ["hub"]  # a fixture

DATA = content(7)
NAME = "model.bin"


@pytest.fixture
def one(hub: Hub) -> str:
    """A lock with one file that the server has; its address there."""
    write_lock(file("one", DATA, at_hub(NAME)))
    return hub.add("team/repo", NAME, DATA)


def trouble(hub: Hub, address: str, *troubles: Trouble) -> None:
    hub.troubles[address] = list(troubles)


def assert_whole(hub: Hub) -> None:
    """The file is here and right, and nothing is left beside it."""
    assert weights.weight_path("one").read_bytes() == DATA
    assert_nothing_else()


def assert_nothing_else() -> None:
    """Every blob is what its name says; no part is left."""
    blobs = store.weight_cache() / "blobs" / "sha256"
    for path in blobs.iterdir() if blobs.is_dir() else ():
        assert sha256(path.read_bytes()) == path.name
    parts = store.weight_cache() / "parts"
    assert not (list(parts.iterdir()) if parts.is_dir() else ())


# ---- one source


def test_a_file_comes_once_with_the_token(hub: Hub, one: str) -> None:
    seen: list[tuple[str, int, int]] = []
    path = weights.weight_path("one", Rules(on_file=lambda *told: seen.append(told)))
    assert path == store.blob_path(sha256(DATA))
    assert path.read_bytes() == DATA
    assert seen[-1] == ("one", len(DATA), len(DATA))
    assert weights.weight_path("one") == path
    assert [(each.method, each.token) for each in hub.asked] == [("GET", "Bearer hf_secret")]
    assert_nothing_else()


@pytest.mark.parametrize(
    "troubles",
    [
        [server.cut(100_000)],
        [server.cut(100_000), server.cut(1), server.cut(50_000)],
        [server.cut(100_000), server.answer(503), server.answer(429, Retry_After="0")],
        [server.answer(500), server.answer(502), server.answer(504), server.answer(408)],
        [server.stalling(100_000)],
        [server.slow(50_000, 0.01)],
    ],
    ids=["truncated", "truncated-thrice", "then-503-429", "5xx-408", "stalled", "slow"],
)
def test_what_passes_is_waited_for_and_nothing_is_sent_twice(
    hub: Hub, one: str, troubles: list[Trouble]
) -> None:
    trouble(hub, one, *troubles)
    assert_whole(hub)
    assert hub.sent[one] == len(DATA)


def test_a_server_that_ignores_ranges_sends_all_again(hub: Hub, one: str) -> None:
    trouble(hub, one, server.cut(100_000), server.without_range)
    assert_whole(hub)
    assert hub.sent[one] == len(DATA) + 100_000
    assert hub.gets(one)[1].range == "bytes=100000-"


def test_a_server_that_sends_another_range_is_not_believed(hub: Hub, one: str) -> None:
    trouble(hub, one, server.cut(100_000), server.another_range)
    assert_whole(hub)
    assert hub.gets(one)[2].range == ""


def test_a_server_that_breaks_down_is_given_up_and_what_came_stays(hub: Hub, one: str) -> None:
    trouble(hub, one, server.cut(100_000), *[server.answer(503)] * 5)
    with pytest.raises(WeightsError, match="503"):
        weights.weight_path("one")
    assert store.part_path(sha256(DATA)).read_bytes() == DATA[:100_000]
    assert not store.blob_path(sha256(DATA)).exists()
    assert_whole(hub)
    assert hub.sent[one] == len(DATA)


def test_all_bytes_of_a_killed_fetch_are_not_asked_for_again(hub: Hub, one: str) -> None:
    store.part_path(sha256(DATA)).write_bytes(DATA)
    assert_whole(hub)
    assert hub.asked == []


@pytest.mark.parametrize("left", [DATA[:1000][::-1], DATA + b"more"], ids=["wrong", "too-long"])
def test_a_wrong_beginning_is_not_built_on(hub: Hub, one: str, left: bytes) -> None:
    store.part_path(sha256(DATA)).write_bytes(left)
    assert_whole(hub)


def test_an_unseen_end_of_a_file_of_unknown_size_is_no_file(hub: Hub, one: str) -> None:
    write_lock(file("one", DATA, at_hub(NAME), size=None))
    trouble(hub, one, server.cut_unseen(100_000))
    with pytest.raises(MismatchError, match="another file"):
        weights.weight_path("one")
    assert_whole(hub)


def test_an_unseen_end_of_a_file_of_known_size_is_mended(hub: Hub, one: str) -> None:
    trouble(hub, one, server.cut_unseen(100_000))
    assert_whole(hub)


def test_the_token_goes_to_the_hub_only(hub: Hub, one: str) -> None:
    with server.serving() as network:
        path = network.add("content", "x", DATA)
        there = network.url.replace("127.0.0.1", "localhost") + path
        trouble(hub, one, server.elsewhere(there))
        assert_whole(hub)
        assert [each.token for each in network.asked] == [""]
        write_lock(file("one", DATA, at_hub(NAME)), file("two", content(8), {"url": network.url + path}))
        network.files[path] = content(8)
        weights.weight_path("two")
        assert {each.token for each in network.asked} == {""}


# ---- refusals


@pytest.mark.parametrize(("status", "error", "said"), [
    (401, GatedError, r"401.*team/repo, accept its terms.*HF_TOKEN"),
    (403, GatedError, r"403.*HF_TOKEN"),
    (404, WeightsError, r"404: the file was moved or removed.*models import"),
    (410, WeightsError, r"410"),
    (418, WeightsError, r"418"),
])  # fmt: skip
def test_a_refusal_is_explained(
    hub: Hub, one: str, status: int, error: type[WeightsError], said: str
) -> None:
    trouble(hub, one, server.answer(status))
    with pytest.raises(error, match=said) as caught:
        weights.weight_path("one")
    assert caught.value.exit_code == {401: 8, 403: 8}.get(status, 4)
    assert len(hub.gets(one)) == 1  # no use in asking again
    assert_nothing_else()


def test_wrong_bytes_go_to_quarantine_and_the_next_source_is_tried(hub: Hub) -> None:
    write_lock(file("one", DATA, at_hub(NAME, "bad/repo"), at_hub(NAME)))
    hub.add("bad/repo", NAME, DATA, server.other_bytes)
    hub.add("team/repo", NAME, DATA)
    assert_whole(hub)
    assert (store.weight_cache() / "quarantine" / "one").read_bytes() == DATA[::-1]


def test_wrong_bytes_everywhere_are_a_mismatch(hub: Hub, one: str) -> None:
    trouble(hub, one, server.other_bytes)
    with pytest.raises(MismatchError, match="quarantine") as caught:
        weights.weight_path("one")
    assert caught.value.exit_code == 7
    assert_nothing_else()


@pytest.mark.parametrize("data", [DATA + b"more", DATA[:-1]], ids=["longer", "shorter"])
def test_a_file_of_another_size_is_not_received_at_all(hub: Hub, one: str, data: bytes) -> None:
    hub.files[one] = data
    with pytest.raises(WeightsError, match=rf"has {len(data)} bytes, the file has {len(DATA)}"):
        weights.weight_path("one")
    assert hub.sent.get(one, 0) < 300_000 + 5
    assert not store.blob_path(sha256(DATA)).exists()


@pytest.mark.parametrize("first", [server.answer(401), server.answer(404), server.answer(500), server.cut(9)])
def test_the_next_source_goes_on_where_the_first_stopped(hub: Hub, first: Trouble) -> None:
    write_lock(file("one", DATA, at_hub(NAME, "bad/repo"), at_hub(NAME)))
    hub.add("bad/repo", NAME, DATA, *[first, *[server.answer(500)] * 8])
    good = hub.add("team/repo", NAME, DATA)
    assert_whole(hub)
    assert hub.gets(good)[0].range in ("", "bytes=9-")


def test_a_host_that_does_not_answer_is_asked_once(hub: Hub) -> None:
    nowhere = "http://127.0.0.1:9"
    two = file("two", content(8), {"url": f"{nowhere}/b"}, at_hub("b"))
    lock = write_lock(file("one", DATA, {"url": f"{nowhere}/a"}, at_hub(NAME)), two)
    hub.add("team/repo", NAME, DATA)
    hub.add("team/repo", "b", content(8))
    rules = Rules()
    assert set(pull(list(lock.entries.values()), lock, rules)) == {"one", "two"}
    assert rules.unreachable == {"127.0.0.1:9"}


def test_offline_asks_nobody_and_names_all(hub: Hub, one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = write_lock(file("one", DATA, at_hub(NAME)), file("two", content(8), at_hub("two.bin")))
    for rules, said in ((Rules(offline=True), "--offline"), (Rules(), "HF_HUB_OFFLINE")):
        with pytest.raises(OfflineError, match=rf"'one', 'two' not here and {said}.*models import") as caught:
            pull(list(lock.entries.values()), lock, rules)
        assert f"300000 bytes  sha256 {sha256(DATA)}" in str(caught.value)
        assert caught.value.exit_code == 9
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.asked == []


# ---- unlocked


def test_an_unlocked_file_needs_its_flag_and_is_held_to_its_hash_from_then_on(hub: Hub) -> None:
    write_lock(file("eva", None, at_hub(NAME)))
    address = hub.add("team/repo", NAME, DATA)
    with pytest.raises(WeightsError, match="--allow-unlocked eva"):
        weights.weight_path("eva")
    assert hub.asked == []
    path = weights.weight_path("eva", Rules(allow_unlocked=frozenset(["eva"])))
    assert path == store.blob_path(sha256(DATA))
    assert overlay.read_overlay().observed["eva"].sha256 == sha256(DATA)
    assert weights.weight_path("eva") == path  # no flag any more

    store.remove(path.name)
    trouble(hub, address, server.other_bytes)
    with pytest.raises(MismatchError):
        weights.weight_path("eva")
    assert_nothing_else()


def test_no_unlocked_file_is_put_together_from_two(hub: Hub) -> None:
    write_lock(file("eva", None, at_hub(NAME, "bad/repo"), at_hub(NAME)))
    rules = Rules(allow_unlocked=frozenset(["eva"]))
    bad = hub.add("bad/repo", NAME, content(9), server.cut(1000), *[server.answer(500)] * 5)
    address = hub.add("team/repo", NAME, DATA, server.cut(100_000))
    store.part_path("unlocked-eva").write_bytes(b"from long ago")
    assert weights.weight_path("eva", rules).read_bytes() == DATA
    assert hub.gets(bad)[0].range == ""
    assert [each.range for each in hub.gets(address)] == ["", "bytes=100000-"]  # the same answer is continued
    assert_nothing_else()


def test_an_unlocked_file_that_changes_meanwhile_comes_anew(hub: Hub) -> None:
    write_lock(file("eva", None, at_hub(NAME)))
    address = hub.add("team/repo", NAME, content(9))

    def changing(handler: server.Handler, data: bytes, start: int) -> None:
        server.cut(100_000)(handler, data, start)
        hub.files[address] = DATA

    trouble(hub, address, changing)
    assert weights.weight_path("eva", Rules(allow_unlocked=frozenset(["eva"]))).read_bytes() == DATA


# ---- archives


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"pack/{name}.onnx", data)
    return buffer.getvalue()


def test_one_fetch_of_an_archive_brings_all_its_locked_members(hub: Hub) -> None:
    address = hub.add("team/repo", "pack.zip", zipped(one=DATA, two=content(8), readme=b"hello"))
    source = {"url": hub.url + address}
    write_lock(
        file("one", DATA, {**source, "member": "*one.onnx"}),
        file("two", content(8), {**source, "member": "*two.onnx"}),
    )
    trouble(hub, address, server.cut(1000))
    assert_whole(hub)
    assert weights.weight_path("two").read_bytes() == content(8)
    assert hub.sent[address] == len(hub.files[address])
    assert_nothing_else()


@pytest.mark.parametrize("data", [b"no archive", zipped(one=DATA[::-1]), zipped(other=DATA)])
def test_an_archive_without_the_right_member_is_refused(hub: Hub, data: bytes) -> None:
    write_lock(file("one", DATA, at_hub("pack.zip", member="*one.onnx")))
    hub.add("team/repo", "pack.zip", data)
    with pytest.raises(WeightsError, match=r"archive|holds no file"):
        weights.weight_path("one")
    assert_nothing_else()


def test_a_member_of_unknown_hash_needs_the_flag_too(hub: Hub) -> None:
    write_lock(file("net", None, at_hub("pack.zip", member="*.onnx")))
    hub.add("team/repo", "pack.zip", zipped(one=DATA))
    with pytest.raises(WeightsError, match="--allow-unlocked net"):
        weights.weight_path("net")
    assert weights.weight_path("net", Rules(allow_unlocked=frozenset(["net"]))).read_bytes() == DATA
    assert_nothing_else()


# ---- the hub's own cache


def hub_cache(repo: str, path: str, data: bytes, *, large: bool) -> Path:
    """A file as huggingface_hub keeps it: large ones named by sha256, small ones by git's hash."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE, "models--" + repo.replace("/", "--"))
    blob = root / "blobs" / (sha256(data) if large else "a" * 40)
    snapshot = root / "snapshots" / server.COMMIT / path
    for each in (blob, snapshot):
        each.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    snapshot.symlink_to(blob)
    return blob


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("offline", [True, False])
def test_a_file_of_the_hubs_cache_is_adopted_without_a_copy(
    hub: Hub, one: str, large: bool, offline: bool
) -> None:
    blob = hub_cache("team/repo", NAME, DATA, large=large)
    lock = weights.known()
    assert plan(lock.entries.values(), lock, Rules(offline=offline)).steps[0].state == "cached"
    path = pull(list(lock.entries.values()), lock, Rules(offline=offline))["one"]
    assert path.read_bytes() == DATA
    assert path.samefile(blob)
    assert hub.asked == []
    store.remove(path.name)
    assert blob.read_bytes() == DATA  # not ours to remove


def test_a_wrong_file_of_the_hubs_cache_is_left_alone_and_fetched(hub: Hub, one: str) -> None:
    blob = hub_cache("team/repo", NAME, DATA[::-1], large=True)
    assert blob.name != sha256(DATA)
    blob.rename(blob.with_name(sha256(DATA)))
    assert_whole(hub)
    assert blob.with_name(sha256(DATA)).read_bytes() == DATA[::-1]


# ---- many files and the disk


def three(hub: Hub) -> list[Entry]:
    entries = [file(f"n{k}", content(k), at_hub(f"{k}.bin")) for k in range(3)]
    for k in range(3):
        hub.add("team/repo", f"{k}.bin", content(k))
    return list(write_lock(*entries).entries.values())


def test_one_file_that_fails_does_not_stop_the_others(hub: Hub) -> None:
    entries = three(hub)
    del hub.files[f"/team/repo/resolve/{server.COMMIT}/1.bin"]
    with pytest.raises(WeightsError, match="'n1' could not be fetched"):
        pull(entries, weights.known(), Rules())
    assert [store.is_here(entry) for entry in entries] == [True, False, True]


def test_several_files_come_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = three(hub)
    together = threading.Barrier(3, timeout=20)  # breaks unless all three are being fetched
    bring = pulling.bring
    monkeypatch.setattr(pulling, "bring", lambda *given: (together.wait(), bring(*given))[1])
    told: list[tuple[str, int, int]] = []
    paths = pull(entries, weights.known(), Rules(at_once=3, on_file=lambda *seen: told.append(seen)))
    assert list(paths) == ["n0", "n1", "n2"]
    assert [path.read_bytes() for path in paths.values()] == [content(k) for k in range(3)]
    assert {seen for seen in told if seen[1] == seen[2]} == {(name, 300_000, 300_000) for name in paths}
    assert_nothing_else()


def test_an_error_that_is_no_file_s_own_stops_what_has_not_begun() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise OutputError("the disk is full", "Free some.")
        done.append(item)

    with pytest.raises(OutputError):
        pulling.at_once(work, range(9), 1)
    assert done == [0, 1]
    pulling.at_once(done.append, range(9), 4)
    assert sorted(done[2:]) == list(range(9))


def test_the_disk_is_checked_for_all_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = three(hub)
    unsized = [*entries[:2], replace(entries[2], size=None)]  # then the source is asked
    monkeypatch.setattr(store, "free_bytes", lambda: 64 * 2**20 + 850_000)
    with pytest.raises(OutputError, match=r"900,000 bytes are to come.*free") as caught:
        pull(unsized, weights.known(), Rules())
    assert caught.value.exit_code == 6
    assert [each.method for each in hub.asked] == ["HEAD"]
    store.part_path(entries[0].sha256).write_bytes(content(0)[:100_000])
    assert set(pull(unsized, weights.known(), Rules())) == {
        "n0",
        "n1",
        "n2",
    }  # a begun file needs only its rest


def test_a_silent_host_is_asked_for_one_size(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = pulling.hub.ask
    monkeypatch.setattr(pulling.hub, "ask", lambda source: asked.append(source["url"]) or ask(source))
    entries = [
        file(name, content(k), {"url": f"http://127.0.0.1:9/{name}"}, at_hub(name), size=None)
        for k, name in enumerate(("a", "b"))
    ]
    for k, name in enumerate(("a", "b")):
        hub.add("team/repo", name, content(k))
    assert set(pull(entries, write_lock(*entries), Rules())) == {"a", "b"}
    assert asked == ["http://127.0.0.1:9/a"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_is_named_and_the_rest_comes_later(hub: Hub, one: str) -> None:
    with largest_file(150_000), pytest.raises(OutputError, match="is full"):
        weights.weight_path("one")
    assert not store.blob_path(sha256(DATA)).exists()
    assert store.part_path(sha256(DATA)).stat().st_size <= 150_000
    assert_whole(hub)
    assert hub.gets(one)[1].range.startswith("bytes=")


def test_a_plan_says_what_is_to_come(hub: Hub) -> None:
    entries = three(hub)
    entries += [
        file("eva", None, at_hub("e")),
        file("nowhere", b"n"),
        file("r", b"r", at_hub("r"), license="research"),
    ]
    lock = write_lock(*entries)
    weights.weight_path("n0")
    store.part_path(entries[1].sha256).write_bytes(content(1)[:100_000])
    whole = plan(entries, lock, Rules())
    assert {step.id: step.state for step in whole.steps} == {
        "n0": "here", "n1": "begun", "n2": "fetch", "eva": "unlocked", "nowhere": "no source", "r": "terms",
    }  # fmt: skip
    assert whole.fetch_bytes == 200_000 + 300_000 + 1 + 1
    assert whole.unknown_sizes == 1
    assert whole.fits
