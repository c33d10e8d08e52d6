"""SentencePiece BPE models (`tokenizer.model`, as Llama's): read, encode, decode, learn, write.

Ids are those of the slow LlamaTokenizer of transformers 4.30, with which MiniGPT-v2 was made and run: every
text is encoded on its own, so it starts with a word-start piece, and literal <s> and </s> are control tokens.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dreamoving_cli.errors import WeightsError

SPACE = "\u2581"  # how pieces write a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # SentencePiece's types of pieces
BPE = 2  # its model type


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary of pieces, merged best score first."""

    pieces: tuple[Piece, ...]
    add_space: bool = True  # before every text
    squeeze: bool = False  # runs of spaces to one
    ids: dict[str, int] = field(init=False)
    whole: re.Pattern[str] | None = field(init=False)  # pieces that are never split

    def __post_init__(self) -> None:
        own = sorted((p.text for p in self.pieces if p.kind == USER_DEFINED), key=len, reverse=True)
        object.__setattr__(self, "ids", {piece.text: i for i, piece in enumerate(self.pieces)})
        object.__setattr__(self, "whole", re.compile("|".join(map(re.escape, own))) if own else None)

    @property
    def bos(self) -> int:
        return self.ids["<s>"]

    @property
    def eos(self) -> int:
        return self.ids["</s>"]

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens that it spells out are themselves."""
        ids: list[int] = []
        for part in re.split(r"(</?s>|<unk>)", text):
            if part in ("<s>", "</s>", "<unk>"):
                ids.append(self.ids[part])
            elif part:
                ids += self._encode_plain(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, control tokens left out."""
        out, raw = "", bytearray()
        for index in ids:
            piece = self.pieces[index]
            if piece.kind == BYTE:
                raw.append(int(piece.text[3:5], 16))
                continue
            out += _utf8(raw)
            raw.clear()
            if piece.kind not in (CONTROL, UNKNOWN):
                out += piece.text
        return (out + _utf8(raw)).replace(SPACE, " ").removeprefix(" " if self.add_space else "")

    def _encode_plain(self, text: str) -> list[int]:
        if self.squeeze:
            text = re.sub(" +", " ", text).strip(" ")
        text = (SPACE if self.add_space else "") + text.replace(" ", SPACE)
        return [index for symbol in self._merged(self._symbols(text)) for index in self._ids_of(symbol)]

    def _symbols(self, text: str) -> list[tuple[str, bool]]:
        """Single letters, and the pieces that are never split; (text, may be merged)."""
        if self.whole is None:
            return [(letter, True) for letter in text]
        symbols: list[tuple[str, bool]] = []
        end = 0
        for match in self.whole.finditer(text):
            symbols += [(letter, True) for letter in text[end : match.start()]]
            symbols.append((match[0], False))
            end = match.end()
        return symbols + [(letter, True) for letter in text[end:]]

    def _merged(self, symbols: list[tuple[str, bool]]) -> list[str]:
        """Merge the neighbors whose union has the best score, the leftmost of equals, until none has one."""
        while True:
            best, at = None, -1
            for i, ((left, left_free), (right, right_free)) in enumerate(pairwise(symbols)):
                index = self.ids.get(left + right) if left_free and right_free else None
                if index is None or self.pieces[index].kind not in (NORMAL, USER_DEFINED):
                    continue
                if best is None or self.pieces[index].score > best:
                    best, at = self.pieces[index].score, i
            if at < 0:
                return [text for text, _ in symbols]
            symbols[at : at + 2] = [(symbols[at][0] + symbols[at + 1][0], True)]

    def _ids_of(self, symbol: str) -> list[int]:
        """The piece's id; what is no piece is spelled in bytes."""
        index = self.ids.get(symbol)
        if index is not None and self.pieces[index].kind in (NORMAL, USER_DEFINED):
            return [index]
        spelled = [self.ids.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
        return [self.ids["<unk>"] if i is None else i for i in spelled] if spelled else []


def _utf8(raw: bytearray) -> str:
    """Bytes as text; each byte that is no part of a letter is one replacement mark."""
    out, rest = "", bytes(raw)
    while rest:
        try:
            return out + rest.decode()
        except UnicodeDecodeError as error:
            out += rest[: error.start].decode() + "\ufffd"
            rest = rest[error.start + 1 :]
    return out


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a SentencePiece file."""
    try:
        return parse_tokenizer(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    except (ValueError, IndexError, struct.error, KeyError) as error:
        raise WeightsError(
            f"{path} is not a SentencePiece model of the BPE kind", "Fetch it again, or give tokenizer.model."
        ) from error


def parse_tokenizer(data: bytes) -> Tokenizer:
    """The tokenizer in the bytes of a SentencePiece file (a protocol buffer)."""
    pieces: list[Piece] = []
    kind = 0
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            entry: dict[int, Any] = dict(_fields(value))
            score = struct.unpack("<f", entry.get(2, b"\0\0\0\0"))[0]
            pieces.append(Piece(entry[1].decode(), score, entry.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            kind = int(dict(_fields(value)).get(3, 1))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if kind != BPE or not pieces:
        raise ValueError("no BPE model")
    tokenizer = Tokenizer(tuple(pieces), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))
    if not {"<unk>", "<s>", "</s>"} <= tokenizer.ids.keys():
        raise ValueError("no control tokens")
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields: varints as int, all others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def learn_tokenizer(sentences: Iterable[str], whole: Sequence[str], size: int) -> Tokenizer:
    """At most `size` pieces: bytes, `whole` ones that are never split, merges of `sentences`."""
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [Piece(text, 0.0, USER_DEFINED) for text in dict.fromkeys(whole)]
    words = _words(sentences, Tokenizer(tuple(pieces)))
    letters = sorted({letter for word in words for letter in word} | {SPACE, *map(chr, range(33, 127))})
    merges: list[str] = []
    room = size - len(pieces) - len(letters)
    while len(merges) < room and (pair := _best_pair(words)):
        merges.append("".join(pair))
        words = Counter({_joined(word, pair): count for word, count in words.items()})
    pieces += [Piece(text, -float(i)) for i, text in enumerate([*merges, *letters])]
    return Tokenizer(tuple(pieces))


def _words(sentences: Iterable[str], tokenizer: Tokenizer) -> Counter[tuple[str, ...]]:
    """How often each word occurs, as letters; a word begins with its space."""
    counts: Counter[tuple[str, ...]] = Counter()
    for sentence in sentences:
        run = "".join(
            s if free else "\0" for s, free in tokenizer._symbols(SPACE + sentence.replace(" ", SPACE))
        )
        counts.update(tuple(word) for word in re.findall(f"{SPACE}?[^{SPACE}\0]+", run))
    return counts


def _best_pair(words: Counter[tuple[str, ...]]) -> tuple[str, str] | None:
    """The most frequent neighbors; of equals, the first in the alphabet."""
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    return min(pairs, key=lambda pair: (-pairs[pair], pair)) if pairs else None


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def write_tokenizer(tokenizer: Tokenizer) -> bytes:
    """The bytes of a SentencePiece file."""
    out = bytearray()
    for piece in tokenizer.pieces:
        text = piece.text.encode()
        entry = b"\x0a" + _length(text) + text + b"\x15" + struct.pack("<f", piece.score)
        entry += b"\x18" + bytes([piece.kind])
        out += b"\x0a" + _length(entry) + entry
    trainer = b"\x18" + bytes([BPE]) + b"\x98\x02\x01"  # field 35: what is no piece is spelled in bytes
    normalizer = (
        b"\x0a\x08identity" + b"\x18" + bytes([tokenizer.add_space]) + b"\x20" + bytes([tokenizer.squeeze])
    )
    for tag, message in ((b"\x12", trainer), (b"\x1a", normalizer)):
        out += tag + _length(message) + message
    return bytes(out)


def _length(message: bytes) -> bytes:
    out, rest = bytearray(), len(message)
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])
