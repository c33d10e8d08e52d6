"""Our networks against outputs of the reference code, and the checker against changed files."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = sorted([*GOLDENS.glob("*.safetensors"), *GOLDENS.glob("*.json")])
WEIGHTS = {  # a weight of each file whose change must show
    "A4_tiny_controlnet_original": "weights.control_model.middle_block_out.0.weight",
    "B1_temporal_module_c64_len32_f16": "weights.temporal_transformer.transformer_blocks.0.ff.net.2.weight",
    "B1_tiny_unet3d_v2_inflated_groupnorm": (
        "weights.down_blocks.0.motion_modules.0.temporal_transformer.proj_out.weight"
    ),
    "B2_ip_attention": "weights.adapterB.to_v_ip.weight",
    "B2_ip_projections": "FaceIDProjPlusModel.weights.perceiver_resampler.proj_out.weight",
    "B3_minigptv2_tiny": "weights.eva.blocks.1.attn.v_bias",
}
OUTPUTS = {
    "A5_zoe_postprocess": "infer.out_pad_and_flip",
    "A4_tiny_controlnet_original": "out.04",
    "B1_temporal_module_c64_len32_f16": "mid.attn1_out",
    "B1_tiny_unet3d_v2_inflated_groupnorm": "out.sample",
    "B2_ip_attention": "out.A_plus_B",
    "B2_ip_projections": "ImageProjModel.out.uncond_zeros",
    "B3_minigptv2_tiny": "out.train_loss",
    "B3_minigptv2_preprocess": "out.pixel_values_every_4th",
    "B4_dwpose_draw": "out.rgb_uint8",
    "B4_dwpose_reorder": "out.keypoints134",
}


def load_checker() -> Any:
    spec = importlib.util.spec_from_file_location("goldens_check", GOLDENS / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check = load_checker()


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """A copy of a golden with something changed in it."""
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, folder / source.name, metadata)
    return str(folder / source.name)


def nudge(key: str, by: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key].view(-1)[0] += by

    return change


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_networks_agree_with_the_reference(path: Path) -> None:
    assert check.check(path) == []


@pytest.mark.parametrize(("stem", "key"), WEIGHTS.items())
def test_a_perturbed_weight_is_noticed(
    stem: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([changed(GOLDENS / f"{stem}.safetensors", tmp_path, nudge(key, 0.2))]) == 1
    assert "differs by" in capsys.readouterr().out


@pytest.mark.parametrize(("stem", "key"), OUTPUTS.items())
def test_a_wrong_output_is_noticed(
    stem: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([changed(GOLDENS / f"{stem}.safetensors", tmp_path, nudge(key, 1))]) == 1
    assert f"{key} differs by" in capsys.readouterr().out


def test_a_wrong_position_table_is_noticed(tmp_path: Path) -> None:
    key = "weights.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    source = GOLDENS / "B1_temporal_module_c64_len32_f16.safetensors"
    assert check.main([changed(source, tmp_path, nudge(key, 0.01))]) == 1


def test_an_output_that_is_not_computed_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["out.more"] = torch.zeros(1)

    source = GOLDENS / "B1_temporal_module_c64_len32_f16.safetensors"
    assert check.main([changed(source, tmp_path, add)]) == 1
    assert "out.more is not computed here" in capsys.readouterr().out


def test_a_perturbed_adapter_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "weights.minigpt_ckpt.llama_model.base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    assert check.main([changed(GOLDENS / "B3_minigptv2_tiny.safetensors", tmp_path, nudge(key, 0.2))]) == 1
    assert "out.logits differs by" in capsys.readouterr().out


def test_changed_words_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (GOLDENS / "B3_minigptv2_text.json").read_text(encoding="utf-8")
    (tmp_path / "words.json").write_text(text.replace("127.5", "128.5", 1), encoding="utf-8")
    assert check.main([str(tmp_path / "words.json")]) == 1
    assert "boxes of '<p>a young woman" in capsys.readouterr().out


def test_a_lost_weight_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDENS / "B1_temporal_module_c64_len32_f16.safetensors"
    assert (
        check.main([changed(source, tmp_path, lambda t: t.pop("weights.temporal_transformer.norm.bias"))])
        == 1
    )
    assert "missing ['norm.bias']" in capsys.readouterr().out


def test_a_changed_drawing_beside_the_file_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in GOLDENS.glob("B4_d*"):
        shutil.copy(path, tmp_path)
    assert check.main([str(tmp_path / "B4_dwpose_draw.safetensors")]) == 0
    picture = np.array(Image.open(tmp_path / "B4_draw_hand_512.png"))
    picture[0, 0, 0] ^= 1
    Image.fromarray(picture).save(tmp_path / "B4_draw_hand_512.png")
    assert check.main([str(tmp_path / "B4_dwpose_draw.safetensors")]) == 1
    assert "B4_draw_hand_512.png differs" in capsys.readouterr().out


def test_unknown_files_are_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = tmp_path / "unknown.safetensors"
    save_file({"out.x": torch.zeros(1)}, unknown)
    assert check.main([str(unknown)]) == 1
    assert "not known here" in capsys.readouterr().out
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert check.main([str(tmp_path / "text.safetensors"), str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().out.count("cannot be read") == 2
    assert check.main([]) == 1


def test_the_script_exits_with_the_result(tmp_path: Path) -> None:
    source = GOLDENS / "B2_ip_attention.safetensors"
    bad = changed(source, tmp_path, nudge("out.A", 1))
    run = subprocess.run([sys.executable, GOLDENS / "check.py", source, bad], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout.splitlines()[0] == "ok   B2_ip_attention.safetensors"
    assert run.stdout.splitlines()[1].startswith("FAIL B2_ip_attention.safetensors: out.A differs")
