"""Batches for the light depth network, put together on the device: dancers cut out, in bad pictures.

Synthetic clips have clean light and simple rooms; footage has neither. So dancers are put into other rooms
(depth_scenes.py), behind things and beside each other; pictures are cropped, tinted, blurred and spoiled, the
depth never.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.train.depth_data import CANVAS, SEEN, SPOTS
from dreamoving_cli.train.depth_scenes import cast_scenes
from dreamoving_cli.train.live import Dice, Pool

NEW_SCENE, SECOND, HIDDEN, FOGGED = 0.65, 0.2, 0.2, 0.25  # shares of the pictures
RADIUS = 4  # pixels, of blurs
FINER = 2  # samples a pixel, each side, when frames are cut
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Batch:
    """Pictures and how near their pixels are."""

    picture: Tensor  # b 3 h w, 0..1
    near: Tensor  # b h w, 0 far .. 1 near
    person: Tensor  # b h w, 0..1


@dataclass(frozen=True)
class Cut:
    """Frames cut to one size: as they are, and the nearness of the person alone."""

    whole: Batch
    own_near: Tensor  # b h w; what is behind does not shine through at the rim


def draw_batch(pool: Pool, dice: Dice, sizes: Sequence[tuple[int, int]], count: int) -> Batch:
    """Training examples, all of one of the sizes (height, width)."""
    height, width = sizes[int(dice.host.integers(len(sizes)))]
    cut = framed(pool, dice, count, height, width)
    batch = behind(dice, cut, *cast_scenes(dice, count, height, width))
    batch = with_second(dice, batch, framed(pool, dice, count, height, width, small=True))
    batch = with_thing(dice, batch)
    return Batch(spoiled(dice, batch.picture), batch.near, batch.person)


def framed(pool: Pool, dice: Dice, count: int, height: int, width: int, small: bool = False) -> Cut:
    """Cuts about dancers at any scale, turned a little, mirrored or not; small: standing elsewhere."""
    rows = pool.take(dice, count)
    sides = rows["size"].float()  # b 2, height and width
    spot = rows["spots"].gather(1, dice.integers(SPOTS, count, 1, 1).expand(-1, -1, 2))[:, 0]
    zoom = dice.spread(0.8, 2.2, count)
    fit = torch.maximum(height / sides[:, 0], width / sides[:, 1])
    middle = sides.flip(-1) / 2
    if small:
        scale = fit * dice.spread(0.45, 1.1, count)
        middle = middle + dice.uniform(-0.5, 0.5, count, 2) * sides.flip(-1) * middle.new_tensor((1.0, 0.2))
    else:
        scale = fit * zoom
        middle = middle + (spot - middle) * (zoom - 0.8).clamp(0, 1)[:, None]
    turn, mirror = dice.normal(0.05, count), 2.0 * dice.chance(0.5, count) - 1
    grid = source_grid(height, width, dice.device) / scale[:, None, None, None]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = cos * grid[..., 0] + sin * grid[..., 1], cos * grid[..., 1] - sin * grid[..., 0]
    at = torch.stack([x * mirror[:, None, None], y], -1) + middle[:, None, None]
    return sampled(rows["canvas"], at, sides.flip(-1), outside=not small)


def source_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Places of samples, FINER a pixel, from the middle: (FINER h) (FINER w) 2, x y."""
    y = (torch.arange(FINER * height, device=device) + 0.5) / FINER - height / 2
    x = (torch.arange(FINER * width, device=device) + 0.5) / FINER - width / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def sampled(canvas: Tensor, at: Tensor, sides: Tensor, outside: bool) -> Cut:
    """Frames `b 5 c c` uint8 at places `b H W 2` (x y, pixels); outside: mirrored there, else empty."""
    sides = sides[:, None, None]
    inside = ((at >= 0) & (at <= sides)).all(-1)
    folded = at % (2 * sides)
    folded = torch.minimum(folded, 2 * sides - folded)
    folded = torch.minimum(folded.clamp(min=0.5), sides - 0.5)
    pixels = canvas.float() / 255
    pixels = torch.cat([pixels, pixels[:, 3:4] * pixels[:, 4:5]], 1)
    taken = F.grid_sample(pixels, folded * 2 / CANVAS - 1, mode="bilinear", align_corners=False)
    if not outside:
        taken = taken * inside[:, None]
    taken = F.avg_pool2d(taken, FINER)
    picture, near, person, weighted = taken.split((3, 1, 1, 1), 1)
    own = (weighted / person.clamp(min=1e-3)).clamp(0, 1)
    return Cut(Batch(picture, near[:, 0], person[:, 0]), own[:, 0])


def behind(dice: Dice, cut: Cut, scene: Tensor, near: Tensor) -> Batch:
    """Most dancers before another scene, some of these out of focus; scene: b 3 h w, near: b h w."""
    count, person = len(scene), cut.whole.person
    fog = dice.uniform(0.5, 2.5, count) * dice.chance(FOGGED, count)
    cover = (1.6 * person - 0.6).clamp(0, 1)[:, None]  # the rim shows the scene of before
    shade = 1 + dice.uniform(0, 0.35, count, 1, 1, 1) * (lumps(dice, scene, 5) - 0.5)
    glow = 1 + dice.uniform(0, 0.7, count, 1, 1, 1) * (lumps(dice, scene, 3) - 0.5)
    mixed = cut.whole.picture * shade * cover + blurred(scene * glow, fog) * (1 - cover)
    new = dice.chance(NEW_SCENE, count)[:, None, None]
    placed = torch.where(person > SEEN, cut.own_near, near)
    picture = torch.where(new[:, None], mixed, cut.whole.picture)
    return Batch(picture, torch.where(new, placed, cut.whole.near), person)


def with_second(dice: Dice, batch: Batch, other: Cut) -> Batch:
    """Some pictures get another dancer; the nearer of both covers the other."""
    count = len(batch.near)
    near = (other.own_near + dice.uniform(-0.25, 0.1, count, 1, 1)).clamp(0.3, 1)
    over = (other.whole.person > SEEN) & ~((batch.person > SEEN) & (batch.near > near))
    over &= dice.chance(SECOND, count, 1, 1)
    return Batch(
        torch.where(over[:, None], other.whole.picture, batch.picture),
        torch.where(over, near, batch.near),
        torch.maximum(batch.person, over.float()),
    )


def with_thing(dice: Dice, batch: Batch) -> Batch:
    """Something near the camera, at the rim of some of the pictures."""
    count, (height, width) = len(batch.near), batch.near.shape[1:]
    grid = source_grid(height, width, dice.device)[::FINER, ::FINER] / grid_half(height, width, dice.device)
    side = dice.integers(3, count)  # below, left, right
    along = dice.uniform(-0.9, 0.9, count)
    x = torch.where(side == 0, along, torch.where(side == 1, -1.0, 1.0))
    y = torch.where(side == 0, 1.0, along)
    off = (grid - torch.stack([x, y], -1)[:, None, None]) / dice.spread(0.1, 0.6, count, 1, 1, 2)
    power = torch.where(dice.chance(0.5, count, 1, 1, 1), 2.0, 8.0)
    over = ((off.abs() ** power).sum(-1) < 1) & dice.chance(HIDDEN, count, 1, 1)
    colors = dice.uniform(0, 1, count, 3, 2, 1, 1)
    bands = (off[..., 0] * dice.spread(0.3, 6, count, 1, 1) % 1 < dice.uniform(0, 1, count, 1, 1))[:, None]
    surface = torch.where(bands, colors[:, :, 0], colors[:, :, 1])
    return Batch(
        torch.where(over[:, None], surface * (0.75 + 0.5 * lumps(dice, batch.picture, 4)), batch.picture),
        torch.where(over, dice.uniform(0.9, 1, count, 1, 1), batch.near),
        batch.person * ~over,
    )


def grid_half(height: int, width: int, device: torch.device) -> Tensor:
    """Half of the picture's sides, x y."""
    return torch.tensor((width / 2, height / 2), device=device)


def spoiled(dice: Dice, picture: Tensor) -> Tensor:
    """Other light, colors, sharpness and compression; b 3 h w in 0..1."""
    count = len(picture)

    def one(low: float, high: float) -> Tensor:
        return dice.uniform(low, high, count, 1, 1, 1)

    out = picture.clamp(1e-4, 1) ** dice.normal(0.35, count, 1, 1, 1).exp()
    out = out * (1 + dice.normal(0.15, count, 3, 1, 1)).clamp(0.5, 1.6)
    gray = out.mean(1, keepdim=True)
    out = gray + (out - gray) * one(0, 1.5)
    mean = gray.mean((2, 3), keepdim=True)
    out = (out - mean) * one(0.4, 1.25) + mean * one(0.5, 1.3)
    side = dice.chance(0.3, count, 1, 1, 1) * one(0.2, 0.7)
    out = out * (1 + side * (lumps(dice, out, 2) - 0.5))
    out = blurred(out, dice.uniform(0.4, 1.8, count) * dice.chance(0.4, count))
    out = out + dice.normal(1, *out.shape) * one(0.005, 0.06) * dice.chance(0.5, count, 1, 1, 1)
    out = out.clamp(0, 1)
    return torch.where(dice.chance(0.35, count, 1, 1, 1), packed(out, dice.spread(0.02, 0.2, count)), out)


def lumps(dice: Dice, like: Tensor, cells: int) -> Tensor:
    """Smooth noise about 0.5, b 1 h w, for pictures b c h w."""
    coarse = dice.uniform(0, 1, len(like), 1, cells + 1, cells + 1)
    return F.interpolate(coarse, like.shape[-2:], mode="bicubic", align_corners=True)


def blurred(picture: Tensor, size: Tensor) -> Tensor:
    """Gaussian blur; size: b, standard deviations in pixels, 0: as it is."""
    at = torch.arange(-RADIUS, RADIUS + 1, device=picture.device)
    kernel = (-(at**2) / (2 * size.clamp(min=0.05) ** 2)[:, None]).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, :, None, None, None]
    height, width = picture.shape[-2:]
    wide = F.pad(picture, (RADIUS,) * 4, mode="replicate")
    rows = sum(kernel[:, k] * wide[:, :, k : k + height] for k in range(2 * RADIUS + 1))
    assert isinstance(rows, Tensor)
    out = sum(kernel[:, k] * rows[..., k : k + width] for k in range(2 * RADIUS + 1))
    assert isinstance(out, Tensor)
    return out


def packed(picture: Tensor, step: Tensor) -> Tensor:
    """As after JPEG: the cosines of blocks in steps that grow with their frequency; b 3 h w, step: b."""
    k = torch.arange(8, device=picture.device)
    cosines = (torch.pi * (2 * k + 1) * k[:, None] / 16).cos() / 2
    cosines[0] /= 2**0.5
    gray = (picture * picture.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    planes = torch.cat([gray, picture[:, 0:1] - gray, picture[:, 2:3] - gray], 1)
    blocks = rearrange(planes, "b c (y p) (x q) -> b c y x p q", p=8, q=8)
    steps = step[:, None, None, None, None, None] * (0.5 + (k + k[:, None]) / 4)
    steps = steps * picture.new_tensor((1.0, 2.0, 2.0))[:, None, None, None, None]
    kept = (cosines @ blocks @ cosines.T / steps).round() * steps
    planes = rearrange(cosines.T @ kept @ cosines, "b c y x p q -> b c (y p) (x q)")
    light, red, blue = planes.split(1, 1)
    red, blue = red + light, blue + light
    green = (light - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.cat([red, green, blue], 1).clamp(0, 1)
