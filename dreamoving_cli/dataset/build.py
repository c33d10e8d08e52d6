"""From footage or pictures to a data set: read this first.

videos -> survey.py (transitions, judgments) -> samples.py (poses, references) -> shards.py -> manifest.json
pictures -> pictures.py (faces, garments) -> shards.py -> manifest.json
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from dreamoving_cli.dataset.captions import describer
from dreamoving_cli.dataset.jobs import (
    ClipJob,
    PictureJob,
    Source,
    Surveyed,
    SurveyJob,
    clip_sample,
    key_of,
    picture_sample,
    survey_video,
)
from dreamoving_cli.dataset.pictures import Picture
from dreamoving_cli.dataset.pool import run_jobs
from dreamoving_cli.dataset.rules import Drop, Rules
from dreamoving_cli.dataset.samples import Sample
from dreamoving_cli.dataset.shards import Packed, in_shards, write_shard
from dreamoving_cli.dataset.sheet import write_sheet
from dreamoving_cli.dataset.work import Work, read_json, write_json
from dreamoving_cli.errors import OutputError
from dreamoving_cli.extract import OnProgress
from dreamoving_cli.weights import file_sha256

FORMAT, VERSION = "dreamoving-dataset", 1
DIED = "the program that reads it died of it"


@dataclass
class Outcome:
    """All that is known at the end, before anything is packed."""

    kept: list[Sample] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)  # whole files


@dataclass(frozen=True)
class Report:
    """What was made of what was given."""

    kind: str
    files: int
    samples: int
    duration_s: float  # of all clips
    shards: int
    size_mb: float
    without_caption: int
    dropped: dict[str, int]  # candidates, by reason
    skipped: dict[str, int]  # files, by reason
    folder: str  # "" = a dry run
    sheet: str


def build_clips(
    sources: Sequence[Source], rules: Rules, out: Path | None, workers: int, on_progress: OnProgress
) -> Report:
    """Clips of videos into shards in `out`; None: look through the videos only, and write nothing."""
    refuse_captioner(rules)
    if out is None:
        outcome = survey_only(sources, rules, workers, on_progress)
        return told("clips", len(sources), outcome, {})
    work, settings = Work(out), {"kind": "clips", "rules": rules.told()}
    if work.manifest.exists():
        return complete(work, settings, [source.name for source in sources])
    with work.open(settings):
        jobs, outcome = find_clips(sources, rules, work, workers, on_progress)
        for i, (job, sample) in enumerate(run_jobs(clip_sample, jobs, workers)):
            on_progress("clips", i + 1, len(jobs))
            note(outcome, sample or Sample(job.key, {}, Drop("unreadable", DIED)), job)
        return pack(work, settings, outcome, [source.name for source in sources])


def build_pictures(
    pictures: Sequence[Picture],
    captions: Mapping[str, str],
    rules: Rules,
    out: Path,
    workers: int,
    on_progress: OnProgress,
) -> Report:
    """Person pictures into shards in `out`."""
    refuse_captioner(rules)
    work, settings = Work(out), {"kind": "pictures", "rules": rules.told()}
    if work.manifest.exists():
        return complete(work, settings, [picture.name for picture in pictures])
    outcome, seen = Outcome(), set[str]()
    with work.open(settings):
        jobs = [PictureJob(picture, tuple(captions.items()), rules, work) for picture in pictures]
        for i, (job, sample) in enumerate(run_jobs(picture_sample, jobs, workers)):
            on_progress("pictures", i + 1, len(jobs))
            sample = sample or Sample(job.picture.name, {}, Drop("unreadable", DIED))
            if sample.key in seen:
                outcome.skipped.append({"file": job.picture.name, "reason": "twice", "detail": sample.key})
                continue
            seen.add(sample.key)
            note(outcome, sample, job)
        return pack(work, settings, outcome, [picture.name for picture in pictures])


def refuse_captioner(rules: Rules) -> None:
    """A captioner that is not here is said before the work."""
    if rules.captioner != "off":
        describer(rules.captioner)


def find_clips(
    sources: Sequence[Source], rules: Rules, work: Work | None, workers: int, on_progress: OnProgress
) -> tuple[list[ClipJob], Outcome]:
    """A job for every clip that can be made, in the order of their keys, and what is no use."""
    outcome, jobs, seen = Outcome(), [], dict[str, str]()
    surveys = [SurveyJob(source, rules, work) for source in sources]
    for i, (job, surveyed) in enumerate(run_jobs(survey_video, surveys, workers)):
        on_progress("videos", i + 1, len(sources))
        result = surveyed or Surveyed("", problem=DIED)
        if problem := skip_reason(job.source, result, seen):
            outcome.skipped.append({"file": job.source.name, **problem})
            continue
        for candidate in result.candidates:
            key = key_of(result.sha256, candidate)
            words = candidate.caption or job.source.caption
            made = replace(candidate, caption=words)
            clip = ClipJob(key, job.source, result.sha256, made, rules, work or Work(Path()))
            if candidate.reason:
                note(outcome, Sample(key, {}, Drop(candidate.reason, candidate.detail)), clip)
            else:
                jobs.append(clip)
    return sorted(jobs, key=lambda job: job.key), outcome


def skip_reason(source: Source, result: Surveyed, seen: dict[str, str]) -> dict[str, str] | None:
    """Why a whole video is left out: it cannot be read, or it was given before under another name."""
    if result.problem:
        return {"reason": "unreadable", "detail": result.problem}
    if (before := seen.setdefault(result.sha256 + repr(source.listed), source.name)) != source.name:
        return {"reason": "twice", "detail": f"the same as {before}"}
    return None


def note(outcome: Outcome, sample: Sample, job: ClipJob | PictureJob) -> None:
    """Put a sample where it belongs."""
    if sample.drop is None:
        outcome.kept.append(sample)
        return
    entry: dict[str, Any] = {"key": sample.key, "reason": sample.drop.reason, "detail": sample.drop.detail}
    if isinstance(job, ClipJob):
        begin, length = float(job.candidate.start_s), float(job.candidate.duration_s)
        entry |= {"file": job.source.name, "start_s": round(begin, 3), "duration_s": round(length, 3)}
    else:
        entry |= {"file": job.picture.name}
    outcome.dropped.append(entry)


def survey_only(sources: Sequence[Source], rules: Rules, workers: int, on_progress: OnProgress) -> Outcome:
    """What would be kept, as far as a look through the videos tells."""
    jobs, outcome = find_clips(sources, rules, None, workers, on_progress)
    for job in jobs:
        facts = {"duration_s": str(job.candidate.duration_s), "caption": job.candidate.caption}
        outcome.kept.append(Sample(job.key, facts))
    return outcome


def pack(work: Work, settings: dict[str, Any], outcome: Outcome, files: Sequence[str]) -> Report:
    """Shards, the sheet, and last the manifest: where it is, the data set is whole."""
    outcome.kept.sort(key=lambda sample: sample.key)
    outcome.dropped.sort(key=lambda entry: (entry["file"], entry.get("start_s", 0), entry["key"]))
    outcome.skipped.sort(key=lambda entry: entry["file"])
    shards, samples = [], {sample.key: sample.facts for sample in outcome.kept}
    packed = [Packed(sample.key, work.sample(sample.key)) for sample in outcome.kept]
    for number, shard in enumerate(in_shards(packed, settings["rules"]["shard_mb"])):
        path = write_shard(work.out / f"{settings['kind']}-{number:06d}.tar", shard)
        for sample in shard:
            samples[sample.key]["shard"] = path.name
        shards.append({"file": path.name, "sha256": file_sha256(path), "size_bytes": path.stat().st_size,
                       "samples": len(shard)})  # fmt: skip
    write_sheets(work, outcome)
    report = told(settings["kind"], len(files), outcome, {"shards": shards, "folder": work.out})
    manifest = {
        "format": FORMAT, "version": VERSION, **settings, "files": sorted(files), "counts": counts(report),
        "shards": shards, "samples": samples, "dropped": outcome.dropped, "skipped": outcome.skipped,
    }  # fmt: skip
    write_json(work.manifest, manifest)
    work.remove()
    return report


def write_sheets(work: Work, outcome: Outcome) -> None:
    """The picture of what was kept and dropped."""
    kept = [(work.thumbnail(s.key), f"{moment(s.facts)}{s.facts['source']}") for s in outcome.kept]
    dropped = [(work.thumbnail(e["key"]), f"{e['reason']}: {e['file']}") for e in outcome.dropped]
    write_sheet(work.out / "sheet.png", kept, dropped)


def moment(facts: Mapping[str, Any]) -> str:
    """When a clip begins, for its label."""
    return f"{float(Fraction(facts['start_s'])):.1f} s " if "start_s" in facts else ""


def told(kind: str, files: int, outcome: Outcome, made: Mapping[str, Any]) -> Report:
    """The report on an outcome; made: shards and folder, where there are any."""
    shards = made.get("shards", [])
    folder = made.get("folder")
    sheet = folder / "sheet.png" if folder else None
    return Report(
        kind=kind,
        files=files,
        samples=len(outcome.kept),
        duration_s=round(float(sum(Fraction(s.facts.get("duration_s", "0")) for s in outcome.kept)), 2),
        shards=len(shards),
        size_mb=round(sum(shard["size_bytes"] for shard in shards) / 10**6, 2),
        without_caption=sum(not sample.facts["caption"] for sample in outcome.kept),
        dropped=dict(sorted(Counter(entry["reason"] for entry in outcome.dropped).items())),
        skipped=dict(sorted(Counter(entry["reason"] for entry in outcome.skipped).items())),
        folder=str(folder or ""),
        sheet=str(sheet) if sheet and sheet.exists() else "",
    )


def counts(report: Report) -> dict[str, Any]:
    """What the manifest repeats of a report: nothing of this machine."""
    return {name: value for name, value in asdict(report).items() if name not in ("kind", "folder", "sheet")}


def complete(work: Work, settings: Mapping[str, Any], files: Sequence[str]) -> Report:
    """The report of a data set that is there already; refuses one that was made otherwise."""
    manifest = read_manifest(work.out)
    if manifest["files"] != sorted(files):
        raise OutputError(f"{work.out} holds a data set made from other files", "Give a new folder.")
    if any(manifest.get(key) != value for key, value in settings.items()):
        raise OutputError(f"{work.out} holds a data set made by other rules", "Give a new folder.")
    work.remove()
    sheet = work.out / "sheet.png"
    told_sheet = str(sheet) if sheet.exists() else ""
    return Report(kind=manifest["kind"], **manifest["counts"], folder=str(work.out), sheet=told_sheet)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data set."""
    try:
        values = read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder} holds no whole data set ({error})", "Build it again.") from error
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise OutputError(f"{folder}/manifest.json is not one of ours", "Build the data set again.")
    return dict(values)


def check(folder: Path) -> Iterator[str]:
    """What is wrong with a data set: shards that are missing or whose bytes are others."""
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        if not path.is_file():
            yield f"{path} is missing"
        elif file_sha256(path) != shard["sha256"]:
            yield f"{path} has other bytes than when it was written"
