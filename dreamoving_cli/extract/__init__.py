"""What can be taken out of a video to control a render: one entry of EXTRACTORS each. numpy in, numpy out."""

from collections.abc import Callable
from pathlib import Path

from dreamoving_cli.errors import UsageError

KIND_TAG = "dreamoving_kind"  # the container tag by which a map video is told from footage
OnProgress = Callable[[str, int, int], None]  # stage, done, total
OnFrame = Callable[[int], None]  # frames done


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
    if kind not in EXTRACTORS:
        raise UsageError(f"there is no extractor '{kind}'", f"Choose one of: {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[kind](source, output, json_path, overwrite, on_progress)


def control_kind(path: Path) -> str | None:
    """Which kind of map a video is, by the tag `extract_to_file` writes; None = footage."""
    from dreamoving_cli.media.video import probe

    return probe(path).metadata.get(KIND_TAG)


def _pose(
    source: Path, output: Path, json_path: Path | None, overwrite: bool, on_progress: OnProgress
) -> list[Path]:
    from dreamoving_cli.extract.pose_files import Outputs, PoseJob, extract_pose_files

    outputs = Outputs(map=output, keypoints=json_path)
    return extract_pose_files(source, PoseJob(outputs, overwrite=overwrite), on_progress).paths


def _depth(
    source: Path, output: Path, json_path: Path | None, overwrite: bool, on_progress: OnProgress
) -> list[Path]:
    from dreamoving_cli.extract.depth_files import DepthJob, extract_depth_files

    if json_path is not None:
        raise UsageError(f"json is '{json_path}', and depth has no keypoints", "Leave it out.")
    return extract_depth_files(source, DepthJob(output, "mp4", overwrite=overwrite), on_progress).paths


# kind -> (video, map, keypoints or None, overwrite, progress) -> files written
EXTRACTORS: dict[str, Callable[[Path, Path, Path | None, bool, OnProgress], list[Path]]] = {
    "pose": _pose,
    "depth": _depth,
}
