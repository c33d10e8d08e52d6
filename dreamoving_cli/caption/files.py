"""Captions as text, JSON, JSON lines and CSV; and those of a run that was cut off.

Not here: what a caption is (describe.py).
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from dreamoving_cli import prompts
from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.whole import writing

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "jsonl", ".csv": "csv"}  # by the output's extension
COLUMNS = ("file", "model", "frame", "time_s", "caption", "phrases")
PARTIAL = ".captions.part"  # after the output's name


def chosen_format(asked: str | None, out: Path | None) -> str:
    """The asked format, else that of the output's extension, else text."""
    if asked is None:
        return FORMATS.get(out.suffix.lower(), "text") if out else "text"
    if asked not in FORMATS.values():
        raise UsageError(f"format is '{asked}'", f"Choose {', '.join(FORMATS.values())}.")
    return asked


def written(clips: Sequence[Mapping[str, Any]], form: str) -> str:
    """All clips in this format, each the plain values of a ClipWords."""
    if form == "json":
        content = clips[0] if len(clips) == 1 else clips
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(clips))
    if form == "csv":
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(
            {**row, "phrases": json.dumps(row["phrases"], ensure_ascii=False)} for row in rows(clips)
        )
        return text.getvalue()
    alone = len(clips) == 1
    return "".join(
        f"{clip['caption']}\n" if alone else f"{clip['file']}: {clip['caption']}\n" for clip in clips
    )


def rows(clips: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a frame."""
    for clip in clips:
        for frame in clip["frames"]:
            yield {"file": clip["file"], "model": clip["model"], **frame}


def read_prompt(path: Path) -> str:
    """The prompt in a file: a text, or what `caption` wrote and somebody may have edited."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"prompt file {path} cannot be read: {reason}", "Give a text file.") from error
    form = FORMATS.get(path.suffix.lower(), "text")
    try:
        prompt = {"json": _of_json, "jsonl": _of_lines, "csv": _of_table}.get(form, _of_text)(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no {form} of captions", "Give a text, or what 'dreamoving caption' wrote."
        ) from error
    if not prompt:
        raise InputError(f"{path} holds no prompt", "Write one line of words into it.")
    return prompt


def _of_text(text: str) -> str:
    """All lines as one, those that begin with # are notes; or, where it changes with time, as they are."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    parts = prompts.read("\n".join(lines))
    return prompts.written(parts) if parts else " ".join(" ".join(lines).split())


def _of_json(text: str) -> str:
    """The caption of the whole clip."""
    values = json.loads(text)
    if isinstance(values, list) and len(values) != 1:
        raise ValueError("captions of several inputs")
    return str((values[0] if isinstance(values, list) else values)["caption"]).strip()


def _of_lines(text: str) -> str:
    return _by_frame([json.loads(line) for line in text.splitlines() if line.strip()])


def _of_table(text: str) -> str:
    rows = list(csv.DictReader(io.StringIO(text)))
    if any(None in row for row in rows):
        raise ValueError("a comma outside quotes: words would be lost")
    return _by_frame(rows)


def _by_frame(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each row says, from its frame on, or, where it has none, from its time."""
    from dreamoving_cli.caption.grounding import plain

    if len({str(row.get("file", "")) for row in rows}) > 1:
        raise ValueError("captions of several inputs")
    parts = []
    for row in rows:
        words, frame = " ".join(plain(str(row["caption"])).split()), row.get("frame")
        if frame in (None, ""):
            parts.append(prompts.From(words, Fraction(str(row["time_s"]))))
        else:
            parts.append(prompts.From(words, frame=int(frame)))
    return prompts.written(parts) if parts else ""


class Partial:
    """Answers of a run, kept beside its output, so that the same command goes on where it was cut off."""

    def __init__(self, out: Path | None) -> None:
        self.path = out.with_name(out.name + PARTIAL) if out else None
        self.answers: dict[str, str] = {}
        if self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:  # the line that was being written
                    continue
                self.answers[key] = answer

    def keep(self, key: str, answer: str) -> None:
        """Remember an answer."""
        self.answers[key] = answer
        if self.path is not None:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, answer], ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """The output is whole."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
