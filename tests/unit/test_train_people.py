"""Synthetic people: bodies, poses, pictures of them, their garments, and the words that go with them."""

import dataclasses

import cv2
import numpy as np
import pytest

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.train.body import BONES_OF_LIMB, END_OF_LIMB, LIMBS, Pose, load_bodies, pose_body
from dreamoving_cli.train.garments import (
    BOTTOMS,
    COLORS,
    PATTERNS,
    TOPS,
    paint,
    product_picture,
    random_garment,
)
from dreamoving_cli.train.motion import as_pose, dance, mirror, random_key
from dreamoving_cli.train.people import BODY_18, HAIR, SKIN, Camera, Shot, random_look, shoot
from dreamoving_cli.train.scenes import caption, make_clip, random_scene

CAMERA = Camera(distance=5.0, height=0.9, focal=2.0, center_z=0.95)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    cv2.setNumThreads(1)


def poses(seed: int, count: int = 6) -> list[Pose]:
    """Poses of one dance, a second apart."""
    return dance(np.random.default_rng(seed), count, fps=1.0)


def shots(seed: int, count: int = 3) -> list[Shot]:
    look = random_look(np.random.default_rng(seed))
    return [shoot(look, pose, CAMERA, 144, 128) for pose in poses(seed, count)]


@pytest.mark.parametrize("body", [0, 7, 23])
def test_the_lowest_point_is_on_the_floor_or_as_high_as_the_jump(body: int) -> None:
    skin = load_bodies().part == 0
    for pose in poses(body):
        vertices, _ = pose_body(body, pose)
        assert vertices[skin, 2].min() == pytest.approx(pose.root[2], abs=1e-4)
        assert 1.2 < np.ptp(vertices[skin, 2]) < 2.8


def test_limbs_point_where_the_pose_says() -> None:
    bones = load_bodies().bones
    for pose in poses(3):
        _, starts = pose_body(5, pose)
        for limb in LIMBS:
            name, side = limb.split(".")
            first, end = bones[f"{BONES_OF_LIMB[name][0]}.{side}"], bones[f"{END_OF_LIMB[name]}.{side}"]
            line = starts[end] - starts[first]
            assert line / np.linalg.norm(line) @ pose.limbs[limb] == pytest.approx(1, abs=1e-5)


def test_bones_keep_their_length_in_every_pose() -> None:
    bodies = load_bodies()
    rest = bodies.heads[4]
    for pose in poses(8, 3):
        _, starts = pose_body(4, pose)
        for j, parent in enumerate(bodies.bone_parents):
            if parent >= 0:
                length = np.linalg.norm(starts[j] - starts[parent])
                assert length == pytest.approx(np.linalg.norm(rest[j] - rest[parent]), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_pose_mirrors_the_body(seed: int) -> None:
    key = random_key(np.random.default_rng(seed), energy=0.8, turning=0.3)
    _, one = pose_body(2, as_pose(key, 0.4, 0.03))
    _, other = pose_body(2, as_pose(mirror(key), -0.4, 0.03))
    bones = load_bodies().bones
    for name, j in bones.items():
        partner = bones[name[:-1] + {"L": "R", "R": "L"}[name[-1]]] if name.endswith((".L", ".R")) else j
        np.testing.assert_allclose(one[j] * [-1, 1, 1], other[partner], atol=0.012, err_msg=name)


def test_depth_is_known_exactly_where_somebody_is_seen() -> None:
    for shot in shots(1):
        alpha = shot.color[..., 3]
        np.testing.assert_array_equal(np.isfinite(shot.depth), alpha > 0)
        assert alpha.min() == 0
        assert alpha.max() == 1
        assert (np.abs(shot.depth[alpha > 0] - CAMERA.distance) < 1.5).all()
        assert (shot.color[alpha == 0] == 0).all()  # premultiplied


@pytest.mark.parametrize("seed", range(4))
def test_keypoints_lie_on_the_person(seed: int) -> None:
    for shot in shots(seed):
        near = cv2.dilate(shot.color[..., 3], np.ones((3, 3), np.uint8))
        for name, (x, y), score in zip(BODY_18, shot.points, shot.scores, strict=False):
            assert not score or near[int(y), int(x)] > 0, name
        hands = shot.points[92:][shot.scores[92:] > 0].astype(int)
        assert (near[hands[:, 1], hands[:, 0]] > 0).mean() > 0.9


def test_points_outside_the_picture_and_faces_turned_away_are_absent() -> None:
    look = random_look(np.random.default_rng(0))
    key = random_key(np.random.default_rng(0), energy=0.2, turning=0.0)
    tight = dataclasses.replace(CAMERA, focal=12.0, center_z=1.5)
    shot = shoot(look, as_pose(key, 0.0, 0.0), tight, 96, 96)
    inside = ((shot.points >= 0) & (shot.points < 96)).all(1)
    assert not shot.scores[~inside].any()
    assert not inside[[10, 13]].any()  # ankles
    behind = shoot(look, as_pose(dataclasses.replace(key, nod=np.zeros(3)), np.pi, 0.0), CAMERA, 96, 96)
    assert not behind.scores[24:92].any()
    assert not behind.scores[[0, 14, 15]].any()
    assert behind.points[2, 0] > behind.points[5, 0]  # seen from behind, the right shoulder is on the right


@pytest.mark.parametrize("cuts", [TOPS, BOTTOMS])
def test_cloth_has_two_colors_and_plain_cloth_one(cuts: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(0, 1, 40))
    for pattern in PATTERNS:
        garment = dataclasses.replace(random_garment(rng, cuts), pattern=pattern)
        pixels = paint(garment, u, v, np.ones_like(u)).reshape(-1, 3)
        is_first, is_second = ((np.abs(pixels - c) < 1e-6).all(1) for c in (garment.color, garment.second))
        assert (is_first | is_second).all()
        assert is_second.any() == (pattern != "plain")
        assert is_first.any()
        assert np.abs(garment.color - garment.second).sum() > 0.2


def test_a_print_is_on_the_front_only() -> None:
    garment = dataclasses.replace(random_garment(np.random.default_rng(1)), pattern="print")
    u, v = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(0, 1, 40))
    back = paint(garment, u, v, np.zeros_like(u))
    np.testing.assert_allclose(back, np.broadcast_to(garment.color, back.shape), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_product_picture_shows_the_garments_color_in_the_middle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    garment = dataclasses.replace(random_garment(rng, TOPS), pattern="plain")
    picture = product_picture(garment, rng, 96)
    assert picture.shape == (96, 96, 3)
    middle = picture[40:56, 40:56].reshape(-1, 3).mean(0) / 255
    np.testing.assert_allclose(middle, garment.color, atol=0.22)


def test_captions_name_what_is_drawn() -> None:
    named = {"skin": 0, "cloth": 0, "scene": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        look, scene = random_look(rng), random_scene(rng, 32, 32)
        garment = look.bottom if look.bottom.cut == "dress" else look.top
        text = caption(rng, look, scene, "portrait")
        person, _, rest = text.partition(" is dancing")
        assert person.startswith("a woman" if look.body % 2 else "a man")
        assert rest.startswith(", portrait")
        if " in a " in person:
            below = (
                ""
                if garment is look.bottom or " with " in person
                else (f" and {look.bottom.name} {look.bottom.cut}")
            )
            assert person.endswith(f" in a {garment.name} {garment.cut}{below}")
            person, named["cloth"] = person.partition(" in a ")[0], named["cloth"] + 1
        if " with " in person:
            hair = "a bald head" if look.hair_style == "bald" else f"{look.hair_style} {look.hair_name} hair"
            assert person.endswith(f" with {look.skin_name} skin and {hair}")
            named["skin"] += 1
        assert rest in (", portrait", f", portrait, {scene.words}")
        named["scene"] += rest != ", portrait"
    assert 15 < named["skin"] < 45
    assert 15 < named["cloth"] < 45
    assert named["scene"] > 45


def test_the_names_of_colors_are_close_to_the_colors() -> None:
    for seed in range(30):
        look = random_look(np.random.default_rng(seed))
        for value, named in (
            (look.skin, SKIN[look.skin_name]),
            (look.hair, HAIR[look.hair_name]),
            (look.top.color, COLORS[look.top.name]),
        ):
            assert np.abs(value - np.array(named) / 255).max() < 0.25


def test_a_clip_is_drawn_from_its_seed_alone() -> None:
    one, again, other = make_clip(5, 2), make_clip(5, 2), make_clip(6, 2)
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert any(not np.array_equal(one[name], other[name]) for name in ("skin", "cloth_color"))
    frames, height, width, _ = one["frames"].shape
    assert frames == 2
    assert one["pose"].shape == (2, height, width, 3)
    assert one["depth"].shape == one["alpha"].shape == (2, height, width)
    assert one["faces"].shape == one["cloths"].shape == (4, 128, 128, 3)
    seen = one["alpha"] == 255
    assert one["depth"][seen].min() >= 0.54 * 255  # the dancer is nearer than the scene ever is
