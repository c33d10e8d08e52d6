"""The example inputs that ship with us: a short dance with sound, a portrait of somebody else, a garment.

Rendered here once and kept in dreamoving_cli/example_media/; examples.py hands out the copies.
"""

import dataclasses
import tempfile
import wave
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from dreamoving_cli.media.images import write_image
from dreamoving_cli.media.writer import Audio, write_video
from dreamoving_cli.train.body import load_bodies, pose_body
from dreamoving_cli.train.garments import COLORS, Garment, product_picture
from dreamoving_cli.train.motion import as_pose, dance, random_key
from dreamoving_cli.train.people import HAIR, HEAD_SIZE, SKIN, Camera, Look, drawn_shape, random_look, shoot
from dreamoving_cli.train.scenes import over, random_scene

FPS, NUM_FRAMES = Fraction(16), 48
HEIGHT, WIDTH = 288, 192
SIDE = 512  # of the still pictures
QUALITY = 23  # x264's rate factor
DANCE_SEED, SCENE_SEED, FACE_SEED, SHIRT_SEED = 30, 13, 5, 11
SOUND_RATE = 32000  # Hz


def make_examples(folder: Path) -> list[Path]:
    """Render dance.mp4, me.jpg and shirt.png into `folder`, replacing what is there."""
    cv2.setNumThreads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sound = write_beat(Path(scratch) / "beat.wav", NUM_FRAMES / FPS)
        dancer = write_video(
            folder / "dance.mp4", [dancing()], FPS, audio=Audio(sound, Fraction(0), None),
            quality=QUALITY, overwrite=True,
        )  # fmt: skip
    me = write_image(folder / "me.jpg", portrait(), overwrite=True)
    shirt = product_picture(striped_shirt(), np.random.default_rng(SHIRT_SEED), SIDE)
    return [dancer, me, write_image(folder / "shirt.png", shirt, overwrite=True)]


def dancer_look() -> Look:
    """Who dances in dance.mp4."""
    look = named_look(7, "brown", "black", "short")
    top = plain(look.top, "t-shirt", "yellow", sleeve=0.35)
    return dataclasses.replace(look, top=top, bottom=plain(look.bottom, "trousers", "navy"))


def portrait_look() -> Look:
    """Who is seen in me.jpg: nobody that dance.mp4 shows."""
    look = named_look(4, "light", "brown", "short")
    top = plain(look.top, "sweater", "gray", sleeve=0.9)
    return dataclasses.replace(look, top=top, bottom=plain(look.bottom, "trousers", "black"))


def named_look(body: int, skin: str, hair: str, hair_style: str) -> Look:
    """A look of which the body, skin and hair are chosen."""
    return dataclasses.replace(
        random_look(np.random.default_rng(body)), body=body, skin_name=skin, skin=np.array(SKIN[skin]) / 255,
        hair_name=hair, hair=np.array(HAIR[hair]) / 255, hair_style=hair_style,
        light=np.array([-0.35, -0.8, 0.5]), ambient=0.52,
    )  # fmt: skip


def plain(garment: Garment, cut: str, color: str, sleeve: float = 0.0) -> Garment:
    """The garment in another cut and one color."""
    value = np.array(COLORS[color]) / 255
    return dataclasses.replace(garment, cut=cut, pattern="plain", name=color, color=value, sleeve=sleeve)


def striped_shirt() -> Garment:
    """The garment of shirt.png."""
    red, white = (np.array(COLORS[name]) / 255 for name in ("red", "white"))
    return Garment("t-shirt", "stripes", "red", red, white, scale=6.0, sleeve=0.36, seed=0)


def dancing(num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The frames of dance.mp4, or more or larger ones; uint8 f h w c."""
    look, scene = dancer_look(), random_scene(np.random.default_rng(SCENE_SEED), height, width)
    poses = dance(np.random.default_rng(DANCE_SEED), num_frames, float(FPS))
    camera = Camera(distance=5.0, height=0.9, focal=2.1, center_x=0.05, center_z=0.92)
    return np.stack([over(shoot(look, pose, camera, height, width).color, scene.picture) for pose in poses])


def portrait() -> np.ndarray:
    """The picture of me.jpg, uint8 h w c."""
    look, rng = portrait_look(), np.random.default_rng(FACE_SEED)
    key = random_key(rng, 0.0, 0.0)
    hanging = {name: np.array([0.3 if name.endswith("L") else -0.3, 0.0, -0.95]) for name in key.limbs}
    pose = as_pose(dataclasses.replace(key, limbs=hanging, nod=np.array([0.02, 0.03, 0.1])), 0.12, 0.0)
    vertices, _ = pose_body(look.body, pose, drawn_shape(look))
    face = vertices[load_bodies().face_landmarks].mean(0)
    focal = 2.5 / (0.46 * HEAD_SIZE)
    camera = Camera(2.5 - face[1], face[2], focal, center_x=face[0], center_z=face[2] - 0.02)
    rows = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    wall = (1 - rows) * np.array([0.80, 0.86, 0.86]) + rows * np.array([0.62, 0.70, 0.72])
    return over(shoot(look, pose, camera, SIDE, SIDE).color, np.broadcast_to(wall, (SIDE, SIDE, 3)))


def write_beat(path: Path, duration_s: Fraction) -> Path:
    """A drum machine at the dance's tempo, 16 bit, one channel."""
    beat_s = np.random.default_rng(DANCE_SEED).uniform(0.35, 0.9)  # what `dance` draws first
    samples = beat(float(duration_s), beat_s)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def beat(duration_s: float, beat_s: float) -> np.ndarray:
    """A falling tone on every beat and a hiss between two, float `n` within -1..1."""
    t = np.arange(round(duration_s * SOUND_RATE)) / SOUND_RATE
    since, between = t % beat_s, (t + beat_s / 2) % beat_s
    drum = np.sin(2 * np.pi * (55 * since + 9 * (1 - np.exp(-since * 25)))) * np.exp(-since * 9)
    hiss = np.random.default_rng(0).uniform(-1, 1, len(t)) * np.exp(-between * 45)
    return 0.6 * drum + 0.12 * hiss
