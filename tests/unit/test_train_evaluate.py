"""The measures of an evaluation: each is nothing for the truth and grows with what it is named after."""

import cv2
import numpy as np
import pytest

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.models.load import build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train.evaluate import VARIANTS, Variant, without_motion
from dreamoving_cli.train.garments import COLORS
from dreamoving_cli.train.measures import (
    background,
    color_name,
    flicker,
    mean_lab,
    region_error,
    ssim,
    torsos,
    warping_error,
    watched,
)
from dreamoving_cli.train.scenes import make_clip


@pytest.fixture(scope="module")
def clip() -> dict[str, np.ndarray]:
    """Six frames of a dancer who shows the torso."""
    cv2.setNumThreads(1)
    return make_clip(1_000_003, 6)


def test_the_truth_has_no_errors(clip: dict[str, np.ndarray]) -> None:
    truth = clip["frames"]
    assert ssim(truth, truth) == pytest.approx(1)
    assert flicker(truth, clip["alpha"]) == 0
    assert region_error(truth, truth, background(clip["alpha"])) == 0
    assert np.isnan(region_error(truth, truth, np.zeros(clip["alpha"].shape, bool)))


def test_noise_costs_similarity_and_flickers(clip: dict[str, np.ndarray]) -> None:
    truth, rng = clip["frames"], np.random.default_rng(0)
    values = []
    for sigma in (0, 4, 16):
        noisy = np.clip(truth + rng.normal(0, sigma, truth.shape), 0, 255).round().astype(np.uint8)
        values.append((ssim(truth, noisy), flicker(noisy, clip["alpha"]), warping_error(noisy, truth)))
    similar, flickering, warped = zip(*values, strict=True)
    assert similar == tuple(sorted(similar, reverse=True))
    assert flickering == tuple(sorted(flickering))
    assert warped == tuple(sorted(warped))


def test_what_moves_with_the_truth_has_a_smaller_warping_error_than_what_stands_still() -> None:
    rng = np.random.default_rng(1)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (96, 160, 3), dtype=np.uint8), (0, 0), 2)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    moving = np.stack([scene[:, 3 * k : 3 * k + 96] for k in range(5)])
    still = np.stack([scene[:, :96]] * 5)
    assert warping_error(moving, moving) < 0.5 * warping_error(still, moving)


def test_a_garment_of_another_color_is_as_wrong_as_the_colors_are_apart(clip: dict[str, np.ndarray]) -> None:
    masks = torsos(clip["points"], clip["scores"], clip["alpha"])
    if not masks.any():
        pytest.fail("the clip shows no torso: choose another seed")
    red, blue = (
        np.broadcast_to(np.array(c, np.uint8), clip["frames"].shape) for c in ((200, 30, 40), (40, 60, 190))
    )
    one, other = (mean_lab(f[0], np.ones(f.shape[1:3], bool)) for f in (red, blue))
    assert region_error(red, blue, masks) == pytest.approx(float(np.linalg.norm(one - other)), rel=1e-3)


@pytest.mark.parametrize("name", COLORS)
def test_every_color_has_its_own_name(name: str) -> None:
    picture = np.full((4, 4, 3), COLORS[name], np.uint8)
    assert color_name(mean_lab(picture, np.ones((4, 4), bool)), COLORS) == name


def test_what_lies_outside_is_not_asked_for() -> None:
    points = np.full((1, kp.NUM_POINTS, 2), 5.0)
    points[0, kp.NOSE] = (70, 5)
    seen = watched(points, np.ones((1, kp.NUM_POINTS)), (32, 64))
    assert seen.scores[0, kp.NOSE] == 0
    assert seen.scores[0, kp.NECK] == 1


def test_motion_blocks_are_left_out_and_come_back() -> None:
    import torch

    pack = build_pack(tiny_config(), seed=0)
    with torch.no_grad():
        for network in (pack.unet, *pack.controlnets.values()):
            for name, p in network.named_parameters():
                if ".proj_out." in name and name.startswith("motion."):
                    p.normal_()
    unet, control = pack.unet.motion, pack.controlnets["pose"].motion
    assert unet is not None
    assert control is not None
    before = {n: p.clone() for n, p in unet.named_parameters()}
    with without_motion(pack, VARIANTS["no-motion"].still):
        outputs = [p for n, p in unet.named_parameters() if ".proj_out." in n]
        assert outputs
        assert not any(p.any() for p in outputs)
        assert any(p.any() for n, p in control.named_parameters() if ".proj_out." in n)
    assert all(torch.equal(p, before[n]) for n, p in unet.named_parameters())
    assert Variant("nothing").still == ()
