"""What workers do: look through one video, make one sample. A file that is no use is told, never fatal."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import cv2

from dreamoving_cli.dataset.captions import caption_of
from dreamoving_cli.dataset.pictures import Picture, make_picture
from dreamoving_cli.dataset.rules import Drop, Rules
from dreamoving_cli.dataset.samples import THUMBNAIL_SIDE, Place, Sample, make_clip
from dreamoving_cli.dataset.survey import Candidate, Stretch, survey
from dreamoving_cli.dataset.work import Work, read_json, write_json
from dreamoving_cli.errors import InputError
from dreamoving_cli.media.images import one_line, resize, write_image
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.weights import file_sha256

# What damaged files make libraries raise; a missing network or a full disk is not among them.
DAMAGE = (InputError, av.error.FFmpegError, cv2.error, ValueError, ArithmeticError, LookupError)
SHORT = 12  # letters of a hash in a key


@dataclass(frozen=True)
class Source:
    """A video or picture that was given."""

    name: str
    path: Path
    listed: tuple[Stretch, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class SurveyJob:
    """Look through one video; work None: write nothing."""

    source: Source
    rules: Rules
    work: Work | None


@dataclass(frozen=True)
class Surveyed:
    """What a video holds, or why it is no use."""

    sha256: str
    candidates: tuple[Candidate, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ClipJob:
    """Make one clip."""

    key: str
    source: Source
    sha256: str
    candidate: Candidate
    rules: Rules
    work: Work


@dataclass(frozen=True)
class PictureJob:
    """Make one sample of a picture."""

    picture: Picture
    captions: tuple[tuple[str, str], ...]
    rules: Rules
    work: Work


def survey_video(job: SurveyJob) -> Surveyed:
    """The clips that a video holds; kept in a file, so that it is looked through once."""
    path, listed = job.source.path, job.source.listed
    try:
        digest = file_sha256(path)
    except OSError as error:
        return Surveyed("", problem=f"it cannot be read ({error.strerror})")
    name = digest[:SHORT] + (f"-{sha256(repr(listed).encode()).hexdigest()[:8]}" if listed else "")
    kept = job.work.survey(name) if job.work else None
    if kept is not None and kept.exists():
        return Surveyed(digest, tuple(Candidate(**values) for values in read_json(kept)))
    try:
        found = survey(path, job.rules, listed)
        if job.work:
            for candidate in found:
                write_thumbnail(path, candidate, job.work.thumbnail(key_of(digest, candidate)))
    except DAMAGE as error:
        return Surveyed(digest, problem=problem_of(error))
    if kept is not None:
        write_json(kept, [candidate.told() for candidate in found])
    return Surveyed(digest, tuple(found))


def key_of(digest: str, candidate: Candidate) -> str:
    """The name of a clip: its video's hash, its first frame, its length."""
    return f"{digest[:SHORT]}-{candidate.start:06d}-{candidate.frames:04d}"


def problem_of(error: BaseException) -> str:
    """What is wrong with a file, in a few words."""
    return error.problem if isinstance(error, InputError) else one_line(error)


def write_thumbnail(path: Path, candidate: Candidate, target: Path) -> None:
    """The frame in the middle of a candidate, small."""
    if not candidate.frames:
        return
    middle = candidate.start_s + candidate.duration_s / 2
    with open_clip(path, start_s=middle, num_frames=1) as clip:
        factor = THUMBNAIL_SIDE / max(clip.height, clip.width)
        height, width = (max(round(side * factor), 1) for side in (clip.height, clip.width))
        write_image(target, resize(clip.read([0])[0], height, width), overwrite=True)


def clip_sample(job: ClipJob) -> Sample:
    """One clip, made unless it is there."""
    key, work = job.key, job.work
    place = Place(key, part_of(work, key), work.thumbnail(key), job.source.name, job.sha256)
    return once(work, place, lambda: make_clip(job.source.path, job.candidate, job.rules, place))


def picture_sample(job: PictureJob) -> Sample:
    """One picture, made unless it is there; its key is its hash."""
    content = job.picture.content()
    digest = sha256(content).hexdigest()
    key, work = digest[:SHORT], job.work
    place = Place(key, part_of(work, key), work.thumbnail(key), job.picture.name, digest)
    file = work.folder / f"{key}{Path(job.picture.name).suffix}"
    caption = caption_of(job.picture.source, job.picture.name, dict(job.captions))

    def make() -> Sample:
        file.write_bytes(content)
        try:
            return make_picture(file, caption, job.rules, place)
        finally:
            file.unlink(missing_ok=True)

    return once(work, place, make)


def part_of(work: Work, key: str) -> Path:
    """Where a sample is made before it is whole."""
    return work.sample(f"{key}.part")


def once(work: Work, place: Place, make: Callable[[], Sample]) -> Sample:
    """The sample as it was made before, else made now; its verdict is written last."""
    verdict, folder = work.verdict(place.key), work.sample(place.key)
    if verdict.exists():
        return told_sample(read_json(verdict))
    for old in (place.folder, folder):
        shutil.rmtree(old, ignore_errors=True)
    place.folder.mkdir()
    try:
        sample = make()
    except DAMAGE as error:
        sample = Sample(place.key, {}, Drop("unreadable", problem_of(error)))
    if sample.drop is None:
        place.folder.rename(folder)
    else:
        shutil.rmtree(place.folder)
    write_json(verdict, asdict(sample))
    return sample


def told_sample(values: dict[str, Any]) -> Sample:
    """A sample from its verdict's values."""
    drop = values["drop"]
    return Sample(values["key"], values["facts"], None if drop is None else Drop(**drop))
