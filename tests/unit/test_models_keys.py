"""Released weight files: every key of the full-size layouts finds its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from dreamoving_cli.models.config import MotionConfig, PackConfig, VaeConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.keys import animatediff_to_ours, controlnet_to_ours, ip_adapter_to_ours, merge_lora
from dreamoving_cli.models.unet import VideoUNet

MANIFESTS = Path(__file__).parents[2].parent / "shared" / "parity" / "manifests"
needs_manifests = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"{MANIFESTS} is not there")
UNET = {"cross_attention_dim": 768}  # SD 1.5: everything else is diffusers' default
HIDDEN = {"hidden_size": 1280, "projection_dim": 1024}  # CLIP ViT-H/14


def manifest(name: str) -> dict[str, torch.Tensor]:
    """Empty tensors of the listed shapes."""
    listed = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in listed.items()}


def shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.shared
@needs_manifests
@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("A1_mm_sd_v15__v1_len24", ("down", "up")),
        ("A1_mm_sd_v15_v2__v2_len32", ("down", "mid", "up")),
        ("A1_v3_sd15_mm__v3_len32", ("down", "up")),
        ("A1_long_animatediff_64f__len128", ("down", "mid", "up")),
    ],
)
def test_motion_modules_fit(name: str, positions: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = VideoUNet(UNET, MotionConfig(positions=positions))
    own = {key: value for key, value in model.state_dict().items() if key.startswith("motion.")}
    assert shapes(animatediff_to_ours(manifest(name))) == shapes(own)


@pytest.mark.shared
@needs_manifests
def test_the_2d_unet_fits() -> None:
    with torch.device("meta"):
        model = VideoUNet(UNET)
    assert shapes(animatediff_to_ours(manifest("A1_unet3d_sd15_full_without_motion"))) == shapes(
        model.state_dict()
    )


@pytest.mark.shared
@needs_manifests
def test_a_controlnet_fits() -> None:
    with torch.device("meta"):
        model = VideoControlNet(UNET)
    state = manifest("A4_control_v11_sd15_original_pth")
    assert shapes(controlnet_to_ours(state, [2, 2, 2, 2])) == shapes(model.state_dict())


@pytest.mark.shared
@needs_manifests
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("A2_ip-adapter_sd15", {"projection": "base"}),
        ("A2_ip-adapter-plus_sd15__and_plus-face_sd15", {"projection": "plus"}),
        ("A2_ip-adapter-full-face_sd15", {"projection": "full-face"}),
        ("A2_ip-adapter-faceid_sd15", {"projection": "faceid"}),
        ("A2_ip-adapter-faceid-plusv2_sd15", {"projection": "faceid-plus-v2"}),
    ],
)
def test_adapters_fit(name: str, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        config = PackConfig(
            name="sd15", unet=UNET, guider={"face": settings}, text={}, image=HIDDEN, vae=VaeConfig()
        )
        guider = ContentGuider(config)
    assert shapes(ip_adapter_to_ours(manifest(name), unet, "face")) == shapes(guider.state_dict())


def test_adapters_are_numbered_down_up_mid() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    state = {f"ip_adapter.{number}.to_k_ip.weight": torch.tensor(number) for number in range(1, 32, 2)}
    ours = ip_adapter_to_ours(state, unet, "face")
    order = [ours[f"attentions.face.{i}.to_k_ip.weight"].item() for i in range(16)]
    assert order == [*range(1, 12, 2), 31, *range(13, 30, 2)]


def test_wrapped_and_prefixed_motion_files_are_read() -> None:
    module = "down_blocks.0.motion_modules.1.temporal_transformer"
    key = f"{module}.transformer_blocks.0.attention_blocks.1.to_q.weight"
    table = key.replace("to_q.weight", "pos_encoder.pe")
    state = {"state_dict": {f"module.{key}": torch.ones(1), table: torch.ones(1), "global_step": 3}}
    ours = animatediff_to_ours(state)
    assert list(ours) == ["motion.down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_q.weight"]


def test_a_merged_lora_acts_as_one_beside_the_weight() -> None:
    attention = Attention(8, heads=2, dim_head=4)
    before = attention.to_out[0].weight.detach().clone()
    lora = {
        f"to_{x}_lora.{part}.weight": torch.randn(shape)
        for x in ("q", "k", "v", "out")
        for part, shape in (("down", (2, 8)), ("up", (8, 2)))
    }
    merge_lora(attention, lora, 0.5)
    expected = before + 0.5 * lora["to_out_lora.up.weight"] @ lora["to_out_lora.down.weight"]
    torch.testing.assert_close(attention.to_out[0].weight.detach(), expected)
