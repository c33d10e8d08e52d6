"""What can be taken out of a video to control a render: one entry of EXTRACTORS each. numpy in, numpy out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.errors import UsageError

KIND_TAG = "dreamoving_kind"  # the container tag by which a map video is told from footage
OnProgress = Callable[[str, int, int], None]  # stage, done, total
OnFrame = Callable[[int], None]  # frames done


@dataclass(frozen=True)
class Extractor:
    """How one kind of control is taken from footage. Its functions import what is heavy inside."""

    stage: str  # what the progress bar says
    extract: Callable[[Any, OnFrame], Any]  # of a Clip, the whole clip's data
    maps: Callable[[Any], Iterator[np.ndarray]]  # the data as pictures, uint8 f h w c, in batches
    save: Callable[[Path, Any], Path] | None = None  # the data as a JSON file


def extract_to_file(
    kind: str,
    source: Path,
    output: Path,
    *,
    json_path: Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> list[Path]:
    """Write the control map of a video at its own rate, size and sound; return the files written."""
    from dreamoving_cli.media.audio import Audio
    from dreamoving_cli.media.video import open_clip
    from dreamoving_cli.media.whole import check_output
    from dreamoving_cli.media.writer import write_video

    extractor = _extractor(kind)
    if json_path and extractor.save is None:
        raise UsageError(f"'{kind}' has no keypoints to write to {json_path}", "Leave out --json.")
    for path in filter(None, (output, json_path)):
        check_output(path, overwrite)
    with open_clip(source) as clip:
        data = extractor.extract(clip, lambda done: on_progress(extractor.stage, done, clip.num_frames))
        sound = Audio(source) if clip.info.has_audio else None
        written = write_video(
            output,
            extractor.maps(data),
            clip.fps,
            audio=sound,
            overwrite=overwrite,
            metadata={KIND_TAG: kind},
        )
    if json_path and extractor.save:
        return [written, extractor.save(json_path, data)]
    return [written]


def control_kind(path: Path) -> str | None:
    """Which kind of map a video is, by the tag `extract_to_file` writes; None = footage."""
    from dreamoving_cli.media.video import probe

    return probe(path).metadata.get(KIND_TAG)


def _extractor(kind: str) -> Extractor:
    if kind not in EXTRACTORS:
        raise UsageError(f"there is no extractor '{kind}'", f"Choose one of: {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[kind]


def _extract_pose(clip: Any, on_frame: OnFrame) -> Any:
    from dreamoving_cli.extract.pose import extract_pose

    return extract_pose(clip, on_frame=on_frame)


def _pose_maps(poses: Any) -> Iterator[np.ndarray]:
    from dreamoving_cli.extract.pose import pose_maps

    return pose_maps(poses)


def _save_poses(path: Path, poses: Any) -> Path:
    from dreamoving_cli.extract.keypoints import save_poses

    return save_poses(path, poses)


EXTRACTORS = {"pose": Extractor("pose", _extract_pose, _pose_maps, _save_poses)}
