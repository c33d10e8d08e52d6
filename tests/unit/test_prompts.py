"""Prompts that change with time: read, refused, written, and dealt out to frames."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.errors import UsageError
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.presets import to_yaml
from dreamoving_cli.prompts import MOST, FrameTexts, From, of_frames, read, written

RATES = Fraction(30), Fraction(15)
PARTS = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from(["a", "b c", "d"])), min_size=1, unique_by=lambda x: x[0]
)


def test_a_prompt_that_changes_is_read() -> None:
    parts = read("@0s on a beach\n@2.5s at dusk,\n   in the rain\n@96f")
    assert parts == [
        From("on a beach"), From("at dusk, in the rain", Fraction(5, 2)), From("", frame=96),
    ]  # fmt: skip
    assert read("on a beach\nwith an @ and 3s") == []
    assert read("mail@2s") == read("@2 s") == []


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("on a beach\n@2s at dusk", "the first with @0s"),
        ("@2s a\n@2.0s b", "its own time"),
        ("\n".join(f"@{k}s {k}" for k in range(MOST + 1)), f"more than {MOST} different parts"),
    ],
)
def test_what_cannot_be_read_is_refused(prompt: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        RenderOptions(prompt=prompt)


def test_the_frames_of_a_stretch_have_the_words_of_their_time() -> None:
    prompt = "@0s a\n@1s b\n@45f c\n@9s d"
    told = of_frames(prompt, Fraction(1, 2), RATES, 24)  # half a second to 2.1 s
    assert told.texts == ("a", "b", "c")
    said = [told.texts[n] for n in told.frames]
    assert said == ["a"] * 8 + ["b"] * 7 + ["c"] * 9
    assert of_frames(prompt, Fraction(1), RATES, 5) == FrameTexts(("b",))
    assert of_frames("on a beach", Fraction(0), RATES, 5) == FrameTexts(("on a beach",))
    assert of_frames("@2s late", Fraction(0), RATES, 5) == FrameTexts(("late",))


@given(PARTS)
def test_what_is_written_is_read_again(parts: list[tuple[int, str]]) -> None:
    """With nothing said twice in a row; and every frame has its words."""
    prompt = written([From(words, frame=frame) for frame, words in sorted(parts)])
    assert written(read(prompt)) == prompt or not read(prompt)
    told = of_frames(prompt, Fraction(0), RATES, 120)
    frames = told.frames or (0,) * 120
    for frame in range(120):
        before = [words for at, words in sorted(parts) if at <= 2 * frame]
        assert told.texts[frames[frame]] == (before[-1] if before else sorted(parts)[0][1])


def test_a_record_repeats_it() -> None:
    options = RenderOptions(prompt="@0s a: b\n@2.5s c")
    import yaml

    assert RenderOptions(**yaml.safe_load(to_yaml(options))).prompt == options.prompt
