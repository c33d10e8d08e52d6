"""Rooms full of things, by casting rays on the device: what is behind a dancer, with its true nearness.

Walls meet floors in perspective; boxes and balls stand, hang and lie about; cloth, boards and pictures on any
of them have contrast and no relief. y points down, the camera is at the origin and looks along z, one unit
above the floor. Nearness falls with one over z, as on the floors of scenes.py: FLOOR at the lower edge.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.train.live import Dice

FLOOR, NEAREST = 0.45, 0.52  # nearness at the lower edge, and at most: dancers are in front
FAR = 1e4
THINGS, PLANES = 8, 4
SURFACES = THINGS + PLANES + 1  # the last is the sky
STRAIGHT = 0.7  # share of the surfaces whose texture is upright
OUTDOORS = 0.15
KINDS = 5  # of textures


@dataclass
class Seen:
    """What the rays `b n` have met so far."""

    distance: Tensor  # b n, along z
    surface: Tensor  # b n, index
    light: Tensor  # b n
    place: Tensor  # b n 3, on the surface

    def meet(self, distance: Tensor, surface: int, light: Tensor, place: Tensor) -> None:
        """Take what lies before everything met so far; distance: FAR and beyond where nothing is."""
        nearer = distance < self.distance
        self.distance = torch.where(nearer, distance, self.distance)
        self.surface = self.surface.masked_fill(nearer, surface)
        self.light = torch.where(nearer, light, self.light)
        self.place = torch.where(nearer[..., None], place, self.place)


def cast_scenes(dice: Dice, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pictures b 3 h w in 0..1 and nearness b h w."""
    focal, horizon = dice.spread(0.7, 2, count, 1), dice.uniform(0.25, 0.8, count, 1)
    y = (torch.arange(height, device=dice.device) + 0.5) / height
    x = ((torch.arange(width, device=dice.device) + 0.5) / width - 0.5) * width / height
    rows, columns = (each.flatten() for each in torch.meshgrid(y, x, indexing="ij"))
    across, down = columns / focal, (rows - horizon) / focal
    rays = torch.stack([across, down, torch.ones_like(down)], -1)  # b n 3, of length 1 along z
    foot = focal / (1 - horizon)  # z of the floor at the lower edge, b 1
    seen = Seen(
        torch.full_like(down, FAR), torch.full_like(down, SURFACES - 1, dtype=torch.long),
        torch.ones_like(down), rays,
    )  # fmt: skip
    meet_planes(seen, dice, rays, foot)
    meet_things(seen, dice, rays, foot, width / height / focal)
    near = (FLOOR * foot / seen.distance).clamp(max=NEAREST)
    colors = textured(seen, dice) * seen.light[..., None]
    picture = rearrange(colors, "b (h w) c -> b c h w", h=height)
    return picture.clamp(0, 1), rearrange(near, "b (h w) -> b h w", h=height)


def meet_planes(seen: Seen, dice: Dice, rays: Tensor, foot: Tensor) -> None:
    """Floor, ceiling and two walls; outdoors there is a floor only."""
    count = len(rays)
    turn = dice.normal(0.35, count)
    corner = turn + dice.uniform(0.9, 1.6, count) * (2 * dice.chance(0.5, count) - 1)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    normals = torch.stack([
        torch.stack([zero, one, zero], -1), torch.stack([zero, -one, zero], -1),
        torch.stack([turn.sin(), zero, turn.cos()], -1), torch.stack([corner.sin(), zero, corner.cos()], -1),
    ])  # fmt: skip
    away = torch.stack([
        one, dice.uniform(0.4, 2, count), foot[:, 0] * dice.spread(1.1, 6, count),
        foot[:, 0] * dice.spread(0.5, 3, count),
    ])  # fmt: skip
    indoors = ~dice.chance(OUTDOORS, count)
    there = torch.stack([~dice.chance(0.1, count), dice.chance(0.5, count), one > 0, dice.chance(0.5, count)])
    there = there & torch.stack([one > 0, indoors, indoors, indoors])
    for i in range(PLANES):
        facing = (rays * normals[i, :, None]).sum(-1)
        distance = torch.where(
            (facing > 1e-4) & there[i, :, None], away[i, :, None] / facing.clamp(min=1e-4), FAR
        )
        light = dice.uniform(0.75, 1.1, count, 1).expand_as(distance)
        seen.meet(distance, THINGS + i, light, rays * distance[..., None])


def meet_things(seen: Seen, dice: Dice, rays: Tensor, foot: Tensor, reach: Tensor) -> None:
    """Boxes and balls; reach: half of what is seen across at z = 1, times two, b 1."""
    count = len(rays)
    crowd, sun = dice.uniform(0, 1, count), F.normalize(dice.normal(1, count, 1, 3), dim=-1)
    for i in range(THINGS):
        size = dice.spread(0.08, 0.9, count, 3)
        z = foot[:, 0] * dice.spread(1.1, 4, count) + size[:, 2]
        x = dice.uniform(-0.6, 0.6, count) * reach[:, 0] * z
        above = dice.uniform(0, 1.6, count) * dice.chance(0.35, count)  # hangs, or stands on something
        middle = torch.stack([x, 1 - size[:, 1] - above, z], -1)
        there = dice.uniform(0, 1, count) < crowd
        turn = dice.uniform(-0.8, 0.8, count)
        start, way = turned(-middle[:, None], turn) / size[:, None], turned(rays, turn) / size[:, None]
        boxes, box_normals = into_box(start, way)
        balls, ball_normals = into_ball(start, way)
        round_one = dice.chance(0.35, count)[:, None]
        distance = torch.where(round_one, balls, boxes)
        normal = torch.where(round_one[..., None], ball_normals, box_normals)
        distance = torch.where(there[:, None] & (distance > 0.2), distance, FAR)
        light = 0.85 + 0.3 * (normal * sun).sum(-1)
        seen.meet(distance, i, light, (start + way * distance[..., None]) * size[:, None])


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """About the vertical axis; b n 3 and b."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y, z = vectors.unbind(-1)
    return torch.stack([cos * x - sin * z, y, sin * x + cos * z], -1)


def into_box(start: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays meet the box -1..1 (FAR: never) and its normal there; start b 1 3, way b n 3."""
    safe = torch.where(way.abs() < 1e-6, 1e-6, way)
    one, other = (-1 - start) / safe, (1 - start) / safe
    enter, axis = torch.minimum(one, other).max(-1)
    leave = torch.maximum(one, other).amin(-1)
    normal = F.one_hot(axis, 3) * -torch.sign(safe)
    return torch.where((leave > enter) & (enter > 0), enter, FAR), normal


def into_ball(start: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """As `into_box`, of the ball of radius 1."""
    square, half = (way * way).sum(-1), (start * way).sum(-1)
    inside = half * half - square * ((start * start).sum(-1) - 1)
    enter = (-half - inside.clamp(min=0).sqrt()) / square
    there = torch.where((inside > 0) & (enter > 0), enter, FAR)
    return there, F.normalize(start + way * enter[..., None], dim=-1)


def textured(seen: Seen, dice: Dice) -> Tensor:
    """The color of what is seen, b n 3: plain, striped, paneled, checked or cloudy."""
    count = len(seen.surface)
    straight = dice.chance(STRAIGHT, count, SURFACES, 1)
    angle = torch.where(straight, 0.0, dice.uniform(0, 3.15, count, SURFACES, 1))
    kind = F.one_hot(dice.integers(KINDS, count, SURFACES), KINDS)
    own = torch.cat([
        muted(dice, dice.uniform(0.03, 1, count, SURFACES, 6)), angle.cos(), angle.sin(),
        dice.spread(0.08, 1.2, count, SURFACES, 2), dice.uniform(0.2, 0.8, count, SURFACES, 2),
        dice.uniform(0, 1, count, SURFACES, 1), kind,
        dice.uniform(0, 0.25, count, SURFACES, 1),
    ], -1)  # fmt: skip
    own = own.gather(1, seen.surface[..., None].expand(-1, -1, own.shape[-1]))
    first, second, turn, period, duty, much, kinds, grain = own.split((3, 3, 2, 2, 2, 1, KINDS, 1), -1)
    x, y, z = seen.place.unbind(-1)
    flat = torch.stack([x + 0.8 * z, y + 0.15 * z], -1).clamp(-50, 50)
    cos, sin = turn.unbind(-1)
    along = torch.stack(
        [cos * flat[..., 0] + sin * flat[..., 1], cos * flat[..., 1] - sin * flat[..., 0]], -1
    )
    cell = along / period
    on = (cell % 1 < duty).float()
    smooth = clouds(dice, cell)
    checks = ((cell % 1 < 0.5).sum(-1) == 1).float()
    blends = torch.stack([torch.zeros_like(checks), on[..., 0], on.prod(-1), checks, smooth], -1)
    blend = (blends * kinds).sum(-1, keepdim=True) * much
    seen_at = (40 * period.amin(-1, keepdim=True) / seen.distance[..., None]).clamp(max=1)  # finer ones blend
    color = first + (second - first) * blend * seen_at
    return color * (1 + grain * (clouds(dice, along * 6)[..., None] - 0.5))


def muted(dice: Dice, colors: Tensor) -> Tensor:
    """Two colors each, b k 6, most of them grayish, as in rooms."""
    pairs = rearrange(colors, "b k (two c) -> b k two c", c=3)
    gray = pairs.mean(-1, keepdim=True)
    pairs = gray + (pairs - gray) * dice.uniform(0, 1, *colors.shape[:2], 1, 1)
    return rearrange(pairs, "b k two c -> b k (two c)")


def clouds(dice: Dice, cell: Tensor) -> Tensor:
    """Smooth noise about 0.5 at places b n 2, a lump a unit."""
    fine = dice.uniform(0, 1, len(cell), 1, 32, 32)
    coarse = F.interpolate(dice.uniform(0, 1, len(cell), 1, 8, 8), (32, 32), mode="bicubic")
    noise = (0.5 * fine + 0.5 * coarse).clamp(0, 1)
    at = cell[:, :, None] / 16 * 3
    taken = F.grid_sample(noise, at, mode="bilinear", padding_mode="reflection", align_corners=False)
    return taken[:, 0, :, 0]
