"""The detectors behind one interface, and which of them is taken."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamoving_cli.extract.dwpose import DwposeDetector
from dreamoving_cli.extract.keypoints import People
from dreamoving_cli.extract.sessions import gpu_is_here, gpu_is_usable, unused_gpu
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.weights import list_weights

logger = logging.getLogger(__name__)


class Detector(Protocol):
    """Finds people in the frames of a clip, in order."""

    def __call__(self, frames: np.ndarray) -> list[People]:
        """Everyone in each of the next frames, uint8 f h w c, all of one shot."""

    def forget(self) -> None:
        """The next frame belongs to another shot."""


def open_detector(options: PoseOptions) -> tuple[str, Detector]:
    """The detector asked for, and its name."""
    name = options.detector if options.detector != "auto" else best_here(options)
    if name == "dwpose":
        found = DwposeDetector(options.person_network, options.pose_network, options.detect_every)
        return name, found
    from dreamoving_cli.extract.light import LightDetector  # its runtime is not needed otherwise

    people = 1 if options.person == "largest" else options.max_people
    return name, LightDetector(whole_body=options.whole_body, max_people=people)


def best_here(options: PoseOptions) -> str:
    """DWPose where its networks are here and a GPU runs them: on a CPU it takes seconds a frame."""
    if not dwpose_is_here(options):
        return "light"
    if gpu_is_usable():
        return "dwpose"
    logger.warning(
        "%s",
        unused_gpu(["CPUExecutionProvider"], gpu_is_here())
        or "the light detector is used: no GPU for DWPose",
    )
    return "light"


def dwpose_is_here(options: PoseOptions) -> bool:
    """Whether both of its networks can be had without fetching anything."""
    here = {entry.id: present for entry, present in list_weights()}
    return all(
        here.get(name, Path(name).is_file()) for name in (options.person_network, options.pose_network)
    )
