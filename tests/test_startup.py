"""The command line starts at once: no torch, no pydantic, and little time for --help."""

import resource
import subprocess
import sys

SLOW = ("torch", "diffusers", "transformers", "numpy", "av", "cv2", "pydantic")
MAX_S = 0.4
HELP = "import sys; from dreamoving_cli.cli import app; app(['--help'], standalone_mode=False); "


def test_help_imports_nothing_slow() -> None:
    code = HELP + f"sys.exit(', '.join(name for name in {SLOW!r} if name in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"--help imported {result.stderr}"
    assert "render" in result.stdout


def test_help_of_render_imports_no_torch() -> None:
    code = (
        "import sys; from dreamoving_cli.cli import app; app(['render', '--help'], standalone_mode=False); "
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_is_quick() -> None:
    """Processor time, where one of some runs is quick: on a free machine that is what a user waits for."""
    took: list[float] = []
    while not took or (took[-1] >= MAX_S and len(took) < 8):
        took.append(help_cpu_s())
    assert took[-1] < MAX_S, f"dreamoving --help took {min(took):.2f} s"


def help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dreamoving_cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
