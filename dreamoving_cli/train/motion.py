"""Procedural dance: key poses on a beat, eased into each other, with bounce, sway, turns and steps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreamoving_cli.train.body import LIMBS, Pose, rotation

UP = np.array([0.0, 0.0, 1.0])
LEFT = np.array([1.0, 0.0, 0.0])
FRONT = np.array([0.0, -1.0, 0.0])


@dataclass(frozen=True)
class Key:
    """A key pose: limb directions in the frame of the chest or pelvis, small body angles in radians."""

    limbs: dict[str, np.ndarray]
    lean: np.ndarray  # chest against pelvis: pitch, roll, yaw
    nod: np.ndarray  # head against chest: pitch, roll, yaw
    turn: float  # pelvis yaw against the dancer's facing
    step: np.ndarray  # 2, meters
    curl: tuple[float, float]


def direction(elevation: float, azimuth: float, side: float) -> np.ndarray:
    """Unit direction from elevation (-pi/2 down) and azimuth (0 front, pi/2 to the own side)."""
    flat = np.cos(azimuth) * FRONT + np.sin(azimuth) * side * LEFT
    return np.cos(elevation) * flat + np.sin(elevation) * UP


def random_arm(rng: np.random.Generator, side: float, energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Upper arm and forearm directions in the chest's frame, within what shoulders and elbows can do."""
    if rng.random() < 0.25:  # hanging or on the hip
        upper = direction(rng.uniform(-1.5, -1.0), rng.uniform(0.3, 1.9), side)
    else:
        upper = direction(rng.uniform(-1.3, 0.2 + 1.2 * energy), rng.uniform(-0.3, 1.9), side)
    bend = rng.uniform(0.05, 2.3) * rng.choice([0.4, 1.0])
    inward = (
        FRONT * rng.uniform(0.2, 1.0) - side * LEFT * rng.uniform(-0.6, 1.0) + UP * rng.uniform(-0.6, 1.2)
    )
    inward = inward - (inward @ upper) * upper
    inward /= np.linalg.norm(inward) + 1e-9
    return upper, np.cos(bend) * upper + np.sin(bend) * inward


def random_leg(
    rng: np.random.Generator, side: float, energy: float, squat: float
) -> tuple[np.ndarray, np.ndarray]:
    """Thigh and shin directions in the pelvis' frame; `squat` bends both legs, 0..1."""
    forward = squat * rng.uniform(0.3, 0.9) + max(0.0, rng.normal(0, 0.22 * energy))
    outward = abs(rng.normal(0.06, 0.12 + 0.25 * squat))
    thigh = -UP + forward * FRONT + outward * side * LEFT
    shin = -UP - forward * rng.uniform(0.2, 0.9) * FRONT + 0.4 * outward * side * LEFT
    if rng.random() < 0.1 * energy:  # a raised knee
        thigh = thigh + 1.1 * FRONT
        shin = -UP - rng.uniform(0.0, 0.5) * FRONT
    return thigh / np.linalg.norm(thigh), shin / np.linalg.norm(shin)


def random_key(rng: np.random.Generator, energy: float, turning: float) -> Key:
    """One key pose."""
    limbs, squat = {}, rng.random() * energy if rng.random() < 0.5 else 0.0
    for name, side in (("L", 1.0), ("R", -1.0)):
        limbs[f"upperarm.{name}"], limbs[f"forearm.{name}"] = random_arm(rng, side, energy)
        limbs[f"thigh.{name}"], limbs[f"shin.{name}"] = random_leg(rng, side, energy, squat)
    return Key(
        limbs=limbs,
        lean=rng.normal(0, [0.12, 0.1, 0.22]) * (0.4 + energy),
        nod=rng.normal(0, [0.12, 0.1, 0.3]),
        turn=rng.normal(0, turning),
        step=rng.normal(0, 0.1 * energy, 2),
        curl=(float(rng.uniform(0, 0.9)), float(rng.uniform(0, 0.9))),
    )


def mirror(key: Key) -> Key:
    """The same key with left and right exchanged."""
    flip = np.array([-1.0, 1.0, 1.0])
    other = {"L": "R", "R": "L"}
    limbs = {f"{n[:-1]}{other[n[-1]]}": v * flip for n, v in key.limbs.items()}
    return Key(
        limbs, key.lean * [1, -1, -1], key.nod * [1, -1, -1], -key.turn, key.step * [-1, 1], key.curl[::-1]
    )


def _blend(a: Key, b: Key, s: float) -> Key:
    """`s` of the way from `a` to `b`; directions are interpolated on the sphere's chord."""
    limbs = {}
    for name in LIMBS:
        mixed = (1 - s) * a.limbs[name] + s * b.limbs[name]
        limbs[name] = mixed / (np.linalg.norm(mixed) + 1e-6)
    mix: Callable = lambda x, y: (1 - s) * x + s * y  # noqa: E731  (four uses below)
    curl = (mix(a.curl[0], b.curl[0]), mix(a.curl[1], b.curl[1]))
    return Key(limbs, mix(a.lean, b.lean), mix(a.nod, b.nod), mix(a.turn, b.turn), mix(a.step, b.step), curl)


def angles(values: np.ndarray) -> np.ndarray:
    """Rotation `3 3` of pitch (forward), roll (to the own left) and yaw."""
    return rotation(UP, values[2]) @ rotation(FRONT, values[1]) @ rotation(LEFT, values[0])


def as_pose(key: Key, facing: float, bounce: float) -> Pose:
    """Place a key in the world: `facing` radians about the vertical, `bounce` meters off the floor."""
    pelvis = rotation(UP, facing + key.turn)
    chest = pelvis @ angles(key.lean)
    limbs = {n: (chest if "arm" in n else pelvis) @ v for n, v in key.limbs.items()}
    root = np.array([key.step[0], key.step[1], bounce])
    return Pose(root, pelvis, chest, chest @ angles(key.nod), limbs, key.curl)


def dance(rng: np.random.Generator, num_frames: int, fps: float) -> list[Pose]:
    """A dance of `num_frames` poses at `fps`; the tempo, the energy and how much it turns are drawn."""
    beat = rng.uniform(0.35, 0.9)  # seconds
    energy, turning = rng.uniform(0.25, 1.0), rng.choice([0.15, 0.4, 0.9])
    facing = rng.normal(0, 0.35) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)
    spin = rng.uniform(1.0, 3.0) * rng.choice([-1, 1]) if rng.random() < 0.08 else 0.0
    keys = [random_key(rng, energy, turning)]
    for _ in range(int(num_frames / fps / beat) + 3):
        keys.append(
            mirror(keys[-2]) if len(keys) > 1 and rng.random() < 0.35 else random_key(rng, energy, turning)
        )
    phase, hop = rng.random(), rng.choice([0.0, 0.02, 0.05])
    poses = []
    for i in range(num_frames):
        at = i / fps / beat + phase
        k, s = int(at), at - int(at)
        eased = s * s * (3 - 2 * s)
        bounce = hop * max(0.0, float(np.sin(np.pi * s)))
        poses.append(as_pose(_blend(keys[k], keys[k + 1], eased), facing + spin * i / fps, bounce))
    return poses
