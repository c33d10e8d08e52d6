"""What commands share: how a result is shown, and that log lines are talk."""

import gc
import json
import logging
import sys
from dataclasses import dataclass
from fractions import Fraction

import pytest

from dreamoving_cli.terminal import Talk, facts, imports_that_last, show


@dataclass(frozen=True)
class Result:
    fps: Fraction
    notes: list[str]
    pictures: list[str]


RESULT = facts(Result(Fraction(30000, 1001), ["one", "two"], []))


def test_a_result_is_aligned_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(RESULT, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "fps       30000/1001",
        "notes     one",
        "          two",
        "pictures  none",
    ]


def test_a_result_is_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    show(RESULT, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "fps": "30000/1001",
        "notes": ["one", "two"],
        "pictures": [],
    }


def test_log_lines_are_talk(capsys: pytest.CaptureFixture[str]) -> None:
    Talk().handle(logging.makeLogRecord({"msg": "cropped to %d", "args": (64,)}))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "cropped to 64\n")


def test_what_is_imported_is_frozen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with imports_that_last():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "torch", gc)  # as an import does
    assert gc.isenabled()
    assert frozen == [False]
    with imports_that_last():
        assert gc.isenabled()
    assert len(frozen) == 1
