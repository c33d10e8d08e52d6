"""One caption of a clip from those of its frames; and the part of it that a render may use as its prompt.

Rules on English words, no model. Not here: boxes (grounding.py).
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

SAME = 0.8  # likeness from which two clauses say one thing
PEOPLE = "man|woman|girl|boy|lady|guy|gentleman|male|female|person|dancer|performer|child|kid|individual"
SUBJECT = re.compile(  # with up to three adjectives
    r"\b(?:a|an|the|this|one)\s+(?:(?!(?:with|in|on|at|of|and|near|by|a|an|the)\s)[\w-]+\s+){0,3}?"
    rf"(?:{PEOPLE})\b(?!'s)",
    re.IGNORECASE,
)
PRONOUN = re.compile(r"\b(?:he|she)\b", re.IGNORECASE)
LOOKS = re.compile(
    r"\b(?:hair\w*|haired|bald|head|face|facial|skin\w*|eyes?|eyebrows?|lips?|smil\w+|beard\w*|mustache|"
    r"tattoo\w*|makeup|ponytail|braids?|bun|bangs|blonde?|brunette|complexion|body type|build|muscular|"
    r"attire|outfit|clothes|clothing|cloth|dressed|wear\w*|wore|shirts?|t-shirts?|tee|(?<!on )tops?|tank|"
    r"blouse|sweater|sweatshirt|hoodie|jacket|coat|vest|suit|tie|dress|gown|skirt|shorts|trousers|pants|"
    r"jeans|leggings|tights|stockings|socks|shoes?|sneakers|boots|heels|sandals|hat|cap|scarf|gloves?|"
    r"belt|jewelry|necklace|earrings?|bracelet|watch|glasses|sunglasses|mask|uniform|costume|kimono|hanfu|"
    r"bikini|swimsuit|leotard|sleeved?|sleeveless|collar|buttons?|striped|dotted|checked|columned|"
    r"printed|two-tone|plaid|floral)\b",
    re.IGNORECASE,
)  # fmt: skip
COLOR_END = re.compile(
    r"\b(?:white|black|gr[ae]y|red|orange|yellow|green|olive|teal|blue|navy|purple|pink|brown|beige|gold|silver|dark|"
    r"light|bright)$"
)  # fmt: skip
JOINTS = re.compile(
    r"(\s*[,;]\s+(?:and |while |who |which )?|\s+(?=(?:with|wearing|dressed|in|on|at|under|before|against|"
    r"near|beside|behind|while|is|are|and|who|that|has|his|her)\s))",
    re.IGNORECASE,
)  # fmt: skip
WEARS = re.compile(r"(?:with|in|wearing|dressed)\b", re.IGNORECASE)
VERB = re.compile(r"\s*(\w+(?:s|ing)\b.*)$")
OPENING = re.compile(
    r"^(?:(?:the|this) (?:image|picture|frame|photo|video) (?:depicts|shows|features|captures)\s+"
    r"|in (?:the|this) (?:image|picture|frame|photo|video),?\s+)",
    re.IGNORECASE,
)
NOTHING = re.compile(r"(?:a person|they|it)?", re.IGNORECASE)
DANGLING = re.compile(
    r"[\s,;.]*(?:\b(?:with|wearing|dressed|in|and|while|who|that|has|is|are)\b[\s,;.]*)*$", re.I
)


def merge(captions: Sequence[str]) -> str:
    """The caption that agrees most with the others, without what fewer than half of them say."""
    captions = [caption for caption in captions if caption.strip()]
    if len(captions) < 3:
        return captions[0] if captions else ""
    split = [clauses(caption) for caption in captions]
    support = [[sum(says(other, clause) for other in split) for clause in caption] for caption in split]
    best = max(range(len(split)), key=lambda i: (sum(support[i]) / max(len(split[i]), 1), -i))
    agreed = [clause for clause, n in zip(split[best], support[best], strict=True) if 2 * n >= len(split)]
    return joined(agreed) if agreed and agreed[0] == split[best][0] else captions[best]


def clauses(caption: str) -> list[str]:
    """The parts between commas, semicolons and full stops."""
    return [part for part in re.split(r"\s*[,;]\s+|\.\s+|\.$", caption.strip()) if part]


def joined(parts: Sequence[str]) -> str:
    return ", ".join(parts)


def says(caption: Sequence[str], clause: str) -> bool:
    """Whether a caption has this clause or one much like it."""
    return any(clause == other or SequenceMatcher(None, clause, other).ratio() >= SAME for other in caption)


def scene_words(caption: str) -> str:
    """The caption without anybody's looks: scene, framing and action, of "a person"."""
    text = PRONOUN.sub("they", SUBJECT.sub("a person", caption.strip().rstrip(".")))
    text = OPENING.sub("", text)
    sentences = [without_looks(sentence) for sentence in re.split(r"\.\s+", text)]
    return ". ".join(sentence for sentence in sentences if not NOTHING.fullmatch(sentence))


def without_looks(sentence: str) -> str:
    """The pieces of a sentence, between commas and little words, that name nobody's looks."""
    if sentence.startswith("they ") and LOOKS.search(sentence):
        return ""
    kept, mark, dropped = "", "", False
    for joint, piece in pieces(sentence):
        if LOOKS.search(piece) or (dropped and not joint and only_color(piece)):
            dropped, mark = True, joint or mark
            piece = after_looks(piece)
            if not piece:
                continue
        if kept:
            kept += f"{joint or mark} "
        kept, mark, dropped = kept + piece, "", False
    kept = re.sub(r"^a person, (is|are)\b", r"a person \1", DANGLING.sub("", kept))
    return re.sub(r"\s+([,;])", r"\1", " ".join(kept.split()))


def pieces(sentence: str) -> list[tuple[str, str]]:
    """(comma before it, piece); two colors of one thing stay together."""
    parts = JOINTS.split(sentence)
    found = [("", parts[0])]
    for joint, piece in zip(parts[1::2], parts[2::2], strict=True):
        if not joint.strip() and piece.startswith("and ") and COLOR_END.search(found[-1][1]):
            found[-1] = (found[-1][0], f"{found[-1][1]} {piece}")
        else:
            found.append((joint.strip(), piece))
    return found


def after_looks(piece: str) -> str:
    """What is done after looks are named: "stands" of "with glasses stands"."""
    last = list(LOOKS.finditer(piece))[-1:] if WEARS.match(piece) else []
    verb = VERB.match(piece[last[0].end() :]) if last else None
    return verb[1] if verb else ""


def only_color(piece: str) -> bool:
    """Whether a piece goes on with a list of looks: "and black" after a dropped "in a white shirt"."""
    return re.fullmatch(r"and (?:[\w-]+\s*){1,2}", piece.strip(), re.IGNORECASE) is not None
