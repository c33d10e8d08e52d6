"""Training examples for the light depth network: dancers cut out, before other scenes, in bad pictures.

Synthetic clips have clean light and simple rooms; footage has neither. So dancers are put before clutter,
behind things and beside each other; the pictures are cropped, tinted, blurred and spoiled, the depth never.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.scenes import random_scene

NEW_SCENE, SECOND, HIDDEN = 0.6, 0.2, 0.15  # shares of the examples
SEEN = 0.5  # of a pixel's cover, from which it belongs to the person


@dataclass(frozen=True)
class Example:
    """One picture and how near its pixels are."""

    picture: np.ndarray  # h w 3, 0..1
    near: np.ndarray  # h w, 0 far .. 1 near
    person: np.ndarray  # h w, 0..1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.picture, self.near, self.person


def read_example(store: ClipStore, seed: int, frame: int) -> Example:
    """One frame of a clip as it is."""
    near, person = (store.array(seed, name)[frame].astype(np.float32) / 255 for name in ("depth", "alpha"))
    return Example(store.array(seed, "frames")[frame].astype(np.float32) / 255, near, person)


def random_example(store: ClipStore, rng: np.random.Generator, height: int, width: int) -> Example:
    """A cut of any frame, of the given size."""
    seed = store.seeds[int(rng.integers(len(store.seeds)))]
    frame = int(rng.integers(len(store.array(seed, "frames"))))
    return framed(rng, read_example(store, seed, frame), height, width)


def draw_example(store: ClipStore, rng: np.random.Generator, height: int, width: int) -> Example:
    """A training example of the given size."""
    example = random_example(store, rng, height, width)
    if rng.random() < NEW_SCENE:
        example = before_clutter(rng, example)
    if rng.random() < SECOND:
        example = with_second(rng, example, random_example(store, rng, height, width))
    if rng.random() < HIDDEN:
        example = behind_things(rng, example)
    return Example(spoiled(rng, example.picture), example.near, example.person)


def before_clutter(rng: np.random.Generator, example: Example) -> Example:
    """The dancer before another scene, full of things."""
    height, width = example.near.shape
    scene = random_scene(rng, height, width)
    picture, near = scene.picture.copy(), 0.6 * scene.depth.astype(np.float32)
    for _ in range(int(rng.integers(0, 12))):
        mask = random_shape(rng, height, width)
        if mask.any():
            picture[mask] = texture(rng, height, width)[mask]
            near[mask] = np.clip(near[mask].mean() + rng.uniform(0, 0.1), 0, 0.5)
    if rng.random() < 0.5:
        picture = picture * (1 + rng.uniform(0.1, 0.7) * (texture(rng, height, width) - 0.5))
    cover = np.clip(1.6 * example.person - 0.6, 0, 1)[..., None]  # the rim shows the scene of before
    shade = 1 + rng.uniform(0, 0.35) * (cloud(rng, height, width, 5) - 0.5)[..., None]
    mixed = example.picture * shade * cover + picture.astype(np.float32) * (1 - cover)
    return Example(mixed, np.where(example.person > SEEN, example.near, near), example.person)


def with_second(rng: np.random.Generator, example: Example, other: Example) -> Example:
    """A dancer of another clip, elsewhere; the nearer of both covers the other."""
    height, width = example.near.shape
    scale = float(rng.uniform(0.45, 1.1))
    matrix = np.array([[scale, 0, rng.uniform(-0.5, 0.5) * width], [0, scale, height * (1 - 0.97 * scale)]])
    picture, near, person = (
        cv2.warpAffine(array, matrix, (width, height), flags=cv2.INTER_LINEAR) for array in other.arrays()
    )
    near = np.clip(near + rng.uniform(-0.25, 0.1), 0.3, 1)
    over = (person > SEEN) & ~((example.person > SEEN) & (example.near > near))
    mixed = np.where(over[..., None], picture, example.picture)
    return Example(mixed, np.where(over, near, example.near), np.maximum(example.person, over))


def behind_things(rng: np.random.Generator, example: Example) -> Example:
    """Something near the camera, at the rim of the picture."""
    height, width = example.near.shape
    mask = random_shape(rng, height, width)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return example
    side = int(rng.integers(3))  # below, left, right
    down = height - 1 - int(rows.max()) if side == 0 else 0
    across = (0, -int(columns.min()), width - 1 - int(columns.max()))[side]
    mask = np.roll(mask, (down, across), (0, 1))
    picture = np.where(mask[..., None], texture(rng, height, width), example.picture)
    near = np.where(mask, np.float32(rng.uniform(0.9, 1)), example.near)
    return Example(picture, near, np.where(mask, 0, example.person))


def framed(rng: np.random.Generator, example: Example, height: int, width: int) -> Example:
    """A cut about the dancer at any scale, turned a little, mirrored or not."""
    h, w = example.near.shape
    rows, columns = np.nonzero(example.person > SEEN)
    k = int(rng.integers(len(rows))) if len(rows) else 0
    about = np.array([columns[k], rows[k]] if len(rows) else [w / 2, h / 2], np.float64)
    zoom = float(np.exp(rng.uniform(np.log(0.8), np.log(2.2))))
    fit = max(height / h, width / w) * zoom
    middle = np.array([w / 2, h / 2]) + (about - [w / 2, h / 2]) * min(1.0, max(zoom - 0.8, 0))
    turn = np.deg2rad(rng.normal(0, 3))
    mirror = -1 if rng.random() < 0.5 else 1
    rotation = fit * np.array([[mirror * np.cos(turn), -np.sin(turn)], [mirror * np.sin(turn), np.cos(turn)]])
    matrix = np.column_stack([rotation, np.array([width / 2, height / 2]) - rotation @ middle])
    picture, near, person = (
        cv2.warpAffine(
            np.ascontiguousarray(array, np.float32), matrix, (width, height),
            flags=cv2.INTER_AREA if fit < 1 else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101,
        )
        for array in example.arrays()
    )  # fmt: skip
    return Example(picture, near, person)


def spoiled(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Other light, colors, sharpness and compression; h w 3 in 0..1."""
    height, width = picture.shape[:2]
    out = np.clip(picture, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.3)))
    out = out * np.clip(1 + rng.normal(0, 0.12, 3), 0.6, 1.5).astype(np.float32)
    gray = out.mean(-1, keepdims=True)
    out = gray + (out - gray) * np.float32(rng.uniform(0.1, 1.4))
    contrast, brightness = rng.uniform(0.5, 1.2), rng.uniform(0.6, 1.2)
    out = (out - gray.mean()) * np.float32(contrast) + gray.mean() * np.float32(brightness)
    if rng.random() < 0.3:  # light from one side
        out = out * (1 + rng.uniform(0.2, 0.6) * (cloud(rng, height, width, 2) - 0.5))[..., None]
    if rng.random() < 0.4:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.5:
        out = out + rng.normal(0, rng.uniform(0.005, 0.05), out.shape).astype(np.float32)
    out = np.clip(out, 0, 1)
    if rng.random() < 0.3:
        pixels = (out * 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 80))]
        packed = cv2.imencode(".jpg", pixels, quality)[1]
        out = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.float32) / 255
    return out.astype(np.float32)


def random_shape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A box, an ellipse or a polygon somewhere, bool h w."""
    mask = np.zeros((height, width), np.uint8)
    middle = rng.uniform(0, [width, height])
    size = np.exp(rng.uniform(np.log(0.04), np.log(0.35), 2)) * [width, height]
    kind = int(rng.integers(3))
    if kind == 0:
        corners = np.concatenate([middle - size, middle + size]).astype(int).tolist()
        cv2.rectangle(mask, corners[:2], corners[2:], 1, -1)
    elif kind == 1:
        axes = (int(size[0]) + 1, int(size[1]) + 1)
        cv2.ellipse(mask, middle.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        around = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.4, 1, (len(angles), 1))
        cv2.fillPoly(mask, [(middle + around * size).astype(np.int32)], 1)
    return mask > 0


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Any surface: one color, stripes, or clouds of two colors; float32 h w 3."""
    first, second = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    kind = int(rng.integers(4))
    if kind == 0:
        blend = np.full((height, width), np.float32(rng.random()))
    elif kind == 1:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(40)))
        phase = (x * np.cos(angle) + y * np.sin(angle)) / period % 1
        blend = (phase < rng.uniform(0.2, 0.8)).astype(np.float32)
    else:
        blend = np.clip(sum(cloud(rng, height, width, 3**k) / 2**k for k in range(1, 4)) / 0.875, 0, 1)
    return first + (second - first) * blend[..., None]


def cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise about 0.5, float32 h w."""
    coarse = rng.uniform(0, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
