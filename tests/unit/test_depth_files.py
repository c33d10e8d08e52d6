"""extract-depth in process, from the words of a command line to its files, with the network that ships."""

import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.errors import DeviceMemoryError, OutputError
from dreamoving_cli.extract import control_kind, depth_files, extract_to_file
from dreamoving_cli.extract.depth_files import DepthJob, extract_depth_files
from dreamoving_cli.extract.depth_networks import DepthOptions
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import write_video
from tests.unit.test_depth import Brightness, ramp


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["extract-depth", *map(str, words), "--device", "cpu"])


def video(path: str, frames: int = 5, **more: Any) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    return write_video(Path(path), [ramp(frames, 64, 96)], Fraction(25), quality=5, **more)


def test_a_map_with_its_mark_and_a_sheet(run: Callable[..., Any]) -> None:
    video("in.mp4")
    result = run("in.mp4", "map.mp4", "--preview", "s.png", "--metrics", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["files"] == ["map.mp4", "s.png"]
    assert (told["detector"], told["frames"], told["cuts"]) == ("light", 5, 0)
    assert control_kind(Path("map.mp4")) == "depth"
    info = probe(Path("map.mp4"))
    assert (info.num_frames, info.fps, info.height, info.width) == (5, 25, 64, 96)
    assert read_image(Path("s.png")).std() > 5
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "map.mp4", "s.png"]
    again = run("in.mp4", "map.mp4")
    assert again.exit_code == 6
    assert "already exists" in again.stderr
    assert run("in.mp4", "map.mp4", "--preview", "s.png", "--overwrite").stdout == "map.mp4\ns.png\n"


def extracted(output: str, form: str = "auto", **values: Any) -> Any:
    job = DepthJob(Path(output), form, **values)
    return extract_depth_files(Path("in.mp4"), job, open_with=lambda options: Brightness())


def test_all_forms_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4")
    for output, form in (("map.mp4", "auto"), ("p8", "png8"), ("p16", "auto"), ("d.npz", "auto")):
        assert extracted(output, form).paths == [Path(output)]
    with open_clip(Path("map.mp4")) as clip:
        frames = clip.read(range(5))[..., 1].astype(int)
    for k in range(5):
        eight = np.asarray(Image.open(f"p8/{k:06d}.png")).astype(int)
        sixteen = Image.open(f"p16/{k:06d}.png")
        assert sixteen.mode == "I;16"
        assert sixteen.info["dreamoving_kind"] == "depth"
        assert np.abs(np.asarray(sixteen) / 257 - eight).max() < 1.01
        assert np.abs(frames[k] - eight).mean() < 3  # H.264
    assert len(np.unique(np.asarray(Image.open("p16/000000.png")))) > 256
    with np.load("d.npz") as data:
        assert data["depth"].shape == (5, 32, 64)
        assert data["depth"].dtype == np.float32
        assert (data["fps"].tolist(), data["size"].tolist()) == ([25, 1], [64, 96])
        near, far = data["limits"]
        assert near < far
    assert all(i.compress_type == zipfile.ZIP_STORED for i in zipfile.ZipFile("d.npz").infolist())


def test_a_stretch_at_another_rate_and_size(run: Callable[..., Any]) -> None:
    video("in.mp4", 30)
    flags = ["--start", "0:00.4", "--duration", "0.8", "--fps", "12.5", "--size", "64x64"]
    assert run("in.mp4", "map.mkv", *flags, "--no-smooth").exit_code == 0
    info = probe(Path("map.mkv"))
    assert (info.num_frames, info.fps, info.height, info.width) == (10, Fraction(25, 2), 64, 64)


def test_a_single_picture(run: Callable[..., Any]) -> None:
    video("in.mp4", 1)
    result = run("in.mp4", "map.mp4", "--metrics", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["frames"], told["flicker"]) == (1, 0)
    assert probe(Path("map.mp4")).num_frames == 1


def test_a_preview_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4")
    extracted("map.mp4", preview=Path("look.mp4"))
    info = probe(Path("look.mp4"))
    assert (info.num_frames, info.height, info.width) == (5, 64, 192)
    assert control_kind(Path("look.mp4")) is None


def test_what_is_cut_off_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4", 10)
    networks: list[Brightness] = []

    class Stopping(Brightness):
        def __call__(self, frames: np.ndarray) -> np.ndarray:
            if len(networks) == 1 and self.seen >= 6:
                raise KeyboardInterrupt
            return super().__call__(frames)

    def opened(options: DepthOptions) -> Brightness:
        networks.append(Stopping())
        return networks[-1]

    def extract(output: str, **values: Any) -> None:
        extract_depth_files(Path("in.mp4"), DepthJob(Path(output), "png8", **values), open_with=opened)

    with pytest.raises(KeyboardInterrupt):
        extract("map")
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "map.depth.state"]
    extract("map", resume=True)
    assert [n.seen for n in networks] == [6, 4]
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "map"]
    extract("whole")
    for k in range(10):
        assert Path(f"map/{k:06d}.png").read_bytes() == Path(f"whole/{k:06d}.png").read_bytes()


def test_pictures_beyond_the_memory_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4")
    monkeypatch.setattr(depth_files, "BYTES_A_PIXEL", 2**50)
    with pytest.raises(DeviceMemoryError, match=r"pictures of this size need about .* GiB"):
        extracted("map.mp4")
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4"]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4")
    monkeypatch.setattr(depth_files, "SPARE", 2**60)
    with pytest.raises(OutputError, match=r"distances need 0.1 MiB beside map.mp4, and 0 are free"):
        extracted("map.mp4")
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4"]


def test_many_videos(run: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        video(f"in/{name}.mp4", 2)
    Path("in/c.mp4").write_text("not a video")
    result = run("in", "out", "--preview", "look", "--format", "npz")
    assert result.exit_code == 3  # of the one that failed
    assert "1 of 3 videos failed" in result.stderr
    assert result.stdout.split() == ["out/a.npz", "look/a.png", "out/b.npz", "look/b.png"]
    result = run("in/[ab].mp4", "out", "--preview", "look", "--format", "npz", "--skip-existing")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("is done already") == 2


def test_the_table_of_extractors_knows_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video("in.mp4", 2)
    assert extract_to_file("depth", Path("in.mp4"), Path("map.mp4")) == [Path("map.mp4")]
    assert control_kind(Path("map.mp4")) == "depth"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("none.mp4 map.mp4", 3, "does not exist"),
        ("text.mp4 map.mp4", 3, "text.mp4"),
        ("nothing*.mp4 out", 3, "no video is in 'nothing"),
        ("empty out", 3, "no video is in 'empty'"),
        ("in.mp4 in.mp4", 2, "is the input"),
        ("in.mp4 map.mp4 --preview map.mp4", 2, "two outputs have one name"),
        ("in.mp4 gone/map.mp4", 6, "is not a folder"),
        ("in.mp4 map.xyz", 2, "'.xyz' is not a video format"),
        ("in.mp4 map.mp4 --format tiff", 2, "format is 'tiff'"),
        ("in.mp4 map.mp4 --format npz", 2, "npz does not fit into map.mp4"),
        ("in.mp4 map.mp4 --format png16", 2, "png16 does not fit into map.mp4"),
        ("in.mp4 map --format mp4", 2, "mp4 does not fit into map"),
        ("in.mp4 map.mp4 --preview s.doc", 2, "'.doc' is not a video format"),
        ("in.mp4 map.mp4 --start 99", 2, "start is 99 s"),
        ("in.mp4 map.mp4 --start soon", 2, "start is 'soon'"),
        ("in.mp4 map.mp4 --duration 0", 2, "duration is 0 s"),
        ("in.mp4 map.mp4 --fps 0", 2, "fps is '0'"),
        ("in.mp4 map.mp4 --size big", 2, "size is 'big'"),
        ("in.mp4 map.mp4 --detector midas", 2, "detector is 'midas'"),
        ("in.mp4 map.mp4 --detector zoe", 4, "dreamoving models pull depth"),
        ("in.mp4 map.mp4 --network nowhere.pt", 2, "there is no file nowhere.pt"),
        ("in.mp4 map.mp4 --network text.mp4", 4, "neither safetensors nor a PyTorch checkpoint"),
        ("in out.mp4", 2, "is one file for many videos"),
        ("in out --format tiff", 2, "format is 'tiff'"),
    ],
)
def test_bad_words_are_one_sentence_and_a_code(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: str, code: int, says: str
) -> None:
    monkeypatch.setenv("DREAMOVING_CACHE", "cache")
    video("in.mp4", 2)
    video("in/a.mp4", 2)
    Path("empty").mkdir()
    Path("text.mp4").write_text("not a video")
    before = sorted(Path().rglob("*"))
    result = run(*words.split())
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    left = [p for p in sorted(Path().rglob("*")) if p not in before and p.parts[0] not in ("cache", "out")]
    assert left == []
