"""Where one shot ends and the next begins, by PySceneDetect's adaptive detector, while the frames go by."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

LOOKED_AT = 160  # pixels of the longer side, at least
AHEAD = 2  # frames that the detector must see after a cut
SHORTEST_S = 0.4  # of a shot: what is shorter is a flash


def with_cuts(frames: Iterable[np.ndarray], fps: Fraction) -> Iterator[tuple[np.ndarray, bool]]:
    """Each frame, and whether a new shot begins with it. frames: uint8 h w c each; AHEAD of them are held."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(min_scene_len=max(round(SHORTEST_S * fps), 1), window_width=AHEAD)
    held: deque[np.ndarray] = deque()
    cuts: set[int] = set()
    first = 0  # number of the frame that is held longest
    for k, frame in enumerate(frames):
        found = detector.process_frame(FrameTimecode(k, fps), _small(frame))
        cuts |= {cut.frame_num for cut in found}
        held.append(frame)
        if len(held) > AHEAD:
            yield held.popleft(), first in cuts
            first += 1
    for k, frame in enumerate(held, start=first):
        yield frame, k in cuts


def _small(frame: np.ndarray) -> np.ndarray:
    """Every n-th pixel, in OpenCV's order of colors: enough to compare, and free. frame: uint8 h w c."""
    step = max(max(frame.shape[:2]) // LOOKED_AT, 1)
    return np.ascontiguousarray(frame[::step, ::step, ::-1])
