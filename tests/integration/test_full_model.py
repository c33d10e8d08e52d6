"""The full model from public files, through the command line: random weights, real layouts, reduced width."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import read_image, write_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.paths import LOCK
from dreamoving_cli.preview import Previews
from dreamoving_cli.weights import file_sha256
from dreamoving_cli.weights.lock import LOCK_VARIABLE, Lock, lock_text, read_lock
from tests import checkpoints as public

QUICK = ("--device", "cpu", "--size", "64x64", "--frames", "3", "--steps", "1", "--seed", "4")
SD15_FILES = {
    "sd15.unet.fp16", "sd15.text_encoder.fp16", "vae.ft-mse", "sd15.tokenizer.vocab.json",
    "sd15.tokenizer.merges.txt", "motion.sd15-v2", "controlnet.openpose.fp16",
}  # fmt: skip
PICTURE_FILES = {"ip-adapter.image-encoder", "ip-adapter.plus-face", "ip-adapter.plus"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    public.write(folder)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line with a store of its own and the lock of the random files."""
    monkeypatch.setenv("DREAMOVING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DREAMOVING_LOCK", str(folder / "models.lock"))
    monkeypatch.setenv("DREAMOVING_OFFLINE", "1")
    monkeypatch.setattr("dreamoving_cli.extract.face.crop_face", lambda image, name: image[:28, :28])
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    points = np.random.default_rng(0).uniform(5, 59, (3, 1, NUM_POINTS, 2)).astype(np.float32)
    return save_poses(tmp_path / "pose.json", Poses(8, 64, 64, points, np.ones(points.shape[:3], np.float32)))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    pictures = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    return [write_image(tmp_path / f"{name}.png", x) for name, x in zip("abc", pictures, strict=True)]


def pixels(path: Path) -> np.ndarray:
    with open_clip(path) as clip:
        return clip.read(range(clip.num_frames))


def weights_in(record: Path) -> set[str]:
    return set(yaml.safe_load(record.read_text())["record"]["weights"])


def test_imported_files_render_as_sd15(
    run: Callable[..., Any],
    folder: Path,
    pose: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = run("render", "--model", "sd15", "--pose", pose, *QUICK)
    assert missing.exit_code == 4
    assert "7 weight files are not here" in missing.stderr
    assert "ip-adapter" not in missing.stderr  # nothing shows a picture
    imported = run("models", "import", folder)
    assert imported.exit_code == 0, imported.stderr

    out = tmp_path / "out.mp4"
    words = (
        "render", "--model", "sd15", "--pose", pose, *QUICK, "--out", out,
        "--face", photos[0], "--face", photos[1], "--cloth", photos[2],
    )  # fmt: skip
    sheets: list[tuple[int, ...]] = []
    monkeypatch.setattr(Previews, "remove", lambda previews: sheets.append(read_image(previews.path).shape))
    result = run(*words, "--preview")
    assert result.exit_code == 0, result.stderr
    assert sheets == [(64, 3 * 64, 3)]
    assert (probe(out).num_frames, probe(out).width) == (3, 64)
    record = tmp_path / "out.mp4.dreamoving.yaml"
    assert weights_in(record) == SD15_FILES | PICTURE_FILES
    assert yaml.safe_load(record.read_text())["record"]["lock"] == read_lock(folder / "models.lock").id
    assert "is there already" in run(*words, "--skip-existing").stderr
    quick = tmp_path / "quick.mp4"
    words = (*words[: words.index(out)], quick, *words[words.index(out) + 1 :])
    result = run(*words, "--decoder", "taesd")
    assert result.exit_code == 0, result.stderr
    own, other = (pixels(path) for path in (out, quick))
    assert own.shape == other.shape == (3, 64, 64, 3)
    assert np.abs(own.astype(int) - other).mean() > 5  # random networks: nothing alike
    refused = run("render", "--model", "mini", "--pose", pose, "--decoder", "taesd", "--dry-run")
    assert refused.exit_code == 2
    assert "decoder is 'taesd', and model 'mini' has latents of its own" in refused.stderr
    kept = list((tmp_path / "cache" / "converted").iterdir())
    assert len(kept) == 1  # the motion module, a pickle, was converted once


def test_a_face_by_identity_counts_and_its_terms_are_told(
    run: Callable[..., Any],
    folder: Path,
    pose: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = public.random_pack(public.config(face="faceid-plus-v2"))
    file = public.save(tmp_path / "faceid.safetensors", public.adapter(pack, "face"))
    entry = replace(read_lock(LOCK).find("faceid.plusv2"), sha256=file_sha256(file), size=file.stat().st_size)
    lock = read_lock(folder / "models.lock")
    text = lock_text(Lock({**lock.entries, entry.id: entry}, lock.licenses))
    (tmp_path / "models.lock").write_text(text, encoding="utf-8")
    monkeypatch.setenv(LOCK_VARIABLE, str(tmp_path / "models.lock"))
    (tmp_path / "mine.yaml").write_text("face: faceid.plusv2\n")
    words = (
        "render", "--model", tmp_path / "mine.yaml", "--pose", pose, *QUICK, "--codec", "png",
        "--face", photos[0], "--face", photos[1],
    )  # fmt: skip
    missing = run(*words)
    assert missing.exit_code == 4
    assert "--accept-license ip-adapter-faceid" in missing.stderr
    assert run("models", "import", folder, file).exit_code == 0

    def faces(seed: int) -> Callable[[Sequence[tuple[str, np.ndarray]]], Any]:
        found = np.random.default_rng(seed).normal(size=(2, 512)).astype(np.float32)
        return lambda named: (
            [photo[:28, :28] for _, photo in named],
            found / np.linalg.norm(found, axis=1, keepdims=True),
        )

    for seed, out in enumerate(("one", "other")):
        monkeypatch.setattr("dreamoving_cli.extract.identity.read_identities", faces(seed))
        result = run(*words, "--out", tmp_path / out)
        assert result.exit_code == 0, result.stderr
        record = yaml.safe_load((tmp_path / f"{out}.dreamoving.yaml").read_text())["record"]
        assert any("faceid.plusv2: non-commercial research" in note for note in record["notes"])
        assert "faceid.plusv2" in record["weights"]
    one, other = (pngs(tmp_path / out) for out in ("one", "other"))
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(one, other, strict=True))


def test_a_model_file_names_the_user_s_own(
    run: Callable[..., Any], folder: Path, pose: Path, tmp_path: Path
) -> None:
    assert run("models", "import", folder).exit_code == 0
    lora = public.kohya(public.style_lora(public.random_pack(public.config())), 4.0)
    public.save(tmp_path / "style.safetensors", lora)
    plain, styled = tmp_path / "plain", tmp_path / "styled"
    words = ("render", "--model", folder / "model.yaml", "--pose", pose, *QUICK, "--codec", "png")
    assert (result := run(*words, "--out", plain)).exit_code == 0, result.stderr
    result = run(*words, "--lora", f"{tmp_path / 'style.safetensors'}:0.5", "--out", styled)
    assert result.exit_code == 0, result.stderr
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(pngs(plain), pngs(styled), strict=True))
    used = weights_in(tmp_path / "styled.dreamoving.yaml")
    assert used >= {str(folder / "dreamshaper.safetensors"), str(tmp_path / "style.safetensors")}
    assert not used & {"sd15.unet.fp16", "vae.ft-mse"}  # the base brings its own


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("motoin: x", "Did you mean 'motion'?"),
        ("motion: none.ckpt", "none.ckpt, which is not there"),
        ("motion: [1]", "'motion' is [1] in the model file"),
        ("motion: ip-adapter.plus", "is an IP-Adapter plus; 'motion' takes a motion module"),
        ("controls: {pose: controlnet.depth.fp16}", "the ControlNet for depth pictures"),
        ("context_frames: many", "context_frames is many"),
        ("- base", "is not a model file"),
        ("base: [", "is not YAML"),
    ],
)
def test_a_wrong_model_file_is_refused(
    run: Callable[..., Any], folder: Path, pose: Path, tmp_path: Path, text: str, said: str
) -> None:
    assert run("models", "import", folder).exit_code == 0
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = run("render", "--model", path, "--pose", pose, *QUICK, "--dry-run")
    assert result.exit_code in (2, 4)
    assert said in result.stderr


def test_a_user_s_pickle_is_refused_until_it_is_converted(
    run: Callable[..., Any], folder: Path, pose: Path, tmp_path: Path
) -> None:
    import torch

    assert run("models", "import", folder).exit_code == 0
    state = torch.load(folder / "motion.sd15-v2.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": state}, tmp_path / "own.ckpt")  # other bytes than the lock's
    (tmp_path / "mine.yaml").write_text("motion: own.ckpt\ncontext_frames: 64\n")
    words = ("render", "--model", tmp_path / "mine.yaml", "--pose", pose, *QUICK, "--dry-run", "--json")
    refused = run(*words)
    assert (refused.exit_code, "--allow-pickle" in refused.stderr) == (4, True)
    assert run("models", "convert", tmp_path / "own.ckpt").exit_code == 4
    converted = run("models", "convert", tmp_path / "own.ckpt", "--allow-pickle")
    assert converted.exit_code == 0, converted.stderr
    assert converted.stdout.strip() == str(tmp_path / "own.safetensors")
    (tmp_path / "mine.yaml").write_text("motion: own.safetensors\ncontext_frames: 64\n")
    planned = run(*words)
    assert planned.exit_code == 0, planned.stderr
    assert "1 of 64 frames" in planned.stdout or "64" in planned.stdout
