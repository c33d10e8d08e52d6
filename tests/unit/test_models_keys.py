"""Names of released weight files."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from dreamoving_cli.models.keys import animatediff_to_ours, ip_adapter_to_ours, merge_lora

UNET = {"cross_attention_dim": 768}  # SD 1.5: everything else is diffusers' default


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
