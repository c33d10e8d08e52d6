"""The walks through U-Net and ControlNet: equal to diffusers' own where there is no time, and trainable."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from dreamoving_cli.models.config import MotionConfig
from dreamoving_cli.models.controlnet import VideoControlNet, add_residuals
from dreamoving_cli.models.layers import fold, unfold
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet

CONFIG = tiny_config()
TALL: dict[str, Any] = {  # three levels, two layers each, linear projections, two transformer blocks in a row
    **CONFIG.unet,
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": 2,
    "use_linear_projection": True,
}
PLAIN_MIDDLE = {**CONFIG.unet, "mid_block_type": "UNetMidBlock2D"}
LATE_TEXT = {**CONFIG.unet, "down_block_types": ["DownBlock2D", "DownBlock2D"]}  # as in the miniature
T = torch.tensor([7, 501])


def text_prompts(model: VideoUNet | VideoControlNet, text: torch.Tensor) -> list[Any]:
    return [[(k, v, 1.0)] for k, v in model.text_keys(text)]


def theirs(
    model: UNet2DConditionModel | ControlNetModel, x: torch.Tensor, text: torch.Tensor, **more: Any
) -> Any:
    """diffusers' own forward, everything repeated per frame."""
    f = x.shape[2]
    t, text = T.repeat_interleave(f, dim=0), text.repeat_interleave(f, dim=0)
    return model(fold(x), t, encoder_hidden_states=text, return_dict=False, **more)


@pytest.mark.parametrize("unet", [CONFIG.unet, TALL, PLAIN_MIDDLE], ids=["tiny", "tall", "plain-middle"])
@pytest.mark.parametrize(("height", "width"), [(8, 4), (7, 5)])
@torch.no_grad()
def test_without_motion_the_walk_is_the_2d_unet(unet: dict[str, Any], height: int, width: int) -> None:
    model = VideoUNet(unet).eval()
    x, text = torch.randn(2, 4, 3, height, width), torch.randn(2, 6, 32)
    expected = unfold(theirs(model.unet, x, text)[0], 3)
    torch.testing.assert_close(model(x, T, text_prompts(model, text)), expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_residuals_go_where_diffusers_adds_them() -> None:
    model = VideoUNet(CONFIG.unet).eval()
    net = VideoControlNet(CONFIG.controlnet("pose")).eval()
    for head in (*net.controlnet.controlnet_down_blocks, net.controlnet.controlnet_mid_block):
        torch.nn.init.normal_(head.weight, std=0.1)
    torch.nn.init.normal_(net.controlnet.controlnet_cond_embedding.conv_out.weight, std=0.1)
    x, text, control = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 6, 32), torch.rand(2, 3, 3, 64, 64)
    down, mid = theirs(net.controlnet, x, text, controlnet_cond=fold(control), conditioning_scale=0.7)
    ours = net(x, T, text_prompts(net, text), net.embed_control(control), control_scale=0.7)
    for mine, other in zip(ours, [*down, mid], strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)
    extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    expected = unfold(theirs(model.unet, x, text, **extra)[0], 3)
    torch.testing.assert_close(model(x, T, text_prompts(model, text), ours), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_untrained_networks_start_from_the_2d_model() -> None:
    model = VideoUNet(CONFIG.unet, CONFIG.motion).eval()
    net = VideoControlNet(CONFIG.controlnet("depth"), CONFIG.motion).eval()
    x, text = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 6, 32)
    prompts = text_prompts(model, text)
    residuals = net(x, T, text_prompts(net, text), net.embed_control(torch.rand(2, 3, 3, 64, 64)))
    assert all(residual.abs().max() == 0 for residual in residuals)
    still = model(x, T, prompts, use_motion=False)
    torch.testing.assert_close(model(x, T, prompts, residuals), still)


@torch.no_grad()
def test_one_time_serves_a_whole_batch() -> None:
    model = VideoUNet(CONFIG.unet, CONFIG.motion).eval()
    x, prompts = torch.randn(2, 4, 3, 4, 4), text_prompts(model, torch.randn(2, 6, 32))
    torch.testing.assert_close(model(x, torch.tensor(9), prompts), model(x, torch.tensor([9, 9]), prompts))


@pytest.mark.parametrize(
    "unet", [CONFIG.unet, TALL, PLAIN_MIDDLE, LATE_TEXT], ids=["tiny", "tall", "plain-middle", "late-text"]
)
@torch.no_grad()
def test_branches_of_guidance_run_as_one_until_the_text_enters(unet: dict[str, Any]) -> None:
    """Rows given once, with the prompts of two branches, equal rows repeated for both (in fp64)."""
    config = CONFIG.model_copy(update={"unet": unet})
    control = config.controlnet("pose") | {"mid_block_type": "UNetMidBlock2D"}
    model, net = (
        VideoUNet(unet, CONFIG.motion).eval().double(),
        VideoControlNet(control, CONFIG.motion).eval().double(),
    )
    for weight in (*model.parameters(), *net.parameters()):
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    x, text, hint = (
        torch.randn(*shape).double() for shape in ((2, 4, 3, 4, 4), (4, 6, 32), (2, 3, 3, 64, 64))
    )
    prompts, control_prompts, embedded = (
        text_prompts(model, text),
        text_prompts(net, text),
        net.embed_control(hint),
    )
    t, rows = torch.tensor(7), []
    model.unet.conv_in.register_forward_hook(lambda *seen: rows.append(len(seen[-1])))
    once = model(x, t, prompts, net(x, t, control_prompts, embedded))
    both = torch.cat([x, x])
    twice = model(both, t, prompts, net(both, t, control_prompts, torch.cat([embedded, embedded])))
    torch.testing.assert_close(once, twice, atol=1e-9, rtol=1e-7)
    assert (twice[:2] - twice[2:]).abs().max() > 1e-3  # the branches differ
    assert rows == [6, 12]


@torch.no_grad()
def test_norms_over_the_clip_let_frames_see_each_other() -> None:
    x, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 6, 32)
    other = x.clone()
    other[:, :, 2] *= 3
    for norm, shared in (("frame", False), ("clip", True)):
        model = VideoUNet(CONFIG.unet, None, norm).eval()  # type: ignore[arg-type]
        prompts = text_prompts(model, text)
        first = [model(video, torch.tensor(3), prompts)[:, :, 0] for video in (x, other)]
        assert ((first[0] - first[1]).abs().max() > 1e-5) == shared


@torch.no_grad()
def test_norms_over_the_clip_equal_norms_per_frame_on_a_still() -> None:
    per_frame = VideoUNet(CONFIG.unet, CONFIG.motion).eval()
    per_clip = VideoUNet(CONFIG.unet, CONFIG.motion, "clip").eval()
    per_clip.load_state_dict(per_frame.state_dict())
    x, text = torch.randn(1, 4, 1, 4, 4).expand(-1, -1, 5, -1, -1), torch.randn(1, 6, 32)
    prompts = text_prompts(per_frame, text)
    t = torch.tensor(3)
    torch.testing.assert_close(per_clip(x, t, prompts), per_frame(x, t, prompts), atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_weight_and_the_prompts() -> None:
    model, net = (
        VideoUNet(CONFIG.unet, CONFIG.motion),
        VideoControlNet(CONFIG.controlnet("pose"), CONFIG.motion),
    )
    for name, weight in [*model.named_parameters(), *net.named_parameters()]:
        if "proj_out" in name or "controlnet_" in name:  # what starts at zero lets no gradient through
            torch.nn.init.normal_(weight, std=0.1)
    x, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 6, 32, requires_grad=True)
    residuals = net(x, T[:1], text_prompts(net, text), net.embed_control(torch.rand(1, 3, 3, 64, 64)))
    model(
        x, T[:1], text_prompts(model, text), add_residuals([residuals, residuals])
    ).square().mean().backward()
    weights = [*model.parameters(), *net.parameters(), text]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    assert sum(weight.grad.abs().sum() > 0 for weight in weights if weight.grad is not None) > 0.95 * len(
        weights
    )


def test_residuals_of_several_controls_are_summed_level_by_level() -> None:
    one, two = [torch.ones(1), torch.full((2,), 2.0)], [torch.full((1,), 3.0), torch.ones(2)]
    assert [level.tolist() for level in add_residuals([one, two])] == [[4.0], [3.0, 3.0]]
    with pytest.raises(ValueError, match="shorter"):
        add_residuals([one, two[:1]])


def test_a_prompt_list_for_fewer_attentions_is_an_error() -> None:
    model = VideoUNet(CONFIG.unet, MotionConfig(heads=4))
    prompts = text_prompts(model, torch.randn(1, 6, 32))
    for wrong in (prompts[:-1], [*prompts, prompts[0]]):
        with pytest.raises(ValueError, match="cross-attentions"):
            model(torch.randn(1, 4, 2, 4, 4), T[:1], wrong)
