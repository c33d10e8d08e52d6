"""Procedural garments: cuts, colors, patterns; worn on a body and as product pictures on any ground.

A garment has one coordinate system for both: u across the chest (-1 .. 1), v up (0 hem, 1 shoulder).
"""

from dataclasses import dataclass

import cv2
import numpy as np

PATTERNS = ("plain", "stripes", "columns", "checks", "dots", "print", "yoke")
TOPS = ("tank", "t-shirt", "long-sleeve", "sweater")
BOTTOMS = ("shorts", "trousers", "skirt", "dress")
COLORS = {  # name -> sRGB; what a caption calls it
    "white": (238, 238, 236), "black": (28, 28, 30), "gray": (128, 128, 130), "red": (196, 36, 40),
    "orange": (232, 128, 36), "yellow": (238, 208, 64), "green": (44, 138, 66), "olive": (110, 112, 52),
    "teal": (30, 138, 140), "light blue": (136, 186, 226), "blue": (38, 82, 186), "navy": (28, 36, 84),
    "purple": (110, 56, 158), "pink": (236, 138, 176), "brown": (112, 72, 44), "beige": (214, 194, 160),
}  # fmt: skip


@dataclass(frozen=True)
class Garment:
    """One top or bottom: what a product picture shows."""

    cut: str
    pattern: str
    name: str  # color word
    color: np.ndarray  # 3, sRGB 0..1
    second: np.ndarray  # 3, the pattern's other color
    scale: float  # repeats of the pattern over the garment
    sleeve: float  # 0 none .. 1 to the wrist
    seed: int


def random_color(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A color word and a shade of it, sRGB 0..1 `3`."""
    name = str(rng.choice(list(COLORS)))
    shade = np.array(COLORS[name]) / 255 * rng.uniform(0.82, 1.12) + rng.normal(0, 0.025, 3)
    return name, np.clip(shade, 0.04, 0.97)


def random_garment(rng: np.random.Generator, cuts: tuple[str, ...] = TOPS) -> Garment:
    """Any garment of the given cuts; four in ten are plain."""
    name, color = random_color(rng)
    second = random_color(rng)[1]
    if np.abs(second - color).sum() < 0.45:
        second = np.clip(1 - color, 0.05, 0.95)
    cut = str(rng.choice(cuts))
    sleeve = {"tank": 0.0, "t-shirt": rng.uniform(0.22, 0.45)}.get(cut, rng.uniform(0.85, 0.97))
    plain = rng.random() < (0.75 if cut in ("shorts", "trousers", "skirt") else 0.4)
    pattern = "plain" if plain else str(rng.choice(PATTERNS[1:]))
    return Garment(
        cut, pattern, name, color, second, rng.uniform(3, 8), float(sleeve), int(rng.integers(2**31))
    )


def paint(garment: Garment, u: np.ndarray, v: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Albedo of the cloth, sRGB 0..1 `... 3`, at garment coordinates; `front` 1 chest, 0 back."""
    s, kind = garment.scale, garment.pattern
    rng = np.random.default_rng(garment.seed)
    if kind == "stripes":
        mask = (v * s) % 1 < 0.42
    elif kind == "columns":
        mask = (u * s / 2) % 1 < 0.4
    elif kind == "checks":
        mask = ((u * s / 2) % 1 < 0.5) ^ ((v * s / 1.4) % 1 < 0.5)
    elif kind == "dots":
        mask = np.hypot((u * s / 2) % 1 - 0.5, (v * s / 1.4) % 1 - 0.5) < 0.27
    elif kind == "yoke":
        mask = v > rng.uniform(0.5, 0.75)
    elif kind == "print":
        cv, size = rng.uniform(0.5, 0.68), rng.uniform(0.16, 0.34)
        x, y = u / (size * 1.6), (v - cv) / size
        shape = [
            np.hypot(x, y) < 1,
            np.maximum(abs(x), abs(y)) < 0.9,
            (abs(x) < 1.2) & ((y * 2.4) % 1 < 0.55) & (abs(y) < 0.8),
        ]
        mask = shape[int(rng.integers(3))] & (front > 0.5)
    else:
        mask = np.zeros(u.shape, bool)
    return np.where(mask[..., None], garment.second, garment.color).astype(np.float32)


def wrinkles(rng: np.random.Generator, height: int, width: int, cells: int = 6) -> np.ndarray:
    """Smooth shading noise around 1, float32 `h w`."""
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    fine = rng.normal(0, 0.5, (cells * 3, cells * 2)).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return 1 + 0.05 * (noise + cv2.resize(fine, (width, height), interpolation=cv2.INTER_CUBIC))


def outline(garment: Garment, rng: np.random.Generator) -> list[np.ndarray]:
    """Polygons of a garment laid flat, in (u, v); sleeves hang at an angle."""
    neck, drop, flare = rng.uniform(0.22, 0.4), rng.uniform(0.02, 0.16), rng.uniform(-0.08, 0.12)
    if garment.cut in BOTTOMS:
        return _outline_bottom(garment, rng)
    torso = [
        (-neck, 1),
        (-0.2 * neck, 1 - drop),
        (0.2 * neck, 1 - drop),
        (neck, 1),
        (0.95, 0.93),
        (0.86, 0.7),
    ]
    torso += [(0.85 + flare, 0), (-0.85 - flare, 0), (-0.86, 0.7), (-0.95, 0.93)]
    if garment.sleeve < 0.05:
        torso[4:6] = [(0.66, 0.97), (0.7, 0.68)]
        torso[8:10] = [(-0.7, 0.68), (-0.66, 0.97)]
        return [np.array(torso)]
    angle, length, cuff = rng.uniform(0.15, 1.1), 1.0 * garment.sleeve + 0.12, rng.uniform(0.16, 0.24)
    out = np.array([np.sin(angle) * length * 1.5, -np.cos(angle) * length])
    side = np.array([np.cos(angle) * cuff * 1.5, np.sin(angle) * cuff])
    cuffs = np.array([[0.9, 0.93], [0.8, 0.8]]) + out + np.array([side, -0.4 * side])
    arm = np.array([[0.8, 0.95], [0.95, 0.93], *cuffs, [0.8, 0.62]])
    return [np.array(torso), arm, arm * [-1, 1]]


def _outline_bottom(garment: Garment, rng: np.random.Generator) -> list[np.ndarray]:
    flare = rng.uniform(0.05, 0.5)
    if garment.cut in ("skirt", "dress"):
        top = 0.62 if garment.cut == "dress" else 1.0
        skirt = np.array([(-0.5, top), (0.5, top), (0.6 + flare, 0), (-0.6 - flare, 0)])
        bodice = np.array(
            [
                (-0.3, 1),
                (-0.15, 0.93),
                (0.15, 0.93),
                (0.3, 1),
                (0.5, 0.95),
                (0.5, 0.6),
                (-0.5, 0.6),
                (-0.5, 0.95),
            ]
        )
        return [skirt, bodice] if garment.cut == "dress" else [skirt]
    leg = np.array([(0, 1), (0.6, 1), (0.65, 0), (0.15, 0), (0.0, 0.7)])
    return [leg, leg * [-1, 1]]


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """What garments and portraits are photographed on: mostly plain and light, else busy; float `h w 3`."""
    if rng.random() < 0.6:
        level = rng.uniform(0.8, 1.0) if rng.random() < 0.7 else rng.uniform(0.2, 0.8)
        return np.clip(np.full((height, width, 3), level) + rng.normal(0, 0.03, 3), 0, 1)
    coarse = rng.uniform(0.1, 0.9, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3)).astype(np.float32)
    mode = cv2.INTER_NEAREST if rng.random() < 0.3 else cv2.INTER_CUBIC
    return np.clip(cv2.resize(coarse, (width, height), interpolation=mode), 0, 1)


def product_picture(garment: Garment, rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """The garment alone, as a shop shows it: uint8 `side side 3`."""
    canvas = background(rng, side, side)
    turn, size = rng.normal(0, 0.08), side * rng.uniform(0.3, 0.44)
    center = side / 2 + rng.normal(0, side * 0.03, 2)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    cos, sin = np.cos(turn), np.sin(turn)
    u = ((x - center[0]) * cos + (y - center[1]) * sin) / (size * 0.75)
    v = 0.5 - ((y - center[1]) * cos - (x - center[0]) * sin) / (size * 1.55)
    albedo = paint(garment, u, v, np.ones_like(u))
    shade = wrinkles(rng, side, side) * rng.uniform(0.85, 1.1)
    for polygon in reversed(outline(garment, rng)):
        px = polygon[:, 0] * size * 0.75
        py = (0.5 - polygon[:, 1]) * size * 1.55
        points = np.stack([center[0] + px * cos - py * sin, center[1] + px * sin + py * cos], 1)
        mask = np.zeros((side, side), np.uint8)
        cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(mask, (0, 0), side * 0.02).astype(np.float32)[..., None] / 255
        inside = mask.astype(np.float32)[..., None] / 255
        canvas = canvas * (1 - 0.25 * soft * (1 - inside))
        canvas = canvas * (1 - inside) + albedo * shade[..., None] * (0.86 + 0.14 * soft) * inside
    return np.clip(canvas * 255, 0, 255).astype(np.uint8)
