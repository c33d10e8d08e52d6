"""What detectors see in a rendered clip, beside what they see in the truth: pose, depth, face, words.

    truth = read_truth(store, seed, frames)
    values = agreement(made, truth)             # made: uint8 f h w c of the truth's size

A detector errs on synthetic people as well. So each measure has a companion that leaves out what the
detector does not find in the truth's own frames, and what is compared with the truth is what it says there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.pose import find_people
from dreamoving_cli.media.images import resize, spread
from dreamoving_cli.quality import JOINTS, NEAR, Watched, torso_length
from dreamoving_cli.train.data import ClipStore

LOOKED_AT = 512  # pixels of the longer side in which poses are looked for
SEEN = 128  # alpha from which a pixel belongs to the person
LARGE_FACE = 96  # pixels of a face's longer side from which its landmarks are judged
FEW = 50  # pixels; a person that shows less has no depth
NAMED_FRAMES = 3  # of a clip that are put into words
NAMED = ("pattern", "skin", "hair", "who")  # attributes that the captioner names
MIRRORED = [
    JOINTS.index(j)
    for j in (
        kp.NOSE, kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER, kp.RIGHT_ELBOW, kp.LEFT_ELBOW, kp.RIGHT_WRIST,
        kp.LEFT_WRIST, kp.RIGHT_HIP, kp.LEFT_HIP, kp.RIGHT_KNEE, kp.LEFT_KNEE, kp.RIGHT_ANKLE, kp.LEFT_ANKLE,
    )
]  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """A synthetic clip as it is, and what detectors say of it."""

    frames: np.ndarray  # uint8 f h w c
    alpha: np.ndarray  # uint8 f h w, the person
    depth: np.ndarray  # uint8 f h w, 255 near
    points: np.ndarray  # f 134 2
    scores: np.ndarray  # f 134
    hair: np.ndarray | None  # 3, sRGB 0..1; None = bald
    pattern: str  # of the garment, of PATTERNS

    @cached_property
    def pose(self) -> Watched:
        """The true points."""
        return watched(self.points, self.scores, self.frames.shape[1:3])

    @cached_property
    def seen_pose(self) -> Watched:
        """What the detector finds in the frames."""
        return detected(self.frames)

    @cached_property
    def seen_depth(self) -> np.ndarray:
        """Nearness 0..1 f h w as the light depth network sees the frames."""
        return seen_depth(self.frames)

    @cached_property
    def seen_faces(self) -> Watched:
        """Points of the whole body in the frames."""
        return detected(self.frames[large_faces(self)], whole_body=True)

    @cached_property
    def flow(self) -> np.ndarray:
        """How far each pixel moves to the next frame, in pixels, f-1 h w 2."""
        return optical_flow(self.frames)

    @cached_property
    def words(self) -> list[dict[str, Any]]:
        """What the captioner says of a few frames."""
        return named(self.frames)


def read_truth(store: ClipStore, seed: int, frames: int) -> Truth:
    """The first frames of a clip."""
    facts, span = store.facts(seed), slice(0, frames)
    pictures, alpha, depth = (np.array(store.array(seed, n)[span]) for n in ("frames", "alpha", "depth"))
    return Truth(
        pictures, alpha, depth, facts["points"][span], facts["scores"][span],
        None if str(facts["hair_style"]) == "bald" else facts["hair"], str(facts["cloth_pattern"]),
    )  # fmt: skip


def agreement(made: np.ndarray, truth: Truth) -> dict[str, float]:
    """All of them; what cannot be measured in a clip is left out or NaN."""
    return {
        **pose_agreement(made, truth),
        **depth_agreement(made, truth),
        **face_agreement(made, truth),
        **word_agreement(made, truth),
    }


def watched(points: np.ndarray, scores: np.ndarray, size: tuple[int, ...]) -> Watched:
    """True points as `quality` takes them; what lies outside the picture is not visible."""
    outside = ((points < 0) | (points >= np.array(size[::-1]))).any(-1)
    return Watched(points, np.where(outside, 0, scores), np.zeros(max(len(points) - 1, 0)))


def detected(frames: np.ndarray, whole_body: bool = False) -> Watched:
    """What the light detector sees in frames, which are enlarged for it."""
    factor = LOOKED_AT / max(frames.shape[1:3])
    height, width = (round(side * factor) for side in frames.shape[1:3])
    larger = (resize(frame, height, width) for frame in frames)
    points, scores = find_people(larger, whole_body, lambda done: None)
    return Watched(points[:, 0] / factor, scores[:, 0], np.zeros(max(len(frames) - 1, 0)))


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Dense flow of uint8 f h w c from each frame to the next, f-1 h w 2."""
    finder: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    still = np.zeros((max(len(frames) - 1, 0), *frames.shape[1:3], 2), np.float32)
    return np.array([finder.calc(*gray[k : k + 2], start) for k, start in enumerate(still)])


def hits(ours: Watched, theirs: Watched, near: float, order: Sequence[int] | None = None) -> np.ndarray:
    """Which joints lie near theirs, bool f j; order: which of ours is taken for each, if not the same."""
    joints = JOINTS if order is None else [JOINTS[k] for k in order]
    apart = np.linalg.norm(ours.points[:, joints] - theirs.points[:, JOINTS], axis=-1)
    return (apart <= near * torso_length(theirs)) & (ours.scores[:, joints] > VISIBLE)


def pose_agreement(made: np.ndarray, truth: Truth) -> dict[str, float]:
    """PCK of re-detected joints; of those that are found in the truth; of either reading; frames turned.

    pck_*: beside the true points. pck_found_*: among the joints that the detector finds rightly in the
    truth's own frames. pck_unsided_0.2: each frame read with left and right as they are, or exchanged,
    whichever fits better: where the limbs are, not which they are. turned: share of frames read better
    exchanged, as of somebody whose front is taken for the back.
    """
    ours, theirs = detected(made), truth.pose
    visible = theirs.scores[:, JOINTS] > VISIBLE
    if not visible.any():
        return {}
    values = {}
    for near in (0.1, 0.2):
        right = hits(ours, theirs, near)
        findable = hits(truth.seen_pose, theirs, near) & visible
        values[f"pck_{near}"] = float(right[visible].mean())
        if findable.any():
            values[f"pck_found_{near}"] = float(right[findable].mean())
    right, exchanged = hits(ours, theirs, NEAR) & visible, hits(ours, theirs, NEAR, MIRRORED) & visible
    turned = exchanged.sum(1) > right.sum(1)
    either = np.where(turned[:, None], exchanged, right)
    people = visible.any(1)
    values |= {"pck_unsided_0.2": float(either[visible].mean()), "turned": float(turned[people].mean())}
    return values


@lru_cache(maxsize=1)
def depth_network() -> Any:
    """The light depth network, on the CPU."""
    import torch

    from dreamoving_cli.extract.depth_networks import LightNetwork

    return LightNetwork(torch.device("cpu"))


def seen_depth(frames: np.ndarray) -> np.ndarray:
    """Nearness 0..1 f h w of uint8 f h w c by the light depth network, in the frames' size."""
    network, (height, width) = depth_network(), frames.shape[1:3]
    size = network.size(height, width)
    near = [1 - network(resize(frame, *size)[None])[0] for frame in frames]
    return np.stack([cv2.resize(n, (width, height), interpolation=cv2.INTER_LINEAR) for n in near])


def depth_agreement(made: np.ndarray, truth: Truth) -> dict[str, float]:
    """Depth inside the person, after the scale and shift of each frame that fit best there.

    depth_error: mean error of nearness relative to what the network says of the truth's own frames;
    depth_true_error: relative to the true nearness; depth_relief: share of the first one's variance that
    is told.
    """
    person = truth.alpha > SEEN
    shown = [k for k, mask in enumerate(person) if mask.sum() > FEW]
    if not shown:
        return {}
    near = seen_depth(made)
    rows = []
    for k in shown:
        inside, true = near[k][person[k]], truth.depth[k][person[k]] / 255
        seen = truth.seen_depth[k][person[k]]
        off = fitted(inside, seen) - seen
        true_off = fitted(inside, true) - true
        relative = [(np.abs(o) / np.maximum(t, 0.05)).mean() for o, t in ((off, seen), (true_off, true))]
        rows.append([*relative, 1 - off.var() / max(float(seen.var()), 1e-9)])
    names = ("depth_error", "depth_true_error", "depth_relief")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))


def fitted(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values, n, with the scale (not below 0: near stays near) and shift that come nearest to wanted, n."""
    centered = values - values.mean()
    slope = max(float((centered * (wanted - wanted.mean())).mean() / max(float(centered.var()), 1e-12)), 0.0)
    return np.asarray(slope * centered + wanted.mean())


def large_faces(truth: Truth) -> list[int]:
    """Frames whose face is seen and at least 96 pixels large."""
    chosen = []
    for k, (at, seen) in enumerate(zip(truth.points[:, kp.FACE], truth.scores[:, kp.FACE], strict=True)):
        if (seen > VISIBLE).all() and np.ptp(at, axis=0).max() >= LARGE_FACE:
            chosen.append(k)
    return chosen


def face_agreement(made: np.ndarray, truth: Truth) -> dict[str, float]:
    """The face's landmarks in frames whose face is at least 96 pixels large and found in the truth.

    face_found: share of them in which a face is found; face_error: mean distance of landmarks from those
    found in the truth, in widths of its face, after the centers and sizes of both are laid over each other.
    """
    frames = large_faces(truth)
    if not frames:
        return {}
    theirs, ours = truth.seen_faces, detected(made[frames], whole_body=True)
    there, here = (np.asarray((w.scores[:, kp.FACE] > VISIBLE).all(1)) for w in (theirs, ours))
    found = here & there
    values = {"face_found": float(found[there].mean())} if there.any() else {}
    if found.any():
        pairs = zip(ours.points[found][:, kp.FACE], theirs.points[found][:, kp.FACE], strict=True)
        values["face_error"] = float(np.mean([landmark_error(a, b) for a, b in pairs]))
    return values


def landmark_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean distance of landmarks, n 2 each, in widths of theirs, whatever their place and size."""
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    a = a * (np.linalg.norm(b) / max(float(np.linalg.norm(a)), 1e-9))
    return float(np.linalg.norm(a - b, axis=1).mean() / max(float(np.ptp(b[:, 0])), 1e-9))


@lru_cache(maxsize=1)
def captioner() -> Any:
    """The embedded captioner."""
    from dreamoving_cli.models.minigpt.load import load_captioner
    from dreamoving_cli.paths import MINI_CAPTIONER

    return load_captioner(MINI_CAPTIONER)


def named(frames: np.ndarray) -> list[dict[str, Any]]:
    """What the captioner says of a few frames, spread over the clip."""
    from dreamoving_cli.train.caption_facts import read_caption
    from dreamoving_cli.train.captioner import PROMPT

    pictures = [frames[k] for k in spread(len(frames), NAMED_FRAMES)]
    return [read_caption(text) for text in captioner().describe(pictures, PROMPT)]


def word_agreement(made: np.ndarray, truth: Truth) -> dict[str, float]:
    """Share of frames of which the captioner names an attribute as it does in the truth's own frame."""
    said = list(zip(named(made), truth.words, strict=True))
    values = {}
    for name in NAMED:
        same = [ours.get(name) == theirs[name] for ours, theirs in said if name in theirs]
        if same:
            values[f"said_{name}"] = float(np.mean(same))
    return values
