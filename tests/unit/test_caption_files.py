"""Which frames are captioned, and how captions are written, read back and kept when a run is cut off."""

import csv
import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamoving_cli.caption.files import Partial, chosen_format, read_prompt, written
from dreamoving_cli.caption.sources import Picks, inputs, moments, pictures
from dreamoving_cli.errors import InputError, UsageError
from tests.conftest import number_of

FRAME = {
    "frame": 3,
    "time_s": 0.1,
    "caption": "<p>a man</p> {<1><2><3><4>} dances",
    "phrases": [{"words": "a man"}],
}
CLIP = {"file": "a.mp4", "model": "mini", "prompt": "?", "caption": "a man dances", "frames": [FRAME]}


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 40))
def test_frames_are_evenly_spaced(num_frames: int, count: int) -> None:
    picked = Picks(count=count).of(num_frames, Fraction(25))
    assert len(picked) == len(set(picked)) == min(count, num_frames)
    assert picked == sorted(picked)
    assert 0 <= picked[0] <= num_frames - 1 - picked[-1] + 1


@settings(deadline=None)
@given(
    st.integers(1, 500),
    st.fractions(Fraction(1, 100), 20),
    st.sampled_from([Fraction(30000, 1001), Fraction(8)]),
)
def test_a_frame_every_so_many_seconds(num_frames: int, every_s: Fraction, fps: Fraction) -> None:
    picked = Picks(every_s).of(num_frames, fps)
    assert picked[0] == 0
    assert picked[-1] < num_frames
    assert len(picked) <= int(num_frames / fps / every_s) + 1


@pytest.mark.parametrize("wrong", [(Fraction(1), 4), (Fraction(0), None), (Fraction(-1), None), (None, 0)])
def test_wrong_picks_are_refused(wrong: tuple[Fraction | None, int | None]) -> None:
    with pytest.raises(UsageError):
        Picks(*wrong)


def test_the_frames_that_were_picked_are_read(make_video: Callable[..., Path]) -> None:
    path = make_video("clip.mp4", 24)
    wanted = moments(path, Picks(count=3))
    assert [moment.frame for moment in wanted] == [4, 12, 20]
    assert [number_of(frame) for frame in pictures(path, wanted)] == [4, 12, 20]
    late = moments(path, Picks(count=1), start_s=Fraction(1, 2))
    assert late[0].frame > 14


def test_photos_videos_and_folders(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video("clip.mp4", 4)
    photo = video.with_name("a.png")
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(photo)
    video.with_name("notes.txt").write_text("none")
    assert inputs(str(video.parent)) == [photo, video]
    assert inputs(str(video.parent / "*.mp4")) == [video]
    assert len(moments(photo, Picks(count=9))) == 1
    assert next(pictures(photo, moments(photo, Picks()))).shape == (20, 30, 3)
    with pytest.raises(InputError, match="no picture or video"):
        inputs(str(tmp_path / "*.png"))


def test_formats() -> None:
    assert written([CLIP], "text") == "a man dances\n"
    assert written([CLIP, CLIP], "text").splitlines()[1] == "a.mp4: a man dances"
    assert json.loads(written([CLIP], "json")) == CLIP
    assert json.loads(written([CLIP], "jsonl")) == {"file": "a.mp4", "model": "mini", **FRAME}
    row = next(csv.DictReader(io.StringIO(written([CLIP], "csv"))))
    assert json.loads(row["phrases"]) == FRAME["phrases"]
    assert [chosen_format(None, Path(f"x{end}")) for end in (".csv", ".jsonl", "")] == [
        "csv",
        "jsonl",
        "text",
    ]
    with pytest.raises(UsageError, match="Choose text, json, jsonl, csv"):
        chosen_format("xml", None)


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_a_prompt_file_is_what_caption_wrote(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompt.{ {'text': 'txt'}.get(form, form) }"
    path.write_text(written([CLIP], form))
    assert read_prompt(path) == "a man dances"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_of_frames_become_prompts_by_frame(form: str, tmp_path: Path) -> None:
    """Each row holds from its frame on; of rows that say the same, the first; an edited row counts."""
    frames = [FRAME | {"frame": n, "caption": words} for n, words in ((3, "a"), (9, "a"), (15, "<p>b</p> c"))]
    path = tmp_path / f"prompt.{form}"
    path.write_text(written([CLIP | {"frames": frames}], form))
    assert read_prompt(path) == "@3f a\n@15f b c"
    path.write_text(path.read_text().replace("<p>b</p>", "at night b"))
    assert read_prompt(path) == "@3f a\n@15f at night b c"
    if form == "csv":  # nothing is lost to a comma without quotes
        path.write_text(path.read_text().replace("at night", "at night,"))
        with pytest.raises(InputError, match="is no csv of captions"):
            read_prompt(path)


def test_prompts_by_time_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "prompt.csv"
    path.write_text("time_s,caption\n0,on a beach\n2.5,at dusk\n")
    assert read_prompt(path) == "@0s on a beach\n@2.5s at dusk"
    path = tmp_path / "prompt.txt"
    path.write_text("# mine\n@0s on a\n  beach\n@48f at dusk\n")
    assert read_prompt(path) == "@0s on a beach\n@48f at dusk"
    path = tmp_path / "prompt.jsonl"
    for wrong in ('{"caption": "a"}\n', '{"time_s": "x", "caption": "a"}\n', "no\n"):
        path.write_text(wrong)
        with pytest.raises(InputError, match="is no jsonl of captions"):
            read_prompt(path)


def test_prompt_files_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("# of the second try\non a beach,\nat dusk\n")
    assert read_prompt(path) == "on a beach, at dusk"
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompt(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompt(tmp_path / "absent.txt")
    path = tmp_path / "prompt.json"
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="is no json of captions"):
        read_prompt(path)


def test_answers_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "captions.json"
    Partial(out).keep("a", "one\ntwo")
    with Path(f"{out}.captions.part").open("a") as file:
        file.write('["b", "hal')
    again = Partial(out)
    assert again.answers == {"a": "one\ntwo"}
    again.remove()
    assert not list(tmp_path.iterdir())
    assert Partial(None).answers == {}
