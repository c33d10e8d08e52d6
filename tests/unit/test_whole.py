"""Whole files or none: whatever ends a write, nothing is left behind and nothing old is lost."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamoving_cli.errors import InputError, OutputError, UserError
from dreamoving_cli.media.video import probe
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.whole import whole_file, writing
from tests.conftest import HEAR_CTRL_C, NTSC, pictures

resource = pytest.importorskip("resource", reason="file size limits need a POSIX system")


def left_behind(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "folder"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError("x is damaged", "Fix it."), RuntimeError])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, name: str, failure: BaseException) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield from pictures(10)
        raise failure

    kind = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(kind):
        write_video(tmp_path / name, batches(), Fraction(25))
    assert left_behind(tmp_path) == []


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        write_video(path, pictures(2), NTSC)
    assert path.read_text() == "precious"
    with pytest.raises(RuntimeError):
        write_video(path, failing(), NTSC, overwrite=True)
    assert path.read_text() == "precious"  # a failed render does not cost the old one
    write_video(path, pictures(2), NTSC, overwrite=True)
    assert probe(path).num_frames == 2


def failing() -> Iterator[np.ndarray]:
    yield from pictures(5)
    raise RuntimeError


def test_a_folder_is_replaced_only_if_it_holds_our_pictures(tmp_path: Path) -> None:
    write_video(tmp_path / "out", pictures(5), NTSC)
    write_video(tmp_path / "out", pictures(2), NTSC, overwrite=True)
    assert left_behind(tmp_path / "out") == ["000000.png", "000001.png"]
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_video(tmp_path / "out", pictures(2), NTSC, overwrite=True)
    assert left_behind(tmp_path) == ["out"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "a.mp4", tmp_path / "file" / "a.mp4", tmp_path / f"{'a' * 300}.mp4"):
        with pytest.raises(OutputError):
            write_video(path, pictures(2), NTSC)
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        write_video(tmp_path / "a.mp4", pictures(2), NTSC)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc on this platform")
def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(OutputError, match=r"/proc/a\.mp4"):
        write_video(Path("/proc/a.mp4"), pictures(2), NTSC)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root; the size-limit tests cover the rest")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "folder"])
def test_a_truly_full_disk(small_disk: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), np.uint8)
    with pytest.raises(OutputError, match="disk is full"):
        write_video(small_disk / name, (noise for _ in range(10)), Fraction(25))
    assert left_behind(small_disk) == []


def test_no_frames_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 frames"):
        write_video(tmp_path / "a.mp4", iter(()), NTSC)
    assert left_behind(tmp_path) == []


@contextmanager
def no_file_above(size_bytes: int) -> Iterator[None]:
    """As a full disk: writes beyond this size fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.gif", "folder"])
@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str, limit: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), np.uint8)
    with no_file_above(limit), pytest.raises(OutputError, match="disk is full"):
        write_video(tmp_path / name, (noise for _ in range(6)), Fraction(25), quality=None)
    assert left_behind(tmp_path) == []


def test_a_full_disk_at_the_very_end(tmp_path: Path) -> None:
    size_bytes = write_video(tmp_path / "whole.mp4", pictures(20), NTSC).stat().st_size
    for limit in range(size_bytes - 700, size_bytes, 100):
        with no_file_above(limit), pytest.raises(OutputError, match="disk is full"):
            write_video(tmp_path / "a.mp4", pictures(20), NTSC)
    assert left_behind(tmp_path) == ["whole.mp4"]


def test_errors_that_are_not_the_system_s_pass() -> None:
    with pytest.raises(OSError, match="odd") as caught, writing(Path("a")):
        raise OSError(errno.ENOTCONN, "odd")
    assert not isinstance(caught.value, UserError)


def test_whole_file_for_text(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("{}")
        assert not (tmp_path / "a.json").exists()
    assert left_behind(tmp_path) == ["a.json"]
    with no_file_above(10), pytest.raises(OutputError), whole_file(tmp_path / "b.json") as part:
        part.write_text("x" * 100)
    assert left_behind(tmp_path) == ["a.json"]


def test_ctrl_c_in_another_process(tmp_path: Path) -> None:
    script = (
        "import itertools, sys, numpy as np\n"
        "from fractions import Fraction\nfrom pathlib import Path\n"
        "from dreamoving_cli.media.writer import write_video\n"
        "def batches():\n"
        "    for _ in itertools.count():\n"
        "        print('batch', flush=True)\n"
        "        yield np.zeros((8, 64, 64, 3), np.uint8)\n"
        "write_video(Path(sys.argv[1]), batches(), Fraction(25))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, preexec_fn=HEAR_CTRL_C, **pipes) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode in (-signal.SIGINT, 130)
    assert left_behind(tmp_path) == []
