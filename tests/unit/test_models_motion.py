"""Laws of motion blocks: where they start, what they mix and what they leave apart."""

import math

import pytest
import torch

from dreamoving_cli.models.config import MotionConfig
from dreamoving_cli.models.layers import fold, unfold
from dreamoving_cli.models.motion import MotionBlock, MotionBlocks, TimeAttention, sinusoid
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet

CONFIG = MotionConfig(heads=2, groups=4, max_length=8)


def trained(config: MotionConfig = CONFIG) -> MotionBlock:
    """A block that does something."""
    torch.manual_seed(0)
    block = MotionBlock(8, config).eval()
    torch.nn.init.normal_(block.proj_out.weight, std=0.5)
    return block


def run(block: MotionBlock, video: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return unfold(block(fold(video), video.shape[2]), video.shape[2])


def test_an_untrained_block_is_the_identity() -> None:
    video = torch.randn(2, 8, 5, 3, 4)
    assert torch.equal(run(MotionBlock(8, CONFIG), video), video)


def test_cells_do_not_see_each_other_through_attention() -> None:
    block = trained(MotionConfig(heads=2, groups=4))
    block.norm = torch.nn.Identity()  # type: ignore[assignment]  # a norm mixes the cells of a frame
    video = torch.randn(1, 8, 5, 3, 4)
    other = video.clone()
    other[..., 1, 2] += 1
    moved = (run(block, other) - run(block, video)).abs().amax((0, 1, 2)) > 1e-6
    assert moved.sum() == 1
    assert moved[1, 2]


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    block, video = trained(), torch.randn(3, 8, 5, 3, 4)
    torch.testing.assert_close(run(block, video)[1:2], run(block, video[1:2]))


def test_every_frame_sees_every_other() -> None:
    block, video = trained(), torch.randn(1, 8, 6, 2, 2)
    for frame in range(6):
        other = video.clone()
        other[:, :, frame] = torch.randn(8, 2, 2)
        change = (run(block, other) - run(block, video)).abs().amax((0, 1, 3, 4))
        assert (change > 1e-6).all()


def test_the_scale_multiplies_the_keys() -> None:
    scaled = trained(CONFIG.model_copy(update={"scale": 1.5}))
    plain, video = trained(), torch.randn(1, 8, 6, 2, 2)
    assert not torch.allclose(run(scaled, video), run(plain, video))
    for layer in plain.modules():
        if isinstance(layer, TimeAttention):
            layer.to_k.weight.data *= 1.5
    torch.testing.assert_close(run(scaled, video), run(plain, video))


def test_order_matters() -> None:
    block, video = trained(), torch.randn(1, 8, 6, 2, 2)
    assert (run(block, video.flip(2)).flip(2) - run(block, video)).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 8, 9, 100])
def test_windows_may_be_longer_than_trained(frames: int) -> None:
    assert run(trained(), torch.randn(1, 8, frames, 2, 2)).isfinite().all()


def test_the_position_table_is_the_usual_sinusoid() -> None:
    table = sinusoid(70, 6, torch.device("cpu"))
    for position, channel in ((0, 0), (3, 2), (69, 4)):
        angle = position * 10000 ** (-channel / 6)
        assert table[position, channel].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, channel + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_table_made_while_rendering_serves_training() -> None:
    sinusoid.cache_clear()
    block = trained()
    with torch.inference_mode():
        block(torch.randn(4, 8, 2, 2), 4)
    block(torch.randn(4, 8, 2, 2), 4).sum().backward()
    assert block.proj_out.weight.grad is not None


def test_norm_over_the_clip_is_a_choice() -> None:
    video = torch.randn(1, 8, 4, 2, 2) * torch.tensor([1.0, 2, 3, 4]).view(1, 1, 4, 1, 1)
    per_frame, per_clip = trained(), trained(CONFIG.model_copy(update={"norm": "clip"}))
    assert (run(per_frame, video) - run(per_clip, video)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("positions", "down", "mid", "up"),
    [
        (("down", "mid", "up"), (1, 1), 1, (2, 2)),
        (("down", "up"), (1, 1), 0, (2, 2)),
        (("down.1", "mid", "up.0"), (0, 1), 1, (2, 0)),
    ],
)
def test_motion_sits_where_the_config_says(
    positions: tuple[str, ...], down: tuple[int, ...], mid: int, up: tuple[int, ...]
) -> None:
    model = VideoUNet(tiny_config().unet)
    motion = MotionBlocks(model.unet, MotionConfig(heads=4, positions=positions))
    assert tuple(len(motion.at("down", level)) for level in range(2)) == down
    assert len(motion.at("mid", 0)) == mid
    assert tuple(len(motion.at("up", level)) for level in range(2)) == up


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 channels do not divide by 3 heads"):
        MotionBlock(8, MotionConfig(heads=3, groups=4))
