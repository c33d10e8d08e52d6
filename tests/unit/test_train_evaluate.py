"""The measures of an evaluation: each is nothing for the truth and grows with what it is named after."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.errors import UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.models.load import build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.quality import JOINTS, Watched
from dreamoving_cli.sampling import FrameNoise, Solver, make_scheduler
from dreamoving_cli.train import agreement as agreed
from dreamoving_cli.train import synth
from dreamoving_cli.train.agreement import (
    MIRRORED,
    Truth,
    depth_agreement,
    fitted,
    landmark_error,
    large_faces,
    optical_flow,
    pose_agreement,
    watched,
    word_agreement,
)
from dreamoving_cli.train.evaluate import beside, evaluate, seams
from dreamoving_cli.train.garments import COLORS
from dreamoving_cli.train.losses import snr_schedule
from dreamoving_cli.train.measures import (
    background,
    color_name,
    flicker,
    hair,
    lab,
    mean_lab,
    pattern_kept,
    region_error,
    ssim,
    torsos,
    warping_error,
)
from dreamoving_cli.train.noise_error import at_level
from dreamoving_cli.train.scenes import make_clip
from dreamoving_cli.train.synth import HELD_OUT
from dreamoving_cli.train.variants import VARIANTS, EvaluateOptions, Ready, Variant, without_motion
from dreamoving_cli.windows import Windows
from tests.clips import FRAMES, random_pack, write_clips


@pytest.fixture(scope="module")
def clip() -> dict[str, np.ndarray]:
    """Six frames of a dancer who shows the torso."""
    cv2.setNumThreads(1)
    return make_clip(1_000_003, 6)


def as_truth(clip: dict[str, np.ndarray]) -> Truth:
    return Truth(
        clip["frames"], clip["alpha"], clip["depth"], clip["points"], clip["scores"], clip["hair"],
        str(clip["cloth_pattern"]),
    )  # fmt: skip


@pytest.fixture
def truth(clip: dict[str, np.ndarray]) -> Truth:
    return as_truth(clip)


def test_the_truth_has_no_errors(clip: dict[str, np.ndarray]) -> None:
    truth = clip["frames"]
    assert ssim(truth, truth) == pytest.approx(1)
    assert flicker(truth, clip["alpha"]) == 0
    assert region_error(truth, truth, background(clip["alpha"])) == 0
    assert np.isnan(region_error(truth, truth, np.zeros(clip["alpha"].shape, bool)))


def test_noise_costs_similarity_and_flickers(clip: dict[str, np.ndarray]) -> None:
    truth, rng = clip["frames"], np.random.default_rng(0)
    flow = optical_flow(truth)
    values = []
    for sigma in (0, 4, 16):
        noisy = np.clip(truth + rng.normal(0, sigma, truth.shape), 0, 255).round().astype(np.uint8)
        values.append((ssim(truth, noisy), flicker(noisy, clip["alpha"]), warping_error(noisy, truth, flow)))
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
    flow = optical_flow(moving)
    assert warping_error(moving, moving, flow) < 0.5 * warping_error(still, moving, flow)
    known = np.broadcast_to(np.array([-3, 0], np.float32), flow.shape)
    inside = (slice(None), slice(None), slice(4, None))
    assert warping_error(moving[inside], moving[inside], known[inside]) < 1


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


# --- hair, patterns


def test_hair_is_where_the_truth_shows_its_color() -> None:
    clip = make_clip(1_000_011, 1)
    truth, skin = as_truth(clip), clip["skin"]
    (mask,) = hair(truth)
    assert mask.sum() > 50
    assert truth.alpha[0][mask].min() > 128
    color = mean_lab(truth.frames[0], mask)
    assert truth.hair is not None
    wanted, bare = (lab(c[None, None])[0, 0] for c in (truth.hair, skin))
    assert np.linalg.norm(color - wanted) < np.linalg.norm(color - bare)
    assert not hair(replace(truth, hair=None)).any()
    cut = replace(
        truth,
        points=truth.points - [0, truth.points[0, kp.FACE, 1].min()],
        alpha=np.full_like(truth.alpha, 255),
    )
    assert not hair(cut).any()  # brows at the upper edge: nothing is above them


def test_a_pattern_is_kept_or_not() -> None:
    striped = np.zeros((2, 32, 32, 3), np.uint8)
    striped[:, ::4] = striped[:, 1::4] = (200, 30, 40)
    striped[:, 2::4] = striped[:, 3::4] = (240, 240, 240)
    mask = np.ones((2, 32, 32), bool)
    plain = np.broadcast_to(striped.mean((0, 1, 2)).astype(np.uint8), striped.shape)
    shifted = np.roll(striped, 3, axis=1)
    assert pattern_kept(striped, striped, mask) == 1
    assert pattern_kept(shifted, striped, mask) == pytest.approx(1)
    assert pattern_kept(plain, striped, mask) == pytest.approx(0, abs=0.01)
    assert 0.3 < pattern_kept(((striped.astype(int) + plain) // 2).astype(np.uint8), striped, mask) < 0.7
    assert np.isnan(pattern_kept(plain, striped, np.zeros_like(mask)))


# --- detectors


def test_somebody_turned_about_has_the_right_places_and_the_wrong_sides(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = Watched(truth.points.copy(), truth.pose.scores.copy(), truth.pose.changes)
    mirror = [JOINTS[k] for k in MIRRORED]
    turned.points[:, JOINTS], turned.scores[:, JOINTS] = truth.points[:, mirror], truth.pose.scores[:, mirror]
    monkeypatch.setattr(agreed, "detected", lambda frames: truth.pose)
    same = pose_agreement(truth.frames, truth)
    assert (same["pck_0.2"], same["pck_found_0.1"], same["pck_unsided_0.2"], same["turned"]) == (1, 1, 1, 0)
    assert truth.seen_pose is truth.pose
    monkeypatch.setattr(agreed, "detected", lambda frames: turned)
    back = pose_agreement(truth.frames, truth)
    assert back["pck_0.2"] < 0.7
    assert (back["pck_unsided_0.2"], back["turned"]) == (1, 1)


def test_joints_that_the_detector_misses_in_the_truth_are_not_asked_for(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Watched(truth.points, truth.pose.scores.copy(), truth.pose.changes)
    half.scores[:, [kp.LEFT_WRIST, kp.RIGHT_WRIST, kp.LEFT_ELBOW, kp.RIGHT_ELBOW]] = 0
    monkeypatch.setattr(agreed, "detected", lambda frames: half)
    values = pose_agreement(truth.frames, truth)
    assert values["pck_0.2"] < 1
    assert values["pck_found_0.2"] == 1


@given(st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 1000))
def test_depth_is_compared_after_the_best_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    wanted = np.random.default_rng(seed).random(50)
    np.testing.assert_allclose(fitted(scale * wanted + shift, wanted), wanted, atol=1e-6)
    np.testing.assert_allclose(fitted(-wanted, wanted), wanted.mean())  # what is nearer must not be farther


def test_depth_of_the_truth_agrees_and_that_of_an_empty_wall_does_not(truth: Truth) -> None:
    same = depth_agreement(truth.frames, truth)
    assert same["depth_error"] == pytest.approx(0, abs=1e-6)
    assert same["depth_relief"] == pytest.approx(1)
    wall = depth_agreement(np.full_like(truth.frames, 128), truth)
    assert wall["depth_error"] > 0.01
    assert wall["depth_relief"] < 0.6
    assert 0 < same["depth_true_error"] < 0.2


def test_landmarks_are_compared_whatever_their_place_and_size() -> None:
    face = np.random.default_rng(0).random((68, 2))
    assert landmark_error(7 * face + (30, -4), face) == pytest.approx(0, abs=1e-9)
    other = face.copy()
    other[48:] += (0, 0.3)
    assert landmark_error(other, face) > 0.02


def test_only_large_faces_are_judged(truth: Truth) -> None:
    assert large_faces(truth) == []
    near = make_clip(1_000_003, 1, scale=3.0, framing="portrait")
    portrait = replace(as_truth(near), scores=np.ones((1, 134)))
    assert near["frames"].shape[1] >= 2.9 * truth.frames.shape[1]
    assert large_faces(portrait) == [0]


def test_words_for_the_same_pictures_are_the_same(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(
        [[{"pattern": "striped", "skin": "dark"}] * 2, [{"pattern": "striped"}, {"pattern": "plain"}]]
    )
    monkeypatch.setattr(agreed, "named", lambda frames: next(said))
    assert word_agreement(truth.frames, replace(truth)) == {"said_pattern": 0.5}


# --- the prediction itself


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("window", [3, 16])
def test_who_knows_the_noise_makes_no_error_and_who_says_nothing_errs_by_all_of_it(
    prediction: str, window: int
) -> None:
    import torch

    tiny = tiny_config()
    schedule = tiny.scheduler.model_copy(
        update={"prediction_type": prediction, "rescale_betas_zero_snr": False}
    )
    pack = build_pack(tiny.model_copy(update={"scheduler": schedule}), seed=0)
    alphas = snr_schedule(pack)
    clean = torch.randn(1, 4, 6, 3, 2, generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler("ddim", 4, pack.config.scheduler.model_dump())
    scheduler.timesteps = torch.tensor([800, 100])
    solver = Solver(scheduler, FrameNoise(0, (4, 3, 2), 0.5), 6)

    class Knows:
        """Finds the noise in what it is shown."""

        def predict_noise(self, x: torch.Tensor, t: torch.Tensor, windows: list[range]) -> torch.Tensor:
            a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            there = torch.cat([clean[:, :, list(w)] for w in windows])
            noise = (x - a * there) / s
            return a * noise - s * there if prediction == "v_prediction" else noise

    class Silent:
        def predict_noise(self, x: torch.Tensor, t: torch.Tensor, windows: list[range]) -> torch.Tensor:
            return torch.zeros_like(x)

    windows = Windows(6, window, 1)
    for step in range(2):
        error, size = at_level(Ready(Knows(), solver, windows), clean, alphas, step, pack)  # type: ignore[arg-type]
        assert error.shape == (6, 3, 2)
        assert float((error / size).max()) < 1e-8
        error, size = at_level(Ready(Silent(), solver, windows), clean, alphas, step, pack)  # type: ignore[arg-type]
        torch.testing.assert_close(error, size)


def test_what_a_part_gives_is_told_with_its_standard_error() -> None:
    full = [{"noise_error": 0.5, "noise_error_head": 1.0}, {"noise_error": 0.3}, {"noise_error": 0.1}]
    worse = [{"noise_error": 0.6, "noise_error_head": 9.0}, {"noise_error": 0.4}, {"noise_error": 0.5}]
    assert beside(full, full) == {}
    assert beside(full, worse) == {"noise_error_more": 0.2, "noise_error_more_se": 0.1}


# --- the whole


def test_a_seam_is_seen_where_windows_meet() -> None:
    rng = np.random.default_rng(0)
    calm = np.cumsum(rng.integers(1, 3, (25, 1, 1, 1)), 0) * np.ones((1, 8, 8, 3))
    jumping = calm + 20 * (np.arange(25) // 6)[:, None, None, None]
    small, large = (seams(c.astype(np.uint8), calm.astype(np.uint8), 6)["seam"] for c in (calm, jumping))
    assert large > 2 * small
    assert seams(calm.astype(np.uint8), calm.astype(np.uint8), 24) == {}


@pytest.mark.usefixtures("light_networks")
def test_several_packs_are_compared_on_the_same_clips(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = write_clips(tmp_path / "data", [0, HELD_OUT])
    for name in ("one", "other/pack"):
        random_pack(tmp_path / name, data)
    options = EvaluateOptions(
        tmp_path / "one", data, tmp_path / "out", clips=1, frames=FRAMES, steps=1,
        variants=("full", "no-face"), against=(tmp_path / "other" / "pack",),
        context_frames=2, context_overlap=1,
    )  # fmt: skip
    means = evaluate(options)
    assert list(means) == ["truth", "full", "no-face", "other"]
    assert means["full"] == means["other"]
    assert means["truth"]["ssim"] == means["truth"]["said_skin"] == 1
    assert means["full"]["psnr"] < 40
    assert "seam" in means["full"]
    assert means["full"]["noise_error"] == means["other"]["noise_error"] != means["no-face"]["noise_error"]
    assert means["full"]["noise_error_person"] > 0
    alone = evaluate(replace(options, out=tmp_path / "alone", renders=False))
    assert list(alone) == ["full", "no-face", "other"]
    assert alone["other"]["noise_error"] == means["other"]["noise_error"]
    assert "psnr" not in alone["full"]
    assert not (tmp_path / "alone" / "evaluation.png").exists()
    preset = tmp_path / "still.yaml"
    preset.write_text("steps: 3\nguidance_scale: 2.0\n")
    one = replace(options, variants=("full",), against=(), out=tmp_path / "preset")
    longer, other = evaluate(replace(one, steps=3)), evaluate(replace(one, preset=str(preset)))
    assert other == longer
    assert other["full"]["psnr"] != means["full"]["psnr"]
    assert other["full"]["noise_error"] == means["full"]["noise_error"]  # of the model, not of the look
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["means"] == means
    assert (tmp_path / "out" / "evaluation.png").exists()
    with pytest.raises(UsageError, match="are called 'other'"):
        evaluate(replace(options, against=options.against * 2))


def test_larger_clips_show_the_same_people(tmp_path: Path) -> None:
    small, large = make_clip(1_000_003, 1), make_clip(1_000_003, 1, scale=1.5)
    assert large["frames"].shape[1:3] == tuple(round(1.5 * s / 16) * 16 for s in small["frames"].shape[1:3])
    np.testing.assert_allclose(large["points"], 1.5 * small["points"], rtol=0.05, atol=2)
    assert list(large["captions"]) == list(small["captions"])
    with pytest.raises(UsageError, match="unknown framing 'portait'"):
        synth.synthesize(tmp_path, range(1), how=synth.Shooting(framing="portait"))


def test_clips_of_chosen_length(tmp_path: Path) -> None:
    done = synth.write_clip(tmp_path, [], 3, synth.Shooting(frames=2, fps=4.0))
    assert np.load(done.with_suffix(".frames.npy")).shape[0] == 2
