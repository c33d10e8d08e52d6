"""MiniGPT-v2's grounded words: phrases with boxes out of an answer, and the answer without its marks.

    <p>a dancer</p> {<10><20><40><90>}<delim>{<50><18><80><92>} on <p>a stage</p> {<0><60><99><99>}

Numbers are percents of width and height. As the reference's demo reads it, broken marks included.
"""

import re
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # x0 y0 x1 y1, percent

PHRASE = re.compile(r"<p>(.*?)\}(?!<)")
MARKS = re.compile(r"{<\d+><\d+><\d+><\d+>}|<delim>")
TAGS = re.compile(r"<p>(.*?)</p>")
NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Phrase:
    """Words and where they are seen; an answer that is a box alone has no words."""

    words: str
    boxes: tuple[Box, ...]


def grounded_parts(answer: str) -> list[str]:
    """What lies between <p> and the } that ends its boxes; after the last } nothing is complete."""
    return PHRASE.findall(answer[: answer.rfind("}") + 1])


def phrases(answer: str) -> list[Phrase]:
    """The phrases with boxes, each once, in their order; parts that cannot be told apart are left out."""
    parts = grounded_parts(answer)
    if not parts:
        alone = box_of(answer)
        return [Phrase("", (alone,))] if alone else []
    found: dict[str, list[Box]] = {}
    for part in parts:
        if part.count("</p>") != 1:
            continue
        words, rest = part.split("</p>")
        boxes = [box for text in rest.split("<delim>") if (box := box_of(text))]
        if boxes:
            found.setdefault(words, []).extend(boxes)
    return [Phrase(words, tuple(boxes)) for words, boxes in found.items()]


def box_of(text: str) -> Box | None:
    """The four numbers of a text that holds just four."""
    numbers = [int(number) for number in NUMBER.findall(text)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def without_marks(answer: str) -> str:
    """The words as the reference's demo shows them: boxes leave their spaces behind."""
    return TAGS.sub(r"\1", MARKS.sub("", answer))


def plain(answer: str) -> str:
    """The words alone: no marks, not even broken ones, single spaces."""
    text = re.sub(r"</?p>|\{[<>\d\s-]*\}?|<delim>", "", without_marks(answer))
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
