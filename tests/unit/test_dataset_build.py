"""A data set from a handful of made videos: what is kept and why not, the same bytes also after a kill."""

import json
import os
import signal
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.dataset import build, captions, jobs
from dreamoving_cli.dataset.build import build_clips, check, read_manifest
from dreamoving_cli.dataset.captions import read_captions, read_list
from dreamoving_cli.dataset.jobs import Source
from dreamoving_cli.dataset.pool import run_jobs
from dreamoving_cli.dataset.rules import Rules
from dreamoving_cli.dataset.shards import read_index
from dreamoving_cli.dataset.survey import Stretch
from dreamoving_cli.errors import InputError, OutputError, UsageError
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.weights import file_sha256

FPS = Fraction(12)
RULES = Rules(min_s=Fraction(1), max_s=Fraction(2), side=96, controls=(), keep_people_less=True, shard_mb=1)


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody is watching."""


def texture(seed: int, frames: int, speed: int = 3, soft: float = 0.0) -> np.ndarray:
    """A patchwork that moves sideways, uint8 f 96 128 3."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, 3) // 2
    cells = (base + rng.integers(0, 128, (12, 64, 3))).astype(np.uint8)
    wide = cv2.resize(cells, (512, 96), interpolation=cv2.INTER_NEAREST)
    wide = cv2.GaussianBlur(wide, (0, 0), soft) if soft else wide
    return np.stack([np.roll(wide, speed * k, 1)[:, :128] for k in range(frames)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots with a cut; a still; a blurred one; a broken file; no video at all; the first one's twin."""
    folder = tmp_path_factory.mktemp("videos")
    shots = np.concatenate([texture(1, 24), texture(2, 30)])
    written = {"a_two_shots": shots, "b_still": texture(3, 24, speed=0), "c_soft": texture(4, 24, soft=9)}
    for name, frames in written.items():
        write_video(folder / f"{name}.mp4", [frames], FPS)
    whole = (folder / "a_two_shots.mp4").read_bytes()
    (folder / "d_broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "e_text.mp4").write_text("no video\n" * 40)
    (folder / "f_twin.mp4").write_bytes(whole)
    (folder / "a_two_shots.txt").write_text("a patchwork\n")
    return folder


def sources(folder: Path) -> list[Source]:
    captions = {"a_two_shots": "a patchwork"}
    return [Source(p.name, p, (), captions.get(p.stem, "")) for p in sorted(folder.glob("*.mp4"))]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "whole"
    build_clips(sources(videos), RULES, out, 1, quiet)
    return out


def test_clips_lie_between_cuts_and_the_rest_has_a_reason(built: Path) -> None:
    manifest = read_manifest(built)
    clips = [(v["source"], v["start_s"], v["frames"]) for v in manifest["samples"].values()]
    assert sorted(clips) == [
        ("a_two_shots.mp4", "0", 24), ("a_two_shots.mp4", "13/4", 15), ("a_two_shots.mp4", "2", 15),
    ]  # fmt: skip
    assert {(d["file"], d["reason"]) for d in manifest["dropped"]} == {
        ("b_still.mp4", "static"),
        ("c_soft.mp4", "blurred"),
    }
    assert all(d["detail"] for d in manifest["dropped"])
    assert {(d["file"], d["reason"]) for d in manifest["skipped"]} == {
        ("d_broken.mp4", "unreadable"), ("e_text.mp4", "unreadable"), ("f_twin.mp4", "twice"),
    }  # fmt: skip
    assert manifest["counts"]["samples"] == 3
    assert manifest["counts"]["without_caption"] == 0
    assert (built / "sheet.png").is_file()
    assert not (built / ".work").exists()


def test_shards_are_plain_webdataset_tars(built: Path) -> None:
    index = read_index(built)
    assert list(index) == sorted(read_manifest(built)["samples"])
    for members in index.values():
        assert set(members) == {"mp4", "txt", "json"}
        assert members["txt"].read() == b"a patchwork\n"
        assert json.loads(members["json"].read())["height"] == 96
    [shard] = built.glob("*.tar")
    with tarfile.open(shard) as tar:
        assert all(m.mtime == 0 and m.uid == 0 for m in tar)
        names = tar.getnames()
    assert [n.partition(".")[0] for n in names] == sorted(n.partition(".")[0] for n in names)


def test_a_clip_shows_the_frames_of_its_source(built: Path, videos: Path, tmp_path: Path) -> None:
    from dreamoving_cli.media.video import open_clip

    key, facts = next((k, v) for k, v in read_manifest(built)["samples"].items() if v["start_s"] == "2")
    (tmp_path / "clip.mp4").write_bytes(read_index(built)[key]["mp4"].read())
    with open_clip(tmp_path / "clip.mp4") as clip, open_clip(videos / facts["source"]) as source:
        assert (clip.num_frames, clip.fps) == (15, FPS)
        error = np.abs(clip.read([0, 14]).astype(int) - source.read([24, 38])).mean()
        wrong = np.abs(clip.read([0, 14]).astype(int) - source.read([23, 37])).mean()
    assert error < 4 < wrong


def kept_until(patched: str, times: int, monkey: pytest.MonkeyPatch) -> None:
    """From now on this process dies, as by kill -9, after `times` calls of a function."""
    module: Any = build if patched == "write_shard" else jobs
    original: Callable[..., Any] = getattr(module, patched)
    left = [times]

    def deadly(*args: Any, **more: Any) -> Any:
        result = original(*args, **more)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkey.setattr(module, patched, deadly)


@pytest.mark.parametrize(
    ("patched", "times"), [("survey", 2), ("make_clip", 2), ("write_json", 4), ("write_shard", 1)]
)
def test_a_killed_build_goes_on_to_the_same_bytes(
    patched: str, times: int, built: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"

    def doomed() -> None:
        kept_until(patched, times, pytest.MonkeyPatch())
        build_clips(sources(videos), RULES, out, 1, quiet)

    process = get_context("fork").Process(target=doomed)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (out / ".work").is_dir()
    assert not (out / "manifest.json").exists()
    report = build_clips(sources(videos), RULES, out, 1, quiet)
    assert hashes(out) == hashes(built)
    assert report.samples == 3


def test_a_finished_build_is_only_told_again(built: Path, videos: Path) -> None:
    before = hashes(built)
    assert build_clips(sources(videos), RULES, built, 1, quiet).samples == 3
    assert hashes(built) == before
    with pytest.raises(OutputError, match="made from other files"):
        build_clips(sources(videos)[1:], RULES, built, 1, quiet)
    with pytest.raises(OutputError, match="made by other rules"):
        build_clips(sources(videos), Rules(side=128), built, 1, quiet)


def test_other_rules_do_not_go_on_with_a_build(videos: Path, tmp_path: Path) -> None:
    from dreamoving_cli.dataset.work import Work

    with Work(tmp_path / "set").open({"kind": "clips", "rules": RULES.told()}):
        pass
    with pytest.raises(OutputError, match="was begun with rules"):
        build_clips(sources(videos), Rules(side=128), tmp_path / "set", 1, quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is not empty"):
        build_clips(sources(videos), RULES, tmp_path / "full", 1, quiet)


def test_changed_bytes_are_found(built: Path, tmp_path: Path) -> None:
    assert list(check(built)) == []
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    [shard] = copy.glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "has other bytes" in next(check(copy))
    shard.unlink()
    assert "is missing" in next(check(copy))


def test_listed_clips_are_taken_as_they_are(videos: Path, tmp_path: Path) -> None:
    rows = "file,start,end,caption\na.mp4,0:00.5,1.5,first\na.mp4,1,3,over the cut\na.mp4,90,99,nowhere\n"
    (tmp_path / "list.csv").write_text(rows)
    (tmp_path / "a.mp4").write_bytes((videos / "a_two_shots.mp4").read_bytes())
    [(path, stretches)] = read_list(tmp_path / "list.csv").items()
    assert stretches[0] == Stretch(Fraction(1, 2), Fraction(3, 2), "first")
    build_clips([Source("a.mp4", path, stretches)], RULES, tmp_path / "set", 1, quiet)
    manifest = read_manifest(tmp_path / "set")
    assert [(v["start_s"], v["frames"], v["caption"]) for v in manifest["samples"].values()] == [
        ("1/2", 12, "first")
    ]
    assert [d["reason"] for d in manifest["dropped"]] == ["transition", "outside"]


@pytest.mark.parametrize("text", ["file,caption\n,words\n", "start,end\n1,2\n"])
def test_tables_without_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    for read in (read_captions, read_list):
        with pytest.raises(InputError, match=r"names no file in line 2"):
            read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "values", [{"min_s": Fraction(9), "max_s": Fraction(8)}, {"side": 3}, {"controls": ("canny",)}]
)
def test_impossible_rules_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Rules(**values)


@dataclass(frozen=True)
class Words:
    caption: str


class Witness:
    """In the place of a captioner: tells the length of what it is shown."""

    def describe(self, path: Path) -> Words:
        from dreamoving_cli.media.video import probe

        return Words(f"a clip of {probe(path).num_frames} frames")


def test_a_captioner_describes_what_has_no_words(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (captions, build):
        monkeypatch.setattr(module, "describer", lambda name: Witness())
    source = Source("a.mp4", videos / "a_two_shots.mp4", (Stretch(Fraction(0), Fraction(1)),))
    said = replace(source, listed=(Stretch(Fraction(0), Fraction(1), "mine"),))
    for name, given, words in (("one", source, "a clip of 12 frames"), ("two", said, "mine")):
        build_clips([given], replace(RULES, captioner="mini"), tmp_path / name, 1, quiet)
        [members] = read_index(tmp_path / name).values()
        assert members["txt"].read().decode().strip() == words


def double_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def test_a_job_that_kills_its_worker_is_the_only_one_lost() -> None:
    found = dict(run_jobs(double_or_die, [1, 2, 3, 4], workers=2))
    assert found == {1: 2, 2: 4, 3: None, 4: 8}


def test_the_command_tells_what_it_would_do_and_writes_nothing(videos: Path, tmp_path: Path) -> None:
    words = [
        "dataset",
        "build",
        str(videos),
        "--min",
        "1",
        "--max",
        "2",
        "--keep-people-less",
        "--dry-run",
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["files"], report["samples"]) == (6, 3)
    assert report["dropped"] == {"blurred": 1, "static": 1}
    assert report["skipped"] == {"twice": 1, "unreadable": 2}
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(app, ["dataset", "build", str(videos)]).exit_code == 2
    assert CliRunner().invoke(app, ["dataset", "build", "--out", str(tmp_path / "x")]).exit_code == 3


@pytest.mark.usefixtures("light_networks")
def test_the_example_dance_becomes_a_clip_with_poses_and_garment(tmp_path: Path) -> None:
    from dreamoving_cli.examples import write_examples
    from dreamoving_cli.extract.keypoints import load_poses

    write_examples(tmp_path)
    (tmp_path / "list.csv").write_text("file,start,end\ndance.mp4,0,0.7\n")
    words = [
        "dataset",
        "build",
        "--list",
        str(tmp_path / "list.csv"),
        "--out",
        str(tmp_path / "set"),
        "--static",
        "0",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [members] = read_index(tmp_path / "set").values()
    assert {"mp4", "pose.json", "cloth.jpg", "json"} <= set(members)
    (tmp_path / "pose.json").write_bytes(members["pose.json"].read())
    assert load_poses(tmp_path / "pose.json").num_frames == json.loads(members["json"].read())["frames"]


@pytest.mark.usefixtures("light_networks")
def test_pictures_without_a_face_are_left_out(tmp_path: Path) -> None:
    from dreamoving_cli.examples import write_examples
    from dreamoving_cli.media.images import read_image

    write_examples(tmp_path)
    with tarfile.open(tmp_path / "people.tar", "w") as tar:
        tar.add(tmp_path / "me.jpg", "one/me.jpg")
        tar.add(tmp_path / "shirt.png", "one/shirt.png")
    (tmp_path / "words.csv").write_text("file,caption\nme.jpg,a portrait\n")
    side = min(read_image(tmp_path / "me.jpg").shape[:2])
    words = [
        "dataset",
        "pictures",
        tmp_path / "people.tar",
        "--out",
        tmp_path / "set",
        "--side",
        side,
        "--blur",
        1,
    ]
    result = CliRunner().invoke(app, [str(w) for w in [*words, "--captions", tmp_path / "words.csv"]])
    assert result.exit_code == 0, result.output
    [members] = read_index(tmp_path / "set").values()
    assert {"jpg", "face.jpg", "txt", "json"} <= set(members)
    assert [d["reason"] for d in read_manifest(tmp_path / "set")["dropped"]] in (["no face"], ["small"])
