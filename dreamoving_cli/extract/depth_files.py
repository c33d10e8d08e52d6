"""From a video to its depth in a file: a map video, pictures of 8 or 16 bit, or the distances themselves.

The distances wait in a file beside the output until all is written. After an interruption it stays,
and `resume` goes on with it.
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreamoving_cli.errors import OutputError, UsageError
from dreamoving_cli.extract import KIND_TAG, OnProgress
from dreamoving_cli.extract.depth import HEADER, ClipDepth, DepthNetwork, DepthReport, DepthStore, find_depth
from dreamoving_cli.extract.depth_networks import DepthOptions, open_network
from dreamoving_cli.extract.depth_preview import check_preview, write_preview
from dreamoving_cli.extract.depth_tone import as_8_bit, as_16_bit
from dreamoving_cli.extract.footage import (
    Stretch,
    kept_if_interrupted,
    refuse_little_memory,
    say_where,
    sound_of,
    what_is_read,
)
from dreamoving_cli.media.video import Clip
from dreamoving_cli.media.whole import check_output, part_folder
from dreamoving_cli.media.writer import codec_of, write_video
from dreamoving_cli.whole import whole_file, writing

FORMATS = ("mp4", "png8", "png16", "npz")
BATCH = 8  # frames drawn at once
BYTES_A_PIXEL = 80  # of a frame: 8 as they were read, 2 that wait for cuts, 8 drawn, numbers on their way
STATE = ".depth.state"
MIB = 2**20
SPARE = 64 * MIB  # bytes of disk that are left to others


@dataclass(frozen=True)
class DepthJob:
    """One extraction."""

    output: Path
    form: str = "auto"  # of FORMATS; auto: by the output's extension
    preview: Path | None = None
    stretch: Stretch = field(default_factory=Stretch)
    options: DepthOptions = field(default_factory=DepthOptions)
    overwrite: bool = False
    resume: bool = False

    def paths(self) -> list[Path]:
        """The files to write."""
        return [self.output, *([self.preview] if self.preview else [])]


@dataclass(frozen=True)
class DepthResult:
    """What an extraction gave."""

    paths: list[Path]
    report: DepthReport


def extract_depth_files(
    source: Path,
    job: DepthJob,
    on_progress: OnProgress = lambda stage, done, total: None,
    open_with: Callable[[DepthOptions], DepthNetwork] = open_network,
) -> DepthResult:
    """Find the depth of a video and write what is asked for."""
    form = refuse_outputs(source, job)
    with ExitStack() as stack:
        clip = stack.enter_context(job.stretch.open(source))
        refuse_little_memory("pictures of this size", BYTES_A_PIXEL * clip.height * clip.width)
        network = open_with(job.options)
        store = stack.enter_context(open_store(source, job, clip, network))
        depth, report = find_depth(
            clip, network, store, smooth=job.options.smooth,
            on_frame=lambda done: on_progress("depth", done, clip.num_frames),
        )  # fmt: skip
        WRITERS[form](source, job, clip, depth)
        if job.preview:
            write_preview(job.preview, clip, depth, overwrite=job.overwrite)
    return DepthResult(job.paths(), report)


def refuse_outputs(source: Path, job: DepthJob) -> str:
    """Refuse outputs that cannot be written, before any work; the output's form."""
    form = form_of(job)
    for path in job.paths():
        if path.absolute() == source.absolute():
            raise UsageError(f"{path} is the input", "Choose another output.")
        check_output(path, job.overwrite)
    if job.preview:
        if job.preview.absolute() == job.output.absolute():
            raise UsageError("two outputs have one name", "Give each its own.")
        check_preview(job.preview)
    return form


def form_of(job: DepthJob) -> str:
    """The form by name, else by the output's extension; UsageError where the two do not fit."""
    suffix = job.output.suffix.lower()
    form = job.form
    if form == "auto":
        form = {"": "png16", ".npz": "npz"}.get(suffix, "mp4")
    if form not in FORMATS:
        raise UsageError(f"format is '{form}'", f"Choose one of: {', '.join(FORMATS)}.")
    if form == "mp4" and codec_of(job.output) == "png":
        raise UsageError(f"mp4 does not fit into {job.output.name}", "End the name in .mp4.")
    if form == "npz" and suffix != ".npz":
        raise UsageError(f"npz does not fit into {job.output.name}", "End the name in .npz.")
    if form.startswith("png") and suffix:
        raise UsageError(f"{form} does not fit into {job.output.name}", "Name a folder, without extension.")
    return form


@contextmanager
def open_store(source: Path, job: DepthJob, clip: Clip, network: DepthNetwork) -> Iterator[DepthStore]:
    """The file of distances beside the output; of an interruption it is left if there is anything in it."""
    path = job.output.with_name(job.output.name + STATE)
    shape = (clip.num_frames, *network.size(clip.height, clip.width))
    refuse_full_disk(path, 4 * int(np.prod(shape)))
    made_from = what_is_read(source, clip) | {"network": network.identity}
    with kept_if_interrupted(path):
        store = DepthStore(path, shape, made_from, resume=job.resume)
        say_where(job.resume, store.done)
        try:
            yield store
        finally:
            store.close()
            if not store.done:
                path.unlink(missing_ok=True)


def refuse_full_disk(path: Path, need: int) -> None:
    """The distances wait on disk: say how much that is where it does not fit."""
    left = shutil.disk_usage(path.absolute().parent).free + (path.stat().st_size if path.is_file() else 0)
    if need + HEADER + SPARE > left:
        name, free = path.name.removesuffix(STATE), max(left - SPARE, 0) / MIB
        raise OutputError(
            f"the clip's distances need {max(need / MIB, 0.1):,.1f} MiB beside {name}, "
            f"and {free:,.0f} are free beyond {SPARE // MIB} for others",
            "Free some space, or give a shorter --duration.",
        )


def write_map(source: Path, job: DepthJob, clip: Clip, depth: ClipDepth) -> None:
    """A video of 8-bit gray, with the sound and the mark of what it shows."""
    write_video(
        job.output,
        (depth.pictures(frames, clip.height, clip.width) for frames in runs(clip.num_frames)),
        clip.fps,
        audio=sound_of(source, job.stretch, clip),
        overwrite=job.overwrite,
        metadata={KIND_TAG: "depth"},
    )


def runs(num_frames: int) -> Iterator[range]:
    """All frames, a batch at a time."""
    for start in range(0, num_frames, BATCH):
        yield range(start, min(start + BATCH, num_frames))


def write_pictures(
    job: DepthJob, clip: Clip, depth: ClipDepth, tone: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A folder of gray PNG files, numbered from 0."""
    mark = PngInfo()
    mark.add_text(KIND_TAG, "depth")
    with part_folder(job.output) as part:
        for k, near in enumerate(depth.at_size(range(clip.num_frames), clip.height, clip.width)):
            with writing(job.output):
                Image.fromarray(tone(near)).save(part / f"{k:06d}.png", pnginfo=mark, compress_level=4)


def write_distances(source: Path, job: DepthJob, clip: Clip, depth: ClipDepth) -> None:
    """An .npz: `depth` float32 f h w as the network said it, `limits` near far, `fps`, `size`, `cuts`."""
    store = depth.store
    small = {
        "limits": np.array([depth.limits.near, depth.limits.far], np.float64),
        "fps": np.array([clip.fps.numerator, clip.fps.denominator]),
        "size": np.array([clip.height, clip.width]),
        "cuts": np.array(depth.cuts, np.int64),
        "kind": np.array("depth"),
    }
    head = {"descr": "<f4", "fortran_order": False, "shape": (store.num_frames, store.height, store.width)}
    with whole_file(job.output) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as file:
                npy.write_array(file, array, allow_pickle=False)
        with archive.open("depth.npy", "w", force_zip64=True) as file:
            npy.write_array_header_2_0(file, head)
            for frame in range(store.num_frames):
                file.write(np.ascontiguousarray(depth.distances(frame), "<f4").tobytes())


WRITERS: dict[str, Callable[[Path, DepthJob, Clip, ClipDepth], None]] = {
    "mp4": write_map,
    "png8": lambda source, job, clip, depth: write_pictures(job, clip, depth, as_8_bit),
    "png16": lambda source, job, clip, depth: write_pictures(job, clip, depth, as_16_bit),
    "npz": write_distances,
}
