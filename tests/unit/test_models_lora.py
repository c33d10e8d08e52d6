"""LoRAs in every public naming change the same weights by the same amounts."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models.checkpoints.lora import layers_of, merge_loras
from dreamoving_cli.models.load import Pack, build_pack
from tests import checkpoints as public

ALPHA, RANK, SCALE = 2.0, 4, 0.8


@pytest.fixture(scope="module")
def pack() -> Pack:
    return build_pack(
        public.config().model_copy(update={"guider": {}, "image": None, "controls": {}}), seed=0
    )


@pytest.fixture(autouse=True)
def unchanged(pack: Pack) -> object:
    """The pack's weights are put back after each test."""
    before = {name: layer.weight.detach().clone() for name, layer in layers_of(pack).items()}
    yield before
    with torch.no_grad():
        for name, layer in layers_of(pack).items():
            layer.weight.copy_(before[name])


def merged(pack: Pack, state: Mapping[str, Tensor], scale: float = SCALE) -> dict[str, Tensor]:
    """What a LoRA adds to each layer that it changes."""
    before = {name: layer.weight.detach().clone() for name, layer in layers_of(pack).items()}
    merge_loras(pack, state, scale, "style.safetensors")
    after = {name: layer.weight.detach() - before[name] for name, layer in layers_of(pack).items()}
    return {name: added for name, added in after.items() if added.any()}


def expected(pairs: Mapping[str, tuple[Tensor, Tensor]], factor: float) -> dict[str, Tensor]:
    """The sums that a LoRA stands for, from its definition: a convolution is one over its patches."""
    return {
        name.replace("text_model.", ""): factor * torch.einsum("or...,ri...->oi...", up, down)
        for name, (down, up) in pairs.items()
    }


def attentions(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers that diffusers' older naming knows."""
    marks = (".to_q", ".to_k", ".to_v", ".to_out.0", "_proj")
    return {name: pair for name, pair in pairs.items() if ".attn" in name and name.endswith(marks)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, added in ours.items():
        torch.testing.assert_close(added, theirs[name], atol=1e-6, rtol=1e-4)


def test_kohya_s_names_with_alpha(pack: Pack) -> None:
    pairs = public.style_lora(pack, RANK)
    assert {name.split(".")[0] for name in pairs} == {"unet", "text_encoder"}
    same(merged(pack, public.kohya(pairs, ALPHA)), expected(pairs, SCALE * ALPHA / RANK))


@pytest.mark.parametrize(
    "sides", [("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_A.default", "lora_B.default")]
)
def test_peft_s_and_diffusers_names(pack: Pack, sides: tuple[str, str]) -> None:
    pairs = public.style_lora(pack, RANK)
    same(merged(pack, public.peft(pairs, sides)), expected(pairs, SCALE))


def test_processors_names_with_and_without_their_network(pack: Pack) -> None:
    pairs = attentions(public.style_lora(pack, RANK))
    state = {}
    for name, halves in pairs.items():
        attention, layer = name.removesuffix(".0").rsplit(".", 1)
        for side, half in zip(("down", "up"), halves, strict=True):
            state[f"{attention}.processor.{layer}_lora.{side}.weight"] = half
    same(merged(pack, state), expected(pairs, SCALE))
    bare = {
        f"module.{key.removeprefix('unet.')}": half for key, half in state.items()
    }  # AnimateDiff's adapter
    same(merged(pack, bare, 0.5), expected(pairs, 0.5))


def test_motion_loras_change_the_motion_blocks(pack: Pack) -> None:
    state = public.motion_lora(pack, RANK, seed=2)
    added = merged(pack, state)
    assert len(added) == len(state) // 2
    assert all(name.startswith("motion.") for name in added)
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    name = f"{block}.attention_blocks.1.processor.to_out_lora"
    product = state[f"{name}.up.weight"] @ state[f"{name}.down.weight"]
    ours = "motion.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_out.0"
    torch.testing.assert_close(added[ours], SCALE * product)


def test_half_precision_is_rounded_once(pack: Pack) -> None:
    pairs = public.style_lora(pack, RANK)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = layers_of(pack)[name]
    weight = layer.weight.detach().clone()
    layer.weight.data = weight.half()
    merge_loras(pack, public.peft({name: pairs[name]}), SCALE, "x")
    exact = weight.half().float() + expected({name: pairs[name]}, SCALE)[name]
    assert torch.equal(layer.weight, exact.half())
    layer.weight.data = weight


def test_a_lora_of_another_model_changes_nothing(pack: Pack, unchanged: dict[str, Tensor]) -> None:
    good = public.style_lora(pack, RANK)
    name = next(iter(good))
    cases = {
        "which model 'random' does not have": good | {"unet.down_blocks.9.attn.to_q": good[name]},
        r"is \[32, 4, 3, 3\], in the file \[7, 4\] x \[4, 7\]": good
        | {"unet.conv_in": (torch.zeros(RANK, 7), torch.zeros(7, RANK))},
    }
    for said, pairs in cases.items():
        with pytest.raises(WeightsError, match=said):
            merge_loras(pack, public.peft(pairs), 1.0, "other.safetensors")
    with pytest.raises(WeightsError, match="half of a pair"):
        merge_loras(pack, dict(list(public.peft(good).items())[:-1]), 1.0, "cut.safetensors")
    with pytest.raises(WeightsError, match=r"is a motion module; '--lora' takes a LoRA"):
        merge_loras(pack, public.motion_layout(pack), 1.0, "mm.safetensors")
    with pytest.raises(WeightsError, match="of another construction"):
        merge_loras(pack, {"lora_unet_x.hada_w1_a": torch.zeros(1)}, 1.0, "loha.safetensors")
    assert all(torch.equal(layer.weight, unchanged[name]) for name, layer in layers_of(pack).items())
