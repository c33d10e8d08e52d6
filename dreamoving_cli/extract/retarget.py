"""A dance moved to another body and framing: limb by limb, feet on the ground, heads inside the picture.

The lengths of the source are medians over its frames; directions stay as they were danced, lengths become
those of the other body. Then the person is put where the other one stands, and shrunk if raised arms would
leave the picture. Several dancers all get that body, and are moved and scaled as one group. numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.dancers import Dancer, by_dancer, dancers_of, put_back
from dreamoving_cli.extract.draw import VISIBLE, place
from dreamoving_cli.extract.keypoints import Poses

HAIR = 0.9  # of the way from neck to nose: as far above the nose the hair ends
MARGIN = 0.03  # of the picture's height: free room above the head, below the feet, beside the hands
EXTENT = 98  # percentile of the frames whose extent must fit
MOST, LEAST = 4.0, 0.25  # a person is not scaled by more or less
ODD = 0.6, 1.7  # a limb's ratio against the torso's; beyond, it is taken from the torso's
TOO_SMALL = 0.5  # a person who must be shrunk below this share of the wanted size does not fit
FEW = 0.3  # share of frames: what is shown in fewer is not there
NO_TORSO = "the torso is not seen: all lengths take the group's ratio"
ANKLES = [kp.RIGHT_ANKLE, kp.LEFT_ANKLE]
HIPS = [kp.RIGHT_HIP, kp.LEFT_HIP]


@dataclass(frozen=True)
class Limb:
    """A pair of bones (left, right) with one ratio; each bone: the joint nearer to the neck, the other."""

    name: str
    bones: tuple[tuple[int, int], ...]
    follows: tuple[tuple[int, slice], ...] = ()  # parts that hang on a joint and are scaled alike


LIMBS = (
    Limb("shoulder", ((kp.NECK, kp.LEFT_SHOULDER), (kp.NECK, kp.RIGHT_SHOULDER))),
    Limb("upper arm", ((kp.LEFT_SHOULDER, kp.LEFT_ELBOW), (kp.RIGHT_SHOULDER, kp.RIGHT_ELBOW))),
    Limb(
        "forearm", ((kp.LEFT_ELBOW, kp.LEFT_WRIST), (kp.RIGHT_ELBOW, kp.RIGHT_WRIST)),
        ((kp.LEFT_WRIST, kp.LEFT_HAND), (kp.RIGHT_WRIST, kp.RIGHT_HAND)),
    ),
    Limb("thigh", ((kp.LEFT_HIP, kp.LEFT_KNEE), (kp.RIGHT_HIP, kp.RIGHT_KNEE))),
    Limb(
        "shin", ((kp.LEFT_KNEE, kp.LEFT_ANKLE), (kp.RIGHT_KNEE, kp.RIGHT_ANKLE)),
        ((kp.LEFT_ANKLE, slice(18, 21)), (kp.RIGHT_ANKLE, slice(21, 24))),
    ),
)  # fmt: skip
SIDES = ("left", "right")
# By what a portrait is fitted, best first.
PORTRAIT: dict[str, Sequence[int]] = {
    "shoulders": (kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER), "face": range(kp.FACE.start, kp.FACE.stop),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether the fit can be trusted, and why it is as it is: one sentence each."""

    fits: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Lengths:
    """Median lengths in pixels over the frames that show both ends; None = never seen."""

    torso: float | None
    head: float | None
    hips: float | None  # from the middle to one side
    limbs: dict[str, tuple[float | None, float | None]]  # left, right

    def scaled(self, factor: float) -> "Lengths":
        """The same body at another size."""

        def times(length: float | None) -> float | None:
            return None if length is None else factor * length

        limbs = {name: (times(left), times(right)) for name, (left, right) in self.limbs.items()}
        return Lengths(times(self.torso), times(self.head), times(self.hips), limbs)


def fit_poses(poses: Poses, fit: str, target: Poses | None = None) -> tuple[Poses, Verdict]:
    """The poses in another framing (center) or on another body (person; target: its pose in one picture)."""
    if fit == "source":
        return poses, Verdict(True, ())
    if fit == "center":
        return center(poses)
    if target is None:
        raise UsageError(f"fit is '{fit}'", "Choose source, center or a picture of a person.")
    return to_person(poses, target)


def center(poses: Poses) -> tuple[Poses, Verdict]:
    """Everyone scaled and moved by the same constants, to fill the picture with room about the heads."""
    low, high = extent(poses)
    grounded = shown_share(poses, ANKLES) > FEW
    height, width = poses.height, poses.width
    room = np.array([width - 2 * MARGIN * height, height * (1 - (2 if grounded else 1) * MARGIN)])
    bottom = height * (1 - MARGIN) if grounded else float(height)
    from_y = high[1] if grounded else float(height)
    scale = float(
        np.clip(min(room[0] / max(high[0] - low[0], 1), room[1] / max(from_y - low[1], 1)), LEAST, MOST)
    )
    origin, goal = np.array([(low[0] + high[0]) / 2, from_y]), np.array([width / 2, bottom])
    points = (poses.points - origin) * scale + goal
    people = len(dancers_of(poses))
    reasons = [f"scaled to {scale:.0%} and centered" + (f", {people} dancers as one" if people > 1 else "")]
    if not grounded:
        reasons.append("the feet are not seen: the lower edge of the picture stays where it was")
    return replace(poses, points=points.astype(np.float32)), Verdict(True, tuple(reasons))


def to_person(poses: Poses, target: Poses) -> tuple[Poses, Verdict]:
    """The dance on the body in a picture, at that body's place. poses: f p 134 2; target: 1 1 134 2.

    Of several, the first whose torso is seen comes to stand where that body does; the others get its
    proportions, and their sizes and places against the first one's stay.
    """
    size, target_size = (poses.height, poses.width), (target.height, target.width)
    there = replace(target, points=place(target.points, target_size, size).astype(np.float32))
    dancers, theirs = dancers_of(poses), measure_lengths(there)
    first = next((k for k, each in enumerate(dancers) if measure_lengths(each.poses).torso), None)
    if first is None:
        return to_portrait(poses, dancers, there)
    if not theirs.torso:
        raise InputError(
            "the picture's torso is not seen", "Use --fit center, or a picture from head to hips."
        )
    ratios, reasons = group_ratios(dancers, first, theirs)
    moved = [on_body(each.poses, own) for each, own in zip(dancers, ratios, strict=True)]
    leader = replace(dancers[first].poses, points=moved[first][:, None].astype(np.float32))
    shift = (anchor(there) - anchor(leader)).astype(np.float32)
    return into_picture(
        put_back(poses, dancers, [points + shift for points in moved]), anchor(leader) + shift, reasons
    )


def to_portrait(poses: Poses, dancers: Sequence[Dancer], there: Poses) -> tuple[Poses, Verdict]:
    """Who shows no torso: scaled as a whole, by what dancer and picture both show. there: 1 1 134 2."""
    for name, part in PORTRAIT.items():
        ours = next((found for each in dancers if (found := size_and_place(each.poses, part))), None)
        theirs = size_and_place(there, part)
        if ours and theirs:
            scale = float(np.clip(theirs[0] / ours[0], LEAST, MOST))
            points = (poses.points - ours[1]) * scale + theirs[1]
            reason = f"the torso is not seen: all is scaled to {scale:.0%}, by the {name}"
            return into_picture(replace(poses, points=points.astype(np.float32)), theirs[1], [reason])
    raise InputError(
        "dancer and picture show neither torso nor shoulders nor face alike", "Use --fit center."
    )


def size_and_place(poses: Poses, part: Sequence[int]) -> tuple[float, np.ndarray] | None:
    """Typical extent of these points in pixels, and their middle; None where they are hardly ever seen."""
    seen = (poses.scores[:, 0, list(part)] > VISIBLE).all(1)
    if seen.mean() <= FEW:
        return None
    points = poses.points[seen, 0][:, list(part)]  # k n 2
    across = np.median(np.linalg.norm(np.ptp(points, axis=1), axis=-1))
    return max(float(across), 1.0), np.median(points.mean(1), axis=0)


def group_ratios(
    dancers: Sequence[Dancer], first: int, theirs: Lengths
) -> tuple[list[dict[str, float]], list[str]]:
    """The ratios of each dancer, with one for all torsos and one for all ways; and what had to be guessed.

    first: the dancer who gets the other body's size.
    """
    leader = measure_lengths(dancers[first].poses)
    assert leader.torso
    common, _ = limb_ratios(leader, theirs)
    every: list[dict[str, float]] = []
    reasons: list[tuple[int, Sequence[str]]] = []
    for each in dancers:
        own = measure_lengths(each.poses)
        if own.torso:
            ratios, said = limb_ratios(own, theirs.scaled(own.torso / leader.torso))
        else:
            ratios, said = dict.fromkeys(common, common["torso"]), [NO_TORSO]
        every.append(ratios | {"ground": common["ground"]})
        reasons.append((each.number, said))
    return every, by_dancer(reasons)


def on_body(poses: Poses, ratios: dict[str, float]) -> np.ndarray:
    """One dancer's points, f 134 2, with other lengths and the feet on their ground."""
    points = rebuild(poses.points[:, 0], poses.scores[:, 0], ratios)
    return points + ground_shift(poses, points, ratios["ground"])[:, None]


def measure_lengths(poses: Poses) -> Lengths:
    """Typical lengths of the first person's bones."""
    points, scores = poses.points[:, 0], poses.scores[:, 0]
    limbs = {limb.name: tuple(_median(points, scores, a, [b]) for a, b in limb.bones) for limb in LIMBS}
    hips = _median(points, scores, kp.LEFT_HIP, [kp.RIGHT_HIP])
    return Lengths(
        torso=_median(points, scores, kp.NECK, HIPS),
        head=_median(points, scores, kp.NECK, [kp.NOSE]),
        hips=hips / 2 if hips else None,
        limbs={name: (left, right) for name, (left, right) in limbs.items()},
    )


def _median(points: np.ndarray, scores: np.ndarray, a: int, ends: Sequence[int]) -> float | None:
    """Median distance of a joint and the middle of others. points: f 134 2; scores: f 134."""
    seen = (scores[:, [a, *ends]] > VISIBLE).all(1)
    if not seen.any():
        return None
    return float(np.median(np.linalg.norm(points[seen, a] - points[seen][:, ends].mean(1), axis=-1))) or None


def limb_ratios(ours: Lengths, theirs: Lengths) -> tuple[dict[str, float], list[str]]:
    """How much longer each limb becomes, by name, and what had to be guessed."""
    assert ours.torso
    assert theirs.torso
    torso = theirs.torso / ours.torso
    ratios, reasons = {"torso": torso}, []
    for name, own, other in (("head", ours.head, theirs.head), ("hips", ours.hips, theirs.hips)):
        ratios[name] = other / own if own and other else torso
        if not (own and other):
            reasons.append(
                f"{name} hidden in the {'reference' if own else 'dance'}: ratio taken from the torso"
            )
    for name, own_sides in ours.limbs.items():
        sides = theirs.limbs[name]
        for side, length, twin in zip(SIDES, sides, SIDES[::-1], strict=True):
            if length is None and any(sides):
                reasons.append(f"{side} {name} hidden in the reference: ratio taken from the {twin}")
        # A limb that points at the camera looks short: of twins in one picture the longer one is the truer.
        own, other = max(filter(None, own_sides), default=None), max(filter(None, sides), default=None)
        ratios[name] = other / own if own and other else torso
        if not (own and other):
            reasons.append(
                f"both {name}s hidden in the {'reference' if own else 'dance'}: ratio taken from the torso"
            )
    for name, ratio in ratios.items():
        if not ODD[0] <= ratio / torso <= ODD[1]:
            reasons.append(
                f"the {name} would become {ratio / torso:.0%} of the torso's ratio: that one is taken"
            )
            ratios[name] = torso
    legs = [theirs.limbs[name] for name in ("thigh", "shin")]
    ratios["ground"] = (ratios["thigh"] + ratios["shin"]) / 2 if all(any(leg) for leg in legs) else torso
    return ratios, reasons


def rebuild(points: np.ndarray, scores: np.ndarray, ratios: dict[str, float]) -> np.ndarray:
    """The same directions, other lengths, outward from the neck. points: f 134 2; scores: f 134."""
    old = points.astype(np.float64)
    seen = scores > VISIBLE
    new = old * ratios["torso"]  # what hangs on nothing
    neck = _held(old[:, kp.NECK], seen[:, kp.NECK])
    new += (neck * (ratios["ground"] - ratios["torso"]))[:, None]
    head = [
        kp.NOSE,
        kp.RIGHT_EYE,
        kp.LEFT_EYE,
        kp.RIGHT_EAR,
        kp.LEFT_EAR,
        *range(kp.FACE.start, kp.FACE.stop),
    ]
    new[:, head] = new[:, [kp.NECK]] + ratios["head"] * (old[:, head] - neck[:, None])
    middle = old[:, HIPS].mean(1)
    new_middle = new[:, kp.NECK] + ratios["torso"] * (middle - neck)
    for hip in HIPS:
        new[:, hip] = new_middle + ratios["hips"] * (old[:, hip] - middle)
    for limb in LIMBS:
        for a, b in limb.bones:
            hung = seen[:, [a]] if a != kp.NECK else np.ones((len(old), 1), bool)
            base = neck if a == kp.NECK else old[:, a]
            along = new[:, a] + ratios[limb.name] * (old[:, b] - base)
            new[:, b] = np.where(hung, along, new[:, b])
        for joint, part in limb.follows:
            hung = seen[:, [joint], None]
            along = new[:, [joint]] + ratios[limb.name] * (old[:, part] - old[:, [joint]])
            new[:, part] = np.where(hung, along, new[:, part])
    return new


def _held(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Values over time, between the frames in which they are seen evenly. f 2, bool f."""
    if not seen.any():
        return values
    frames = np.arange(len(values))
    return np.stack([np.interp(frames, frames[seen], values[seen, axis]) for axis in range(2)], 1)


def ground_shift(poses: Poses, points: np.ndarray, scale: float) -> np.ndarray:
    """What to add in each frame so that the lower foot keeps its height above the ground, times scale: f 2.

    points: f 134 2, rebuilt.
    """
    old, seen = poses.points[:, 0], poses.scores[:, 0] > VISIBLE
    both = seen[:, ANKLES]
    shift = np.zeros((len(points), 2))
    if not both.any():
        return shift
    lowest_old = np.where(both, old[:, ANKLES, 1], -np.inf).max(1)
    lowest_new = np.where(both, points[:, ANKLES, 1], -np.inf).max(1)
    known = both.any(1)
    frames = np.arange(len(points))
    wanted = scale * lowest_old[known] - lowest_new[known]
    shift[:, 1] = np.interp(frames, frames[known], wanted)
    return shift


def anchor(poses: Poses) -> np.ndarray:
    """Where the person typically stands: the neck's column, the lower foot's row (else the neck's); 2."""
    points, seen = poses.points[:, 0], poses.scores[:, 0] > VISIBLE
    neck = np.median(points[seen[:, kp.NECK], kp.NECK], axis=0)
    feet = seen[:, ANKLES].any(1)
    if feet.mean() <= FEW:
        return np.asarray(neck)
    lowest = np.where(seen[feet][:, ANKLES], points[feet][:, ANKLES, 1], -np.inf).max(1)
    return np.array([neck[0], np.median(lowest)])


def into_picture(poses: Poses, base: np.ndarray, reasons: list[str]) -> tuple[Poses, Verdict]:
    """Moved, and if that is not enough shrunk about base (x, y), so that heads and hands stay inside."""
    grounded = shown_share(poses, ANKLES) > FEW
    low, high = extent(poses)
    border = MARGIN * poses.height
    room = np.array([poses.width - 2 * border, poses.height - border - (border if grounded else 0)])
    needs = high - low
    if not grounded:
        needs[1] = max(base[1], 1) - low[1]
        room[1] = max(base[1], 1) - border
    scale = float(min(1.0, *(room / np.maximum(needs, 1))))
    if scale < 1:
        reasons = [*reasons, f"shrunk to {scale:.0%} so that head, hands and feet stay in the picture"]
    points = (poses.points - base) * scale + base
    low, high = extent(replace(poses, points=points))
    shift = np.maximum(border - low, 0) - np.maximum(
        high - (np.array([poses.width, poses.height]) - border), 0
    )
    if not grounded:
        shift[1] = max(border - low[1], 0)
    if np.abs(shift).max() > 1:
        reasons = [*reasons, f"moved by {shift[0]:+.0f}, {shift[1]:+.0f} pixels into the picture"]
    return replace(poses, points=(points + shift).astype(np.float32)), Verdict(
        scale >= TOO_SMALL, tuple(reasons)
    )


def extent(poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    """Left top and right bottom of what people take up in nearly all frames, hair included; 2, 2."""
    seen = poses.scores > VISIBLE
    there = seen.any((1, 2))
    if not there.any():
        raise InputError("nobody is shown in these poses", "Give poses with a person.")
    points = poses.points.astype(np.float64)
    crown = points[:, :, kp.NOSE] + HAIR * (points[:, :, kp.NOSE] - points[:, :, kp.NECK])
    has_head = seen[:, :, kp.NOSE] & seen[:, :, kp.NECK]
    every = np.concatenate([points, crown[:, :, None]], 2)[there]
    shown = np.concatenate([seen, has_head[:, :, None]], 2)[there][..., None]
    low = np.where(shown, every, np.inf).min((1, 2))
    high = np.where(shown, every, -np.inf).max((1, 2))
    return np.percentile(low, 100 - EXTENT, axis=0), np.percentile(high, EXTENT, axis=0)


def shown_share(poses: Poses, joints: Sequence[int]) -> float:
    """Share of the frames with anyone in which any of these joints is shown."""
    shown = poses.scores > VISIBLE
    there = shown.any((1, 2))
    return float(shown[there][:, :, list(joints)].any((1, 2)).mean()) if there.any() else 0.0
