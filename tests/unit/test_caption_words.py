"""Grounded answers, one caption of many, and what of it a render may use."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.caption.grounding import Phrase, phrases, plain, without_marks
from dreamoving_cli.caption.words import LOOKS, merge, scene_words

GROUNDED = (
    "<p>two dancers</p> {<10><20><40><90>}<delim>{<50><18><80><92>} under <p>lights</p> {<0><0><99><20>} ."
)


def test_phrases_and_their_boxes() -> None:
    assert phrases(GROUNDED) == [
        Phrase("two dancers", ((10, 20, 40, 90), (50, 18, 80, 92))),
        Phrase("lights", ((0, 0, 99, 20),)),
    ]
    assert phrases("{<1><2><3><4>}") == [Phrase("", ((1, 2, 3, 4),))]
    assert phrases("a man in 2023") == []


def test_words_without_marks() -> None:
    assert without_marks("<p>a girl</p> {<1><2><3><4>} smiles") == "a girl  smiles"
    assert plain(GROUNDED) == "two dancers under lights."
    assert plain("<p>a cat</p> {<1><2><3>") == "a cat"
    assert plain("<p>broken {<1><2><3><4>} then") == "broken then"


@settings(deadline=None)
@given(st.text(alphabet="ab <>p/{}0123456789.,-|", max_size=60))
def test_no_answer_breaks_the_reader(answer: str) -> None:
    assert all(len(box) == 4 for phrase in phrases(answer) for box in phrase.boxes)
    assert "</p>" not in plain(answer)
    assert plain(plain(answer)) == plain(answer)


def test_a_clip_says_what_most_frames_say() -> None:
    frames = [
        "a woman with red hair, is dancing with one arm up, before a gray wall",
        "a woman with red hair, is dancing, before a gray wall",
        "a woman with red hair, is dancing, before a gray wall",
        "a man with black hair, is dancing, before a blue wall",
    ]
    assert merge(frames) == "a woman with red hair, is dancing, before a gray wall"
    assert merge(["one thing", "quite another"]) == "one thing"
    assert merge([]) == merge([" "]) == ""


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a man, in a park", "a woman, on a stage", "a dog"]), min_size=1, max_size=7)
)
def test_a_clip_says_only_what_some_frame_says(frames: list[str]) -> None:
    said = {clause for frame in frames for clause in frame.split(", ")}
    assert set(merge(frames).split(", ")) <= said
    assert merge([frames[0]] * len(frames)) == frames[0]


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        (
            "a woman with light skin and long red hair, in a blue and white striped t-shirt and "
            "black shorts, is dancing with one arm up, full body, before a plain gray background",
            "a person is dancing with one arm up, full body, before a plain gray background",
        ),
        (
            "A young woman in a white dress is dancing on the street with trees in the background.",
            "a person is dancing on the street with trees in the background",
        ),
        (
            "a man wearing a black shirt and blue jeans is jumping in a gym. He has short hair and a beard.",
            "a person is jumping in a gym",
        ),
        ("an old man with glasses stands near a fountain", "a person stands near a fountain"),
        ("a beach with a woman and the very old tall man", "a beach with a person and a person"),
        ("people walk across a busy crossing at night", "people walk across a busy crossing at night"),
    ],
)
def test_only_scene_framing_and_action_are_kept(caption: str, kept: str) -> None:
    assert scene_words(caption) == kept


@settings(deadline=None)
@given(
    st.sampled_from(["a woman", "the young man", "a little girl"]),
    st.sampled_from(
        ["in a red dress", "wearing a hat", "with long black hair", "in a white shirt and blue jeans"]
    ),
    st.sampled_from(["on a beach", "before a plain red background", "in a park"]),
)
def test_looks_never_pass(who: str, looks: str, scene: str) -> None:
    words = scene_words(f"{who} {looks} is dancing {scene}")
    assert not LOOKS.search(words)
    assert scene in words
    assert "dancing" in words
