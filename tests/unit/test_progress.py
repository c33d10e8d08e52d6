"""Progress: plain lines are few and say what is left."""

import pytest

from dreamoving_cli.progress import clock_time, plain_lines, progress


def test_plain_lines_are_the_ends_and_one_every_ten_seconds() -> None:
    now = [0.0]
    lines: list[str] = []
    on_progress = plain_lines(lines.append, clock=lambda: now[0])
    for step in range(41):
        now[0] = float(step)
        on_progress("denoise", step, 40)
    assert lines == [
        "denoise: 0/40",
        "denoise: 10/40, 0:30 left",
        "denoise: 20/40, 0:20 left",
        "denoise: 30/40, 0:10 left",
        "denoise: 40/40",
    ]


def test_stages_do_not_hide_each_other() -> None:
    lines: list[str] = []
    on_progress = plain_lines(lines.append, clock=lambda: 0.0)
    on_progress("pose", 1, 2)
    on_progress("encode", 1, 2)
    assert lines == ["pose: 1/2", "encode: 1/2"]


def test_without_a_terminal_progress_is_plain_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as on_progress:
        on_progress("decode [x]", 3, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "decode [x]: 3/3\n"


@pytest.mark.parametrize(("duration_s", "text"), [(6.6, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_clock_time(duration_s: float, text: str) -> None:
    assert clock_time(duration_s) == text
