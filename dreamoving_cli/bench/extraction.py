"""How quickly poses, depth and words are found, and where the time goes: the commands under stopwatches.

On the example dance that ships, scaled to the size asked for. Networks that must be fetched are measured
only where their files are here.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dreamoving_cli.bench.stopwatch import Change, Stopwatch, replaced
from dreamoving_cli.caption import describe
from dreamoving_cli.caption.models import FULL, MINI, Machine, choose_captioner, has_mini, is_installed
from dreamoving_cli.caption.sources import MOST_FRAMES, Picks
from dreamoving_cli.extract import depth, depth_files, dwpose, light, pose, pose_files
from dreamoving_cli.extract.depth_networks import DepthOptions, public_here
from dreamoving_cli.extract.detectors import dwpose_is_here
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.video import Clip, open_clip
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.paths import PACKAGE
from dreamoving_cli.weights import list_weights

EXAMPLE = PACKAGE / "example_media" / "dance.mp4"
SIDE = 640  # pixels of the longer side
SLOW = 4  # frames are enough of networks that take seconds for one
LOADING = "loading"  # of networks: once a video, whatever its length; not in any rate

Row = dict[str, Any]
Extract = Callable[[Path, Path, Stopwatch], None]  # video, empty folder


@dataclass(frozen=True)
class Extractor:
    """Something that can be measured."""

    name: str
    extract: Extract
    is_here: Callable[[], bool] = lambda: True
    group: str = ""  # of `models pull`, that brings its networks
    slow: bool = False
    bar: float | None = None  # frames/s of one core, at SIDE


def measure_extraction(side: int = SIDE, frames: int | None = None, rounds: int = 3) -> Row:
    """A row an extractor: frames a second, on the clock and of the processor, and the parts' shares.

    frames: of the example, all by default; rounds: the one in the middle counts, by processor time.
    """
    rows, missing = [], {}
    with tempfile.TemporaryDirectory() as name:
        for each in EXTRACTORS:
            if not each.is_here():
                missing[each.name] = each.group
                continue
            count = min(frames or SLOW, SLOW) if each.slow else frames
            rows.append(measured(each, example(Path(name) / f"{count}.mp4", side, count), rounds))
    return {"threads": torch.get_num_threads(), "rows": rows, "missing": missing}


def light_is_here() -> bool:
    """Whether the light pose networks are on this machine: a benchmark fetches nothing."""
    return all(present for each, present in list_weights() if "light-pose" in each.groups)


def example(path: Path, side: int, frames: int | None) -> Path:
    """The example dance as a video whose longer side has so many pixels."""
    if not path.is_file():
        with open_clip(EXAMPLE) as clip:
            factor = side / max(clip.height, clip.width)
            size = 2 * round(clip.height * factor / 2), 2 * round(clip.width * factor / 2)
        with open_clip(EXAMPLE, size=size, num_frames=frames) as clip:
            write_video(path, clip.batches(pose.BATCH), clip.fps)
    return path


def measured(extractor: Extractor, video: Path, rounds: int) -> Row:
    """The middle one of some runs after a first, which is not counted."""
    with open_clip(video) as clip:
        frames, size = clip.num_frames, f"{clip.width}x{clip.height}"
    runs = [run(extractor.extract, video) for _ in range(rounds + 1)][1:]
    spent = [sum(parts.values()) - parts.get(LOADING, 0.0) for _, parts in runs]
    middle = median(spent)
    seconds, parts = next(each for each, cpu in zip(runs, spent, strict=True) if cpu >= middle)
    total = sum(parts.values()) - parts.get(LOADING, 0.0)
    return {
        "what": extractor.name,
        "frames": frames,
        "size": size,
        "frames_per_s": frames / seconds,
        "frames_per_cpu_s": frames / total,
        "bar": extractor.bar,
        "loading_s": parts.pop(LOADING, 0.0),
        "share": {name: value / total for name, value in sorted(parts.items(), key=lambda kv: -kv[1])},
    }


def run(extract: Extract, video: Path) -> tuple[float, dict[str, float]]:
    """Seconds on the clock without loading, and processor seconds by part."""
    watch, loading = Stopwatch(), Stopwatch(clock=time.perf_counter)
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        with both_loading(watch, loading):
            extract(video, Path(name), watch)
        seconds = time.perf_counter() - begun
    return seconds - loading.stop().get(LOADING, 0.0), watch.stop()


@contextmanager
def both_loading(watch: Stopwatch, clock: Stopwatch) -> Iterator[None]:
    """What opens the networks is timed by both."""

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        return watch.call(LOADING, clock.call(LOADING, function))

    opened = (pose, "open_detector"), (depth_files, "open_network"), (describe, "load_chosen")
    with replaced([(*place, timed) for place in opened]):
        yield


def find_pose(options: PoseOptions, video: Path, folder: Path, watch: Stopwatch) -> None:
    """Poses of a video, drawn and written: what `extract-pose VIDEO map.mp4 --json pose.json` does."""
    changes: list[Change] = [
        (Clip, "read", partial(watch.call, "reading")),
        (pose, "with_cuts", partial(watch.stream, "cuts")),
        (pose, "make_tracks", partial(watch.call, "tracking")),
        (pose, "choose", partial(watch.call, "tracking")),
        (pose, "repair", partial(watch.call, "repairs")),
        (pose, "measure_poses", partial(watch.call, "metrics")),
        (pose_files, "pose_maps", partial(watch.stream, "drawing")),
        (pose_files, "write_video", partial(watch.call, "writing")),
        (pose_files, "save_poses", partial(watch.call, "writing")),
        (light, "Networks", lambda make: lambda whole_body: on_time(make(whole_body), watch)),
        (dwpose.BoxFinder, "__call__", partial(watch.call, "detector")),
        (dwpose.PointFinder, "__call__", partial(watch.call, "landmarks")),
    ]
    outputs = pose_files.Outputs(folder / "map.mp4", folder / "pose.json")
    with replaced(changes):
        pose_files.extract_pose_files(video, pose_files.PoseJob(outputs, options=options))


def on_time(networks: Any, watch: Stopwatch) -> Any:
    """The light detector's networks, each on the time of what it finds."""
    for name, part in LIGHT_PARTS.items():
        if hasattr(networks, name):
            setattr(networks, name, Timed(getattr(networks, name), part, watch))
    return networks


LIGHT_PARTS = {
    "search": "detector", "body": "landmarks: body", "aim": "landmarks: hands", "hand": "landmarks: hands",
    "face_search": "landmarks: face", "face": "landmarks: face",
}  # fmt: skip


class Timed:
    """A network on a part's time."""

    def __init__(self, network: Any, part: str, watch: Stopwatch) -> None:
        self._network, self._call = network, watch.call(part, network)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def find_depth(options: DepthOptions, video: Path, folder: Path, watch: Stopwatch) -> None:
    """The depth of a video as a map: what `extract-depth VIDEO map.mp4` does."""
    changes: list[Change] = [
        (Clip, "read", partial(watch.call, "reading")),
        (depth, "with_cuts", partial(watch.stream, "cuts")),
        (depth, "limits_of", partial(watch.call, "limits")),
        (depth, "steadied", partial(watch.call, "steadying")),
        (depth, "flicker", partial(watch.call, "metrics")),
        (depth_files, "write_video", partial(watch.call, "writing")),
    ]

    def opened(chosen: DepthOptions) -> Any:
        return Timed(depth_files.open_network(chosen), "network", watch)

    job = depth_files.DepthJob(folder / "map.mp4", options=options)
    with replaced(changes):
        depth_files.extract_depth_files(video, job, open_with=opened)


def find_words(model: str, video: Path, folder: Path, watch: Stopwatch) -> None:
    """The caption of every frame of a video: what `caption VIDEO --frames N` does."""
    changes: list[Change] = [
        (describe, "moments", partial(watch.call, "reading")),
        (describe, "pictures", partial(watch.stream, "reading")),
        (describe.Describer, "answers", partial(watch.call, "network")),
    ]
    request = describe.Request(picks=Picks(count=MOST_FRAMES))
    with replaced(changes):
        describe.Describer(choose_captioner(model, Machine()), request).describe(video)


EXTRACTORS = (
    Extractor(
        "pose, light, body only", partial(find_pose, PoseOptions("light", whole_body=False)),
        light_is_here, "light-pose", bar=15,
    ),
    Extractor(
        "pose, light, whole body", partial(find_pose, PoseOptions("light")),
        light_is_here, "light-pose", bar=8,
    ),
    Extractor(
        "pose, dwpose", partial(find_pose, PoseOptions("dwpose")),
        lambda: dwpose_is_here(PoseOptions()), "pose", slow=True,
    ),
    Extractor("depth, light", partial(find_depth, DepthOptions("light"))),
    Extractor(
        "depth, zoe", partial(find_depth, DepthOptions("zoe")),
        lambda: bool(public_here()), "depth", slow=True,
    ),
    Extractor(f"words, {MINI}", partial(find_words, MINI), has_mini, "caption"),
    Extractor(f"words, {FULL}", partial(find_words, FULL), is_installed, "caption", slow=True),
)  # fmt: skip
