"""`dreamoving caption`, and the prompt of a render, with a random captioner."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dreamoving_cli import paths
from dreamoving_cli.caption import for_render, models
from dreamoving_cli.caption.describe import Describer
from dreamoving_cli.caption.models import Chosen
from dreamoving_cli.cli import app
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.models.minigpt.home import Home
from dreamoving_cli.models.minigpt.load import save_captioner
from dreamoving_cli.options import RenderOptions
from tests.captioners import random_captioner


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    save_captioner(random_captioner(), folder)
    return folder


@pytest.fixture
def run(captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    return lambda *words: CliRunner().invoke(app, ["caption", "--model", str(captioner), *map(str, words)])


@pytest.fixture
def clip(make_video: Callable[..., Path]) -> Path:
    return make_video("clip.mp4", 24)


def test_a_video_in_words(run: Callable[..., Any], clip: Path) -> None:
    result = run(clip, "--frames", 3, "--format", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [frame["frame"] for frame in told["frames"]] == [4, 12, 20]
    assert told["model"]
    assert told["prompt"].startswith("[grounding] describe this frame")
    assert run(clip, "--frames", 3, "--format", "json").stdout == result.stdout
    assert "model: " in result.stderr
    drawn = [run(clip, "--frames", 1, "--sample", "--seed", seed).stdout for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]


def test_a_run_that_was_cut_off_goes_on(
    run: Callable[..., Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "captions.jsonl", Describer.answers
    seen: list[int] = []

    def cut_off(self: Describer, shown: list[np.ndarray], group: Any) -> list[str]:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(group))
        return asked(self, shown, group)

    monkeypatch.setattr(Describer, "answers", cut_off)
    assert run(clip, "--every", 0.1, "--out", out).exit_code == 130
    assert not out.exists()
    monkeypatch.setattr(Describer, "answers", asked)
    again = Describer.batches
    left: list[int] = []

    def counted(self: Describer, path: Path, wanted: Any) -> Any:
        left.append(len(wanted))
        return again(self, path, wanted)

    monkeypatch.setattr(Describer, "batches", counted)
    result = run(clip, "--every", 0.1, "--out", out)
    assert result.stdout.strip() == str(out)
    frames = out.read_text().splitlines()
    assert left == [len(frames) - seen[0]]
    assert sorted(p.name for p in tmp_path.glob("captions*")) == ["captions.jsonl"]
    assert run(clip, "--out", out).exit_code == 6
    assert run(clip, "--out", out, "--skip-existing").exit_code == 0
    assert run(clip, "--out", out, "--overwrite").exit_code == 0


def test_of_many_the_broken_one_is_named(run: Callable[..., Any], clip: Path, text_video: Path) -> None:
    text_video.rename(clip.with_name("broken.mp4"))
    Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(clip.with_name("photo.png"))
    result = run(clip.parent, "--format", "csv")
    assert result.exit_code == 3
    assert "broken.mp4" in result.stderr
    assert "1 of 3 inputs failed" in result.stderr
    assert len(result.stdout.splitlines()) == 1 + 4 + 1


def test_the_preview_shows_frames(run: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    result = run(clip, "--preview", tmp_path / "boxes.png", "--grounding", "plain")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "boxes.png").size == (4 * 64, 48)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("absent.mp4",), 3, "absent.mp4"),
        (("absent.jpg",), 3, "absent.jpg does not exist"),
        (("empty.jpg",), 3, "is not a picture that can be read"),
        (("*.png",), 3, "no picture or video"),
        (("clip", "--frames", "0"), 2, "frames is 0"),
        (("clip", "--every", "x"), 2, "every is 'x'"),
        (("clip", "--every", "1", "--frames", "2"), 2, "Give one of them"),
        (("clip", "--preview", "boxes.xyz"), 6, "'.xyz' is not a picture format"),
        (("clip", "--format", "xml"), 2, "Choose text, json"),
        (("clip", "--grounding", "no"), 2, "Choose boxes or plain"),
        (("clip", "--model", "gpt"), 2, "Choose auto, minigpt-v2"),
        (("clip", "--bits", "3"), 2, "Give 8 or 4"),
        (("clip", "--offload"), 2, "It is for --device cuda"),
        (("clip", "--dtype", "int8"), 2, "Give auto, fp32, bf16, fp16"),
        (("clip", "--model", "minigpt-v2"), 4, "dreamoving models pull eva_vit_g"),
    ],
)
def test_refusals(
    words: tuple[str, ...], code: int, sentence: str, run: Callable[..., Any], clip: Path
) -> None:
    Path("empty.jpg").write_bytes(b"")
    result = run(*(str(clip) if word == "clip" else word for word in words))
    assert result.exit_code == code, result.output
    assert "model: " not in result.stderr or code == 3  # what can be refused at once is
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("device", "installed", "trained", "expected"),
    [
        ("cuda", True, True, models.FULL),
        ("cpu", True, True, models.MINI),
        ("cuda", False, True, models.MINI),
        ("cpu", True, False, models.FULL),
        ("cpu", False, False, models.MINI),
    ],
)
def test_which_captioner_auto_takes(
    device: str, installed: bool, trained: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "is_installed", lambda: installed)
    monkeypatch.setattr(models, "has_mini", lambda: trained)
    name, why = models.automatic(device)
    assert name == expected
    assert ("there is no CUDA device" in why) == (name == models.MINI and device == "cpu")


def test_the_miniature_that_ships(clip: Path) -> None:
    result = CliRunner().invoke(
        app, ["caption", str(clip), "--model", "mini", "--frames", "1", "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["model"] == "mini"
    assert "is dancing" in told["caption"]
    [phrase] = told["frames"][0]["phrases"]
    assert phrase["words"] in ("a man", "a woman")
    assert all(0 <= number <= 100 for number in phrase["boxes"][0])


def test_without_a_miniature_the_way_to_one_is_told(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MINI_CAPTIONER", tmp_path / "none")
    result = CliRunner().invoke(app, ["caption", str(clip), "--model", "mini"])
    assert (result.exit_code, "dreamoving models pull caption" in result.stderr) == (4, True)


def test_memory_is_told_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 GiB of numbers, 6 of them in Llama's layers; what helps is named with what it takes, if it fits."""
    import torch

    from dreamoving_cli import device
    from dreamoving_cli.models.minigpt import checkpoint

    shapes = {"llama_model.lm_head.weight": torch.empty(2**29, device="meta")}
    shapes |= {
        f"llama_model.model.layers.{i}.mlp.up_proj.weight": torch.empty(2**31, device="meta")
        for i in range(3)
    }
    shapes["visual_encoder.blocks.0.mlp.fc1.weight"] = torch.empty(2**29, device="meta")
    monkeypatch.setattr(checkpoint, "assembled_shapes", lambda files: shapes)
    files: Any = None
    free = {"cpu": 20.0, "cuda": 9.0}
    monkeypatch.setattr(device, "available_gib", lambda on: free[on.type])
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    told = models.fits(files, Home(cpu, torch.bfloat16))
    assert told == "bfloat16 on cpu: 15.5 GiB (20.0 GiB free)"
    wide = r"float32 on cpu\) needs 29.5 GiB, and 20.0 GiB are free on cpu\. Give --dtype bf16 \(15.5 GiB\)"
    with pytest.raises(DeviceMemoryError, match=wide):
        models.fits(files, Home(cpu))
    free["cpu"] = 10.0
    with pytest.raises(
        DeviceMemoryError, match=r"Give --dtype bf16 --bits 8 \(9.5 GiB\), --dtype bf16 --bits 4"
    ):
        models.fits(files, Home(cpu))
    with pytest.raises(
        DeviceMemoryError, match=r"free on cuda\. Give --bits 4 \(6.6 GiB\), another --device"
    ):
        models.fits(files, Home(cuda, torch.float16))
    free["cpu"] = 14.0
    with pytest.raises(DeviceMemoryError, match=r"Give --offload \(6.5 GiB\), --bits 4"):
        models.fits(files, Home(cuda, torch.float16))
    told = models.fits(files, Home(cuda, torch.float16, offload=True))
    assert told.endswith("6.5 GiB (9.0 GiB free), 13.0 GiB of the CPU's memory (14.0 GiB free)")
    free["cpu"] = 12.0
    with pytest.raises(DeviceMemoryError, match=r"13\.0 GiB of the CPU's memory, and 12\.0 GiB are free"):
        models.fits(files, Home(cuda, torch.float16, offload=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_and_less_precision_run_too(bits: int, clip: Path) -> None:
    words = ["caption", str(clip), "--model", "mini", "--frames", "1", "--bits", str(bits), "--dtype", "bf16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "is dancing" in result.stdout


SAID = "a woman in a red dress is dancing, full body, before a plain gray background"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, captioner: Path) -> None:
    """A captioner that says SAID."""
    monkeypatch.setattr(paths, "MINI_CAPTIONER", captioner)
    monkeypatch.setattr(models, "MINI_CAPTIONER", captioner)
    monkeypatch.setattr(Describer, "answers", lambda self, shown, group: [SAID] * len(group))


@pytest.mark.usefixtures("said")
def test_a_render_takes_the_scene_from_its_driver(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    options = RenderOptions(pose=clip)
    prompt, note = for_render.footage_prompt(options, "force")
    assert prompt == "a person is dancing, full body, before a plain gray background"
    assert "clip.mp4 (model: mini" in note
    assert for_render.footage_prompt(options, "auto") == (None, "")  # MiniGPT-v2 is not here
    assert for_render.footage_prompt(options, "off") == (None, "")
    assert for_render.footage_prompt(options.replace(pose_kind="map"), "auto") == (None, "")


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("mode", ["auto", "force"])
def test_where_minigpt_is_here_it_is_asked(mode: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Chosen(models.FULL, Path(), Home(), "model: minigpt-v2, 14.5 GiB")
    monkeypatch.setattr(for_render, "is_installed", lambda: True)
    monkeypatch.setattr(for_render, "choose_captioner", lambda model, machine: full)
    prompt, note = for_render.footage_prompt(RenderOptions(pose=clip), mode)
    assert prompt is not None
    assert "dress" not in prompt
    assert "14.5 GiB" in note


@pytest.mark.usefixtures("said")
def test_the_prompt_is_shown_and_planned(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["render", "--pose", str(clip), "--pose-kind", "map", "--dry-run"]
    (tmp_path / "prompt.txt").write_text("on a beach\n")
    result = CliRunner().invoke(app, [*words, "--prompt-file", "prompt.txt"])
    assert "prompt, from prompt.txt: on a beach" in result.stderr
    both = CliRunner().invoke(app, [*words, "--prompt-file", "prompt.txt", "--prompt", "in a park"])
    assert both.exit_code == 2
    wrong = CliRunner().invoke(app, [*words, "--caption", "no"])
    assert (wrong.exit_code, "Choose auto, off, force" in wrong.stderr) == (2, True)
    nothing = CliRunner().invoke(app, [*words, "--caption", "force"])
    assert (nothing.exit_code, "no footage to caption" in nothing.stderr) == (2, True)
