"""What the README says is so: its commands parse, its tree is the tree, its tasks are the Makefile's."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from dreamoving_cli.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^    |`)(dreamoving (?:[a-z-]+ )+[^`#\n>]*)", README, re.M)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    if "|" in line or "NAME." in line:
        return  # several commands in one, or a name to fill in
    group = typer.main.get_command(app)
    _, *words = shlex.split(line)
    context = group.make_context("dreamoving", words[:1], resilient_parsing=True)
    name, command, _ = group.resolve_command(context, words)
    if not isinstance(command, type(group)):
        command.make_context(name, words[1:], parent=context)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def tree() -> set[str]:
    """The entries of the README's tree under dreamoving_cli/."""
    block = README.split("```")[1]
    return set(re.findall(r"^  ([a-z_]+(?:\.py|/))", block, re.M))


def test_the_tree_is_complete() -> None:
    package = ROOT / "dreamoving_cli"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.parent.name}/" for path in package.glob("*/*.py")}
    assert tree() >= modules | folders


def test_the_reading_order_exists() -> None:
    order = README.split("One render in reading order:")[1].split("[docs")[0]
    files = re.findall(r"`([a-z_/]+\.py)`", order)
    assert len(files) >= 10
    assert all((ROOT / "dreamoving_cli" / name).is_file() for name in files)


def test_linked_files_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_make_without_a_task_lists_the_tasks() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert ".DEFAULT_GOAL := list" in makefile
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)\b", README, re.M))
    assert named <= set(re.findall(r"^([a-z-]+):.*##", makefile, re.M))
    assert named >= {"demo", "test"}
