"""Prompts, with guidance and for batches of windows; control embeddings: kept or made anew, the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dreamoving_cli.conditioning import (
    Denoiser,
    Embeddings,
    ImagePrompts,
    encode_prompts,
)
from dreamoving_cli.controls import Control
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.prompts import FrameTexts
from dreamoving_cli.windows import Windows


class Noise:
    """Control pictures of noise, each frame its own; remembers which frames were read."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def read(self, frames: Sequence[int]) -> np.ndarray:
        self.seen += frames
        pictures = [np.random.default_rng(f).integers(0, 255, (32, 32, 3), dtype=np.uint8) for f in frames]
        return np.stack(pictures)


@pytest.fixture(scope="module")
def pack() -> Pack:
    return build_pack(tiny_config(), seed=0)


def test_guidance_of_one_has_no_uncond_branch(pack: Pack) -> None:
    picture = ImagePrompts({"cloth": [np.zeros((40, 40, 3), np.uint8)]})
    for scale, branches in ((1.0, 1), (2.0, 2)):
        prompts = encode_prompts(pack, RenderOptions(guidance_scale=scale, prompt="a"), picture)
        assert prompts.guidance.branches == branches
        assert all(len(layer) == 2 and k.shape[0] == branches for layer in prompts.unet for k, _, _ in layer)
        assert all(len(layer) == 1 for layer in prompts.controls["pose"])  # ControlNets see text only


def test_outside_its_span_guidance_costs_nothing(pack: Pack) -> None:
    """There the noise is the prompt's own, and the U-Net sees one row for it."""
    controls, rows = [Control("pose", Noise())], []
    pack.unet.unet.conv_out.register_forward_hook(lambda *seen: rows.append(len(seen[-1])))
    timesteps, x = torch.tensor([800, 600, 400, 200]), torch.randn(1, 4, 3, 2, 2)

    def noise(**options: Any) -> list[torch.Tensor]:
        made = encode_prompts(pack, RenderOptions(prompt="a", **options), ImagePrompts())
        predict = Denoiser(pack, made, controls, timesteps, Windows(3, 3, 0)).predict_noise
        return [predict(x, t, [[0, 1, 2]]) for t in timesteps]

    alone, guided = noise(guidance_scale=1.0), noise(guidance_scale=3.0)
    rows.clear()
    partly = noise(guidance_scale=3.0, guidance_start=0.25, guidance_end=0.75)
    assert rows == [3, 6, 6, 3]
    for step, expected in enumerate([alone[0], guided[1], guided[2], alone[3]]):
        torch.testing.assert_close(partly[step], expected, atol=1e-5, rtol=1e-4)


def test_faceid_takes_the_identity_beside_the_picture() -> None:
    config = tiny_config()
    plus = {"projection": "faceid-plus-v2", "tokens": 4, "depth": 1, "dim_head": 16, "heads": 2, "ff_mult": 2}
    pack = build_pack(config.model_copy(update={"guider": {"face": plus}, "controls": {}}), seed=0)
    photos = [np.full((32, 32, 3), value, np.uint8) for value in (10, 200)]
    people = np.eye(2, 512, dtype=np.float32)

    def keys(identity: np.ndarray, pictures: list[np.ndarray] = photos) -> torch.Tensor:
        """Of the face, at the first attention: g h l d."""
        shown = ImagePrompts({"face": pictures}, identity)
        return encode_prompts(pack, RenderOptions(guidance_scale=2.0), shown).unet[0][1][0]

    both, other = keys(people), keys(people[[1, 1]])
    assert torch.equal(both[0], other[0])  # nobody is the same whoever is shown
    assert not torch.allclose(both[1], other[1])
    each = [keys(people[[i]], [photos[i]])[1] for i in range(2)]
    torch.testing.assert_close(both[1], (each[0] + each[1]) / 2)  # several photos are averaged by token


def test_prompts_of_a_batch_repeat_each_branch_for_its_windows(pack: Pack) -> None:
    prompts = encode_prompts(pack, RenderOptions(guidance_scale=2.0, prompt="a"), ImagePrompts())
    unet, controls = prompts.for_windows([[0, 1], [1, 2], [2, 3]])
    k, many = prompts.unet[0][0][0], unet[0][0][0]
    assert torch.equal(many, torch.stack([k[0], k[0], k[0], k[1], k[1], k[1]]))
    assert controls["pose"][0][0][0].shape[0] == 6
    alone, _ = prompts.for_windows([[0, 1], [1, 2]], guided=False)
    assert torch.equal(alone[0][0][0], torch.stack([k[1], k[1]]))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_prompt_that_changes_reaches_each_frame(pack: Pack, scale: float) -> None:
    """Without motion blocks every frame is predicted as if its own text were that of all frames."""
    options, frames = RenderOptions(guidance_scale=scale, negative_prompt="dull"), (0, 0, 1, 1, 2)
    pictures = ImagePrompts({"cloth": [np.zeros((40, 40, 3), np.uint8)]})
    texts = ("a man on a beach", "at night", "a red wall")
    x, t = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(7)
    windows = [[0, 1, 2], [2, 3, 4]]

    def noise(told: FrameTexts) -> torch.Tensor:
        prompts = encode_prompts(pack, options, pictures, told=told)
        return pack.unet(x, t, prompts.for_windows(windows)[0], use_motion=False)

    with torch.inference_mode():
        changing = noise(FrameTexts(texts, frames)).unflatten(0, (-1, len(windows)))
        for number, text in enumerate(texts):
            alone = noise(FrameTexts((text,))).unflatten(0, (-1, len(windows)))
            for row, window in enumerate(windows):
                at = [i for i, frame in enumerate(window) if frames[frame] == number]
                pair = changing[:, row, :, at], alone[:, row, :, at]
                torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(changing[-1], alone[-1], rtol=1e-3, atol=1e-4)


def test_a_prompt_that_changes_costs_only_where_it_does(pack: Pack) -> None:
    prompts = encode_prompts(
        pack, RenderOptions(guidance_scale=2.0), ImagePrompts(), told=FrameTexts(("a", "b"), (0, 0, 1, 1))
    )
    still, _ = prompts.for_windows([[0, 1]])
    k, _, share = still[0][0]
    assert torch.equal(k, prompts.unet[0][0][0][[0, 1]])
    assert share.min() == 1
    both, controls = prompts.for_windows([[1, 2]])
    assert [len(layer) for layer in (both[0], controls["pose"][0])] == [2, 2]
    assert torch.equal(sum(part[2] for part in both[0]), torch.ones(2, 1, 2, 1))


def test_embeddings_are_the_same_kept_or_not(pack: Pack) -> None:
    windows = [list(range(5, 21)), [18, 19, 0, 1]]
    results, reads = [], []
    for allowance in (2**20, 0):
        source = Noise()
        embeddings = Embeddings(Control("pose", source), pack.controlnets["pose"], 20 + 1, allowance)
        with torch.inference_mode():
            results.append(embeddings.rows(windows))
            embeddings.rows(windows)
        reads.append(len(source.seen) - 1)  # one frame is embedded to learn the size
    assert reads == [21, 18]  # in blocks; else each that is asked for once, its picture is kept packed
    torch.testing.assert_close(results[0], results[1])
