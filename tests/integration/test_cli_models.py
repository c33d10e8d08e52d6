"""The `models` commands against a server that stands in for the hub; some in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.models_command import models_app
from dreamoving_cli.paths import LOCK
from dreamoving_cli.weights import store
from dreamoving_cli.weights.lock import LOCK_VARIABLE, Lock
from tests import hub_server as server
from tests.hub_server import Hub, at_hub, content, file, hub, sha256, write_lock

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).parents[2]
ONE, TWO, BIG = content(1, 5000), content(2, 6000), content(3, 2_000_000)


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, ["models", *map(str, words)])


@pytest.fixture
def lock(hub: Hub) -> Lock:
    for name, data in (
        ("one.bin", ONE),
        ("two.bin", TWO),
        ("big.bin", BIG),
        ("eva.pth", b"eva"),
        ("r.bin", b"r"),
    ):
        hub.add("team/repo", name, data)
    return write_lock(
        file("a.one", ONE, at_hub("one.bin")),
        file("a.two", TWO, at_hub("two.bin"), default=False),
        file("big", BIG, at_hub("big.bin"), groups=("pose",)),
        file("eva", None, at_hub("eva.pth"), groups=("caption",)),
        file("r", b"r", at_hub("r.bin"), groups=("face",), license="research", commercial="no"),
    )


def rows(result: Any) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_from_plan_to_prune(run: Callable[..., Any], lock: Lock, tmp_path: Path) -> None:
    told = rows(run("plan", "a", "--json"))
    assert [(step["id"], step["state"]) for step in told["files"]] == [("a.one", "fetch"), ("a.two", "fetch")]
    assert (told["fetch_bytes"], told["fits"]) == (11_000, True)

    pulled = run("pull")
    assert pulled.stdout.split() == ["a.one", "big"]  # of the groups of every day, the usual choices
    assert "all files, MB: 2/2" in pulled.stderr
    assert set(rows(run("pull", "a", "--json"))) == {"a.one", "a.two"}
    assert Path(run("path", "a.two").stdout.strip()).read_bytes() == TWO

    listed = rows(run("list", "--json"))
    assert {name: row["here"] for name, row in listed.items()} | {"mini": True} == {
        "mini": True, "a.one": True, "a.two": True, "big": True, "eva": False, "r": False,
    }  # fmt: skip
    assert "unlocked" in run("list", "caption").stdout
    assert rows(run("verify", "--full", "--json")) == {"a.one": "ok", "a.two": "ok", "big": "ok"}
    assert rows(run("du", "--json"))["total"] == 11_000 + len(BIG)

    assert run("export", "out.tar", "a.one", "big").stdout == "out.tar\n"
    dry = run("prune", "a", "--json")
    assert sorted(item["size_bytes"] for item in rows(dry)["files"]) == [5000, 6000]
    assert rows(dry)["deleted"] is False
    assert store.is_here(lock.find("a.one"))
    assert "removed" in run("prune", "a", "--delete").stderr
    assert not store.is_here(lock.find("a.one"))
    assert run("import", "out.tar").stdout.split() == ["a.one", "big"]


@pytest.mark.parametrize(("words", "code", "said"), [
    (["pull", "eva"], 4, "--allow-unlocked eva"),
    (["pull", "r"], 8, "dreamoving models accept research"),
    (["pull", "a", "--offline"], 9, "'a.one', 'a.two' not here and --offline is given"),
    (["path", "big", "--offline"], 9, "dreamoving models import weights.tar"),
    (["pull", "nothing"], 2, "no group or file 'nothing'"),
    (["verify", "a.one"], 4, "dreamoving models pull a.one"),
    (["accept", "nobody"], 4, "To be accepted: research"),
    (["import", "absent.bin"], 3, "is not there"),
    (["export", "out.tar", "a"], 4, "dreamoving models pull a.one a.two"),
])  # fmt: skip
def test_refusals_have_a_remedy_and_a_code(
    run: Callable[..., Any], lock: Lock, hub: Hub, words: list[str], code: int, said: str
) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout if words[0] != "verify" else "") == (code, "")
    assert said in result.stderr
    assert hub.asked == []


@pytest.mark.parametrize(("status", "code"), [(401, 8), (403, 8), (404, 4)])
def test_answers_of_the_hub_have_codes(
    run: Callable[..., Any], lock: Lock, hub: Hub, status: int, code: int
) -> None:
    hub.troubles[f"/team/repo/resolve/{server.COMMIT}/one.bin"] = [server.answer(status)]
    assert run("pull", "a.one").exit_code == code


def test_wrong_bytes_have_a_code(run: Callable[..., Any], lock: Lock, hub: Hub) -> None:
    hub.troubles[f"/team/repo/resolve/{server.COMMIT}/one.bin"] = [server.other_bytes]
    assert run("pull", "a.one").exit_code == 7
    assert run("pull", "a.one").exit_code == 0
    store.blob_path(sha256(ONE)).write_bytes(TWO)
    assert run("verify").exit_code == 7


def test_terms_are_accepted_once(run: Callable[..., Any], lock: Lock) -> None:
    assert rows(run("licenses", "--json"))["research"] == {
        "id": "research", "name": "Research only", "accept": True, "accepted": False, "files": ["r"],
    }  # fmt: skip
    assert run("pull", "face", "--commercial").stdout == ""
    assert run("pull", "r", "--accept-license", "research").stdout == "r\n"
    assert "accepted" in run("licenses").stdout
    assert run("pull", "eva", "--allow-unlocked", "eva").stdout == "eva\n"


def test_lock_checks_and_renews_itself(run: Callable[..., Any], lock: Lock, tmp_path: Path, hub: Hub) -> None:
    path = tmp_path / "models.lock"
    assert rows(run("lock", "--json"))["id"] == lock.id
    path.write_text(path.read_text().replace('id = "eva"', 'id = "eva_g"'))
    assert "lock_id in the file is another one" in run("lock").stderr
    assert run("lock", "--refresh", "eva_g", "--out", "new.lock").exit_code == 0
    assert f'sha256 = "{sha256(b"eva")}"' in (tmp_path / "new.lock").read_text()
    hub.files[f"/team/repo/resolve/{server.COMMIT}/one.bin"] = TWO
    changed = run("lock", "--refresh", "a.one", "--json")
    assert changed.exit_code == 7
    assert [each["what"] for each in json.loads(changed.stdout)["findings"]] == ["changed", "changed"]


def test_names_are_completed(run: Callable[..., Any], lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DREAMOVING_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dreamoving models pull a")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert CliRunner().invoke(app, prog_name="dreamoving").stdout.split() == ["a.one", "a.two"]


def test_files_of_ones_own_take_the_place_of_public_ones(
    run: Callable[..., Any], lock: Lock, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.bin").write_bytes(b"mine")
    assert run("lock", "--own", "big=mine.bin", "--own", "eva=mine.bin").exit_code == 2
    made = run("lock", "--own", "big=mine.bin", "--out", "own.lock", "--json")
    assert rows(made)["id"] != lock.id
    monkeypatch.setenv(LOCK_VARIABLE, str(tmp_path / "own.lock"))
    assert run("import", "mine.bin").stdout == "big\n"
    assert Path(run("path", "big").stdout.strip()).read_bytes() == b"mine"
    assert run("lock").stderr == ""
    assert run("lock", "--own", "big").exit_code == 2
    assert run("lock", "--own", "big=nothing.bin").exit_code == 3
    assert hub.asked == []


@pytest.mark.parametrize("name", sorted(command.name or "" for command in models_app.registered_commands))
def test_every_command_has_help(run: Callable[..., Any], name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"models {name}" in result.stdout


# ---- processes of their own


def start(hub: Hub, *words: str) -> "subprocess.Popen[str]":
    """`dreamoving models ...` as a user starts it, with the stand-in for the hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(Path.cwd() / "hub")}
    command = [sys.executable, "-m", "dreamoving_cli", "models", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_two_processes_fetch_a_file_once(run: Callable[..., Any], lock: Lock, hub: Hub) -> None:
    address = f"/team/repo/resolve/{server.COMMIT}/big.bin"
    hub.troubles[address] = [server.slow(200_000, 0.1)]
    both = [start(hub, "pull", "big") for _ in range(2)]
    for process in both:
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout) == (0, "big\n"), stderr
    assert hub.sent[address] == len(BIG)
    assert store.blob_path(sha256(BIG)).read_bytes() == BIG


def test_a_killed_fetch_goes_on_where_it_was(run: Callable[..., Any], lock: Lock, hub: Hub) -> None:
    address = f"/team/repo/resolve/{server.COMMIT}/big.bin"
    hub.troubles[address] = [server.slow(100_000, 0.1)]
    process = start(hub, "pull", "big")
    part = store.part_path(sha256(BIG))
    deadline = time.monotonic() + 100
    while not (part.is_file() and part.stat().st_size > 300_000):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = part.stat().st_size
    assert not store.blob_path(sha256(BIG)).exists()
    assert BIG.startswith(part.read_bytes())

    before = hub.sent[address]
    result = run("pull", "big")
    assert result.exit_code == 0, result.stderr
    assert hub.gets(address)[-1].range == f"bytes={there}-"
    assert hub.sent[address] - before <= len(BIG) - there + 200_000  # pieces on their way when it was killed
    assert store.blob_path(sha256(BIG)).read_bytes() == BIG
    assert not part.exists()


def test_the_shipped_lock_answers_on_the_command_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, str(LOCK))
    told = rows(run("plan", "--json"))
    assert told["fetch_bytes"] > 8e9
    assert {step["state"] for step in told["files"]} == {"fetch"}
    assert (
        rows(run("list", "long", "--json"))["motion.long.lt_long_mm_16_64_frames"]["motion"]["frames"] == 64
    )
