"""What the captioner is taught: true sentences about synthetic people, and how to read them back.

<p>a woman</p> {<28><8><72><96>} with light skin and long red hair, in a blue and white striped t-shirt and
    black shorts, is dancing with one arm up, full body, before a plain gray background
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamoving_cli.train.garments import COLORS, PATTERNS, Garment, random_color
from dreamoving_cli.train.people import Look

PATTERN_WORDS = {
    "plain": "plain", "stripes": "striped", "columns": "columned", "checks": "checked", "dots": "dotted",
    "print": "printed", "yoke": "two-tone",
}  # fmt: skip
CUT_WORDS = {
    "tank": "tank top",
    "t-shirt": "t-shirt",
    "long-sleeve": "long-sleeved top",
    "sweater": "long-sleeved top",
}
EVEN = ("stripes", "columns", "checks")  # patterns whose two colors cover about the same
FRAMING_WORDS = {"full body": "full body", "half body": "half body", "portrait": "portrait"}
ARMS = ("", " with one arm up", " with both arms up")
BOX_STEP = 4  # percent; boxes are said in multiples of it
BOX = re.compile(r"\{<(\d+)><(\d+)><(\d+)><(\d+)>\}")
COLOR = "(" + "|".join(sorted(COLORS, key=len, reverse=True)) + ")"
TORSO = [2, 5, 8, 11]  # of the 134 points: shoulders and hips
OPAQUE, FEW = 250, 0.04  # of alpha; share of the cloth under which a color is not told
LIGHT = (0.35, 1.2)  # how much brighter or darker than its own color cloth is drawn
SHOULDERS, WRISTS = (2, 5), (4, 7)


def color_word(color: np.ndarray) -> str:
    """The nearest named color of sRGB 0..1 `3`."""
    return min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) / 255 - color).sum()))


def garment_words(shown: Mapping[str, str], cut: str) -> str:
    """Colors, pattern and cut; where two colors cover about the same, they come in COLORS' order."""
    colors = [shown["color"]]
    if shown["second"] not in ("", shown["color"]):
        colors.append(shown["second"])
    if shown["pattern"] in EVEN:
        colors.sort(key=list(COLORS).index)
    return f"{' and '.join(colors)} {PATTERN_WORDS[shown['pattern']]} {CUT_WORDS.get(cut, cut)}"


def worn_garment(look: Look) -> Garment:
    """What covers the chest."""
    return look.bottom if look.bottom.cut == "dress" else look.top


def told_garment(garment: Garment) -> dict[str, str]:
    """Color, second color (empty where there is none) and pattern of the whole garment."""
    second = "" if garment.pattern == "plain" else color_word(garment.second)
    return {"color": garment.name, "second": second, "pattern": garment.pattern}


def shown_garment(look: Look, picture: np.ndarray, alpha: np.ndarray, torso: list[float]) -> dict[str, str]:
    """As `told_garment`, of what the picture shows: a print on the chest is not seen from behind.

    picture: uint8 h w 3, alpha: uint8 h w, torso: x0 y0 x1 y1 in 0..1.
    """
    garment = worn_garment(look)
    told = told_garment(garment)
    height, width = alpha.shape
    x0, y0, x1, y1 = (np.array(torso) * (width, height, width, height)).astype(int)
    pixels = picture[y0:y1, x0:x1][alpha[y0:y1, x0:x1] > OPAQUE] / 255
    colors = (garment.color, garment.second, look.skin, look.hair)
    nearest = np.argmin([off_color(pixels, color) for color in colors], 0)
    first, second = int((nearest == 0).sum()), int((nearest == 1).sum())
    if garment.pattern == "plain" or first + second == 0 or FEW <= second / (first + second) <= 1 - FEW:
        return told
    return {"color": told["color"] if first > second else told["second"], "second": "", "pattern": "plain"}


def off_color(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    """How far pixels are from a color in any light; n 3 and 3, 0..1 -> n."""
    light = np.clip(pixels @ color / (color @ color), *LIGHT)
    return np.abs(pixels - light[:, None] * color).sum(1)


def looks_facts(look: Look, framing: str, shown: Mapping[str, str]) -> dict[str, Any]:
    """What of a look a caption tells, as words; shown: of the garment (`shown_garment`)."""
    clothes = garment_words(shown, worn_garment(look).cut)
    if look.bottom.cut != "dress" and framing == "full body":
        clothes += f" and {look.bottom.name} {look.bottom.cut}"
    hair = "a bald head" if look.hair_style == "bald" else f"{look.hair_style} {look.hair_name} hair"
    who = "a woman" if look.body % 2 else "a man"
    return {"who": who, "skin": look.skin_name, "hair": hair, "clothes": clothes, "framing": framing, **shown}


def place_facts(points: np.ndarray, scores: np.ndarray, alpha: np.ndarray) -> dict[str, Any]:
    """Where the person is (shares of the picture) and what the arms do; alpha uint8 `h w`."""
    height, width = alpha.shape
    size = np.array([width, height, width, height])
    rows, columns = (np.flatnonzero((alpha > 128).any(axis)) for axis in (1, 0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0])
    torso = np.concatenate([points[TORSO].min(0), points[TORSO].max(0)])
    up = sum(
        bool(scores[w] > 0 and points[w, 1] < points[s, 1]) for w, s in zip(WRISTS, SHOULDERS, strict=True)
    )
    return {"box": (box / size).tolist(), "torso": np.clip(torso / size, 0, 1).tolist(), "arms": up}


def caption_of(facts: Mapping[str, Any], scene: str, box: np.ndarray) -> str:
    """The sentence; box: x0 y0 x1 y1 in 0..1."""
    x0, y0, x1, y1 = (round(100 * float(v) / BOX_STEP) * BOX_STEP for v in box)
    return (
        f"<p>{facts['who']}</p> {{<{x0}><{y0}><{x1}><{y1}>}} with {facts['skin']} skin and {facts['hair']}, "
        f"in a {facts['clothes']}, is dancing{ARMS[facts['arms']]}, {FRAMING_WORDS[facts['framing']]}, "
        f"before {scene}"
    )


def scene_facts(scene: str) -> dict[str, str]:
    """Kind and color of a scene, from its words; outdoors has no color of its own."""
    patterns = {
        "plain": "a plain {} background",
        "room": "a room with a {} wall",
        "stage": "a dark stage with {} light",
    }
    for kind, pattern in patterns.items():
        if found := re.search(pattern.format(COLOR), scene):
            return {"kind": kind, "background": found[1]}
    return {"kind": "outdoors" if scene.startswith("a ") else "", "background": ""}


def read_caption(text: str) -> dict[str, Any]:
    """The facts that a sentence states; what it does not state is missing."""
    searches = {
        "who": r"<p>(.*?)</p>",
        "skin": r"with (\w+) skin",
        "hair": r"skin and (.*?), in",
        "clothes": r", in a (.*?), is",
        "pattern": "(" + "|".join(PATTERN_WORDS.values()) + ")",
        "arms": r"dancing( with (?:one|both) arms? up)?,",
        "framing": "(" + "|".join(FRAMING_WORDS) + ")",
        "scene": r"before (.*)$",
    }
    found = {name: re.search(pattern, text) for name, pattern in searches.items()}
    facts: dict[str, Any] = {name: (match[1] or "") for name, match in found.items() if match}
    if match := re.search(f"in a {COLOR}(?: and {COLOR})?", text):
        facts["colors"] = [word for word in match.groups() if word]
    if match := BOX.search(text):
        facts["box"] = [int(number) / 100 for number in match.groups()]
    return facts | scene_facts(facts.get("scene", ""))


def vocabulary(rng: np.random.Generator, count: int = 4000) -> list[str]:
    """Sentences with all words, for the tokenizer to learn from."""
    from dreamoving_cli.train.garments import BOTTOMS, random_garment
    from dreamoving_cli.train.people import HAIR, HAIR_STYLES, SKIN

    scenes = ["a green field under a blue sky", "a sandy beach under a bright sky",
              "a gray street under a pale sky",
              "a snowy field at dusk"]  # fmt: skip
    sentences = ["[grounding] describe this frame in a detailed manner"]
    for _ in range(count):
        first, second = (random_color(rng)[0] for _ in range(2))
        scene = str(rng.choice([*scenes, f"a plain {first} background", f"a dark stage with {first} light",
                                f"a room with a {first} wall and a {second} floor"]))  # fmt: skip
        top, bottom = random_garment(rng), random_garment(rng, BOTTOMS)
        worn = garment_words(told_garment(top), top.cut)
        hair = str(
            rng.choice(["a bald head", f"{rng.choice(HAIR_STYLES[1:])} {rng.choice(list(HAIR))} hair"])
        )
        facts = {
            "who": str(rng.choice(["a man", "a woman"])), "skin": str(rng.choice(list(SKIN))), "hair": hair,
            "clothes": f"{worn} and {bottom.name} {bottom.cut}", "arms": int(rng.integers(3)),
            "framing": str(rng.choice(list(FRAMING_WORDS))),
        }  # fmt: skip
        sentences.append(caption_of(facts, scene, np.sort(rng.random(4))))
    assert set(PATTERNS) == set(PATTERN_WORDS)
    return sentences
