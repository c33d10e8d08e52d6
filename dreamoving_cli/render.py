"""One render, from options to a video: read this first, every line is a stage and every stage is a file."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamoving_cli.caching import StepCache
from dreamoving_cli.compiling import as_asked
from dreamoving_cli.conditioning import Denoiser, ImagePrompts, Place, Prompts, encode_prompts
from dreamoving_cli.controls import (
    Control,
    depth_cuts,
    footage_depth,
    footage_poses,
    open_controls,
    shot_cuts,
)
from dreamoving_cli.decoding import OnProgress, decode_turns, decoded
from dreamoving_cli.device import Machine, memory_errors, reuse_memory
from dreamoving_cli.errors import OutputError
from dreamoving_cli.extract.depth import ClipDepth
from dreamoving_cli.media.images import fit_square, read_image
from dreamoving_cli.media.writer import check_output, output_path, write_video
from dreamoving_cli.models.checkpoints.files import Recipe, read_tensors
from dreamoving_cli.models.checkpoints.lora import merge_loras
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.content_guider import needs_identity
from dreamoving_cli.models.load import open_pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.plan import Job, Plan, device_names, frame_texts, plan, prepare, used_pictures
from dreamoving_cli.preview import Previews, preview_decoder, preview_path
from dreamoving_cli.ranks import Ranks, Task, spread
from dreamoving_cli.recipes import sha256_of
from dreamoving_cli.record import input_hashes, request, versions, write_record
from dreamoving_cli.residency import Residency
from dreamoving_cli.resume import Checkpoint, state_path, unfinished
from dreamoving_cli.sampling import DenoiseState, FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.taesd import with_taesd
from dreamoving_cli.weights import known
from dreamoving_cli.windows import Window

__all__ = ["OnProgress", "Plan", "plan", "render"]

# Options that do not touch the latents.
OUTPUT_ONLY = {"decode_batch", "decoder", "codec", "quality", "audio"}

log = logging.getLogger(__name__)


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody is watching."""


def render(
    options: RenderOptions,
    output: Path,
    machine: Machine | str = "auto",
    *,
    overwrite: bool = False,
    resume: bool = False,
    preview: bool = False,
    on_progress: OnProgress = quiet,
) -> Path:
    """Render one video; where it is. It appears whole or not at all, its record beside it.

    machine: what it runs on, or just the device. preview: keep a sheet of what it will look like beside it.
    """
    output = output_path(output, options.codec)
    check_output(output, overwrite)
    resolved = as_before(options, output) if resume else options
    job = replace(prepare(resolved, machine), requested=options)  # cheap refusals come first
    if job.modes[0].name == "high":  # the other modes are for memory that is short
        reuse_memory(job.device)
    facts = gather_facts(job)
    pictures = read_pictures(job.options, job.config)
    previews = Previews(preview_path(output), preview_decoder(job.source, job.config)) if preview else None

    with (
        memory_errors(),
        kept_if_interrupted(
            Checkpoint(state_path(output), fixed(job, facts), devices=len(job.devices))
        ) as checkpoint,
    ):
        if resume:
            checkpoint.load()
        find_poses(job, checkpoint, on_progress)
        with find_depth(job, on_progress) as depth, closing(load(job, checkpoint.vram)) as residency:
            task = Task(job, pictures, checkpoint.poses, depth, checkpoint.state)
            with spread(task) as ranks:
                latents = latents_of(task, ranks, residency, checkpoint, on_progress, previews)
                turn = job.modes[0].decode_batch
                with closing(decoded(residency, latents, ranks, turn, on_progress)) as batches:
                    write_video(
                        output,
                        batches,
                        job.driver.fps,
                        audio=job.driver.audio,
                        codec=job.options.codec,
                        quality=job.options.quality,
                        overwrite=overwrite,
                    )
    write_record(output, job.options, facts | {"vram": checkpoint.vram})
    checkpoint.remove()
    if previews is not None:
        previews.remove()
    return output


def render_share(task: Task, ranks: Ranks) -> None:
    """What a further device does of a render: its share of the windows of every step, and of the frames."""
    if task.job.modes[0].name == "high":
        reuse_memory(task.job.device)
    checkpoint = Checkpoint(None, {}, task.poses, task.state)
    with memory_errors(), closing(load(task.job, checkpoint.vram)) as residency:
        latents = latents_of(task, ranks, residency, checkpoint)
        decode_turns(residency, latents, ranks, task.job.modes[0].decode_batch)


def as_before(options: RenderOptions, output: Path) -> RenderOptions:
    """What an unfinished render drew or took from the machine: seed, windows at once, CPU threads."""
    before = unfinished(output)
    if before is None:
        return options
    if before["threads"] != torch.get_num_threads():
        log.warning("going on with %d CPU threads, as before", before["threads"])
        torch.set_num_threads(before["threads"])  # other sums of the same numbers differ in their last bits
    if options.context.window_batch is None:  # as these do
        count = before["options"]["context"]["window_batch"]
        options = options.replace(context=options.context.replace(window_batch=count))
    return options if options.seed is not None else options.replace(seed=before["seed"])


def gather_facts(job: Job) -> dict[str, Any]:
    """What the record tells beside the options."""
    for note in job.notes:
        log.warning("%s", note)
    return {
        "frames": job.driver.num_frames,
        "device": device_names(job.devices),
        "dtype": str(job.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "compile": job.compile,
        "notes": job.notes,
        "requested": request(job.requested),
        "inputs": input_hashes(job.options),
        "weights": weight_hashes(job),
        "lock": known().id,
        "versions": versions(),
    }


def weight_hashes(job: Job) -> dict[str, str]:
    """sha256 of every weight file, LoRAs too, by its name or id."""
    parts = [part for part, _ in job.loras]
    if isinstance(job.source, Recipe):
        hashes, parts = {}, [*job.source.files, *parts]
    else:
        hashes = {file.name: sha256_of(file) for file in sorted(job.source.glob("*.*"))}
    return hashes | {part.id or str(file): sha256_of(file) for part in parts for file in part.files}


def fixed(job: Job, facts: dict[str, Any]) -> dict[str, Any]:
    """Whatever decides the bits of the latents."""
    names = ("dtype", "threads", "compile", "inputs", "weights", "versions")
    options = job.options.model_dump(mode="json", exclude=OUTPUT_ONLY | {"seed"})
    given = {"seed": job.options.seed, "device": job.device.type, "options": options}
    return given | {name: facts[name] for name in names}


def read_pictures(options: RenderOptions, config: PackConfig) -> ImagePrompts:
    """The image prompts that count, cut to what they show."""
    given = {kind: [read_image(path) for path in options.pictures(kind)] for kind in used_pictures(options)}
    photos = given.pop("face", None)
    shown = {  # nothing of a long picture is cut off
        kind: [fit_square(picture, max(picture.shape[:2])) for picture in pictures]
        for kind, pictures in given.items()
    }
    if photos is None:
        return ImagePrompts(shown)
    named = list(zip(map(str, options.face), photos, strict=True))
    if needs_identity(config, "face"):
        from dreamoving_cli.extract.identity import read_identities

        crops, identity = read_identities(named)
        return ImagePrompts(shown | {"face": crops}, identity)
    from dreamoving_cli.extract.face import crop_face

    return ImagePrompts(shown | {"face": [crop_face(photo, name=name) for name, photo in named]})


@contextmanager
def kept_if_interrupted(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Whatever ends the block early, Ctrl-C too, leaves the state of the last step, and says so."""
    try:
        yield checkpoint
    except BaseException:
        if checkpoint.state is not None or checkpoint.poses is not None:
            with suppress(OutputError):  # the first error is the one to tell
                checkpoint.write()
                log.warning("not finished; the same command with --resume goes on from %s", checkpoint.path)
        raise


def find_poses(job: Job, checkpoint: Checkpoint, on_progress: OnProgress) -> None:
    """Poses of raw footage, found once and kept in the state."""
    if checkpoint.poses is None:
        checkpoint.poses = footage_poses(job.files, job.driver, lambda done, n: on_progress("pose", done, n))


def find_depth(job: Job, on_progress: OnProgress) -> AbstractContextManager[ClipDepth | None]:
    """The depth of raw footage, on disk while the block runs."""
    return footage_depth(
        job.files, job.driver, job.size, str(job.device), lambda done, n: on_progress("depth", done, n)
    )


def load(job: Job, history: list[str]) -> Residency:
    """The networks, each to be read when its stage begins; memory modes are added to `history`."""
    pack = open_pack(job.source, [file.control.kind for file in job.files])
    pack = with_taesd(pack) if job.options.decoder == "taesd" else pack
    for part, scale in job.loras:
        merge_loras(pack, read_tensors(part), scale, part.name)
    return Residency(pack, job.modes, job.sizes, Place(job.device, job.dtype), history)


def encode(residency: Residency, job: Job, pictures: ImagePrompts) -> Prompts:
    """Keys and values of all prompts."""
    told = frame_texts(job.options.prompt, job.driver)
    return residency.retried(
        "text", lambda: encode_prompts(residency.pack, job.options, pictures, residency.enter, told)
    )


def latents_of(
    task: Task,
    ranks: Ranks,
    residency: Residency,
    checkpoint: Checkpoint,
    on_progress: OnProgress = quiet,
    previews: Previews | None = None,
) -> Tensor:
    """Latents of the whole clip, 1 c f h w, computed together with the other ranks."""
    job = task.job
    prompts = encode(residency, job, task.pictures)
    with open_controls(job.files, job.driver, job.size, task.poses, task.depth) as controls:
        inputs = prompts, controls
        return denoise_clip(job, residency, inputs, checkpoint, on_progress, previews, ranks)


def denoise_clip(
    job: Job,
    residency: Residency,
    inputs: tuple[Prompts, Sequence[Control]],
    checkpoint: Checkpoint,
    on_progress: OnProgress,
    previews: Previews | None,
    ranks: Ranks,
) -> Tensor:
    """Latents of the whole clip, 1 c f h w; inputs: prompts, controls. Out of memory costs one step."""
    prompts, controls = inputs
    options, num_frames = job.options, job.driver.num_frames
    assert options.seed is not None
    assert options.shared_noise is not None
    scheduler = make_scheduler(options.sampler, options.steps, job.config.scheduler.model_dump())
    noise = FrameNoise(options.seed, job.latent_shape, options.shared_noise)

    full = job.windows.full_steps

    def on_step(state: DenoiseState) -> None:
        if not full or state.step in (*full, options.steps):  # elsewhere it needs what is not kept in it
            checkpoint.keep(state)
        if previews is not None:
            previews.show(state, scheduler)
        on_progress("denoise", state.step, options.steps)

    cuts = shot_cuts(job.files, job.driver, checkpoint.poses) or depth_cuts(controls)
    on_progress("denoise", checkpoint.state.step if checkpoint.state else 0, options.steps)

    def from_last_step() -> Tensor:
        windows = replace(job.windows, cuts=cuts, window_batch=residency.mode.window_batch)
        home = None if residency.mode.keeps_deep else torch.device("cpu")
        cache = StepCache(full, options.steps, options.cache_branch_id, home)
        model = Denoiser(
            residency.pack, prompts, controls, scheduler.timesteps, windows, residency.place, cache
        )
        solver = Solver(scheduler, noise, num_frames)

        def predict_noise(x: Tensor, t: Tensor, batch: Sequence[Window]) -> Tensor:
            ranks.check()
            return model.predict_noise(x, t, batch)

        with as_asked(job.compile, residency.pack, residency.mode, job.device, job.notes):
            return denoise(
                predict_noise, solver, windows, checkpoint.state, on_step, model.look, ranks.summed
            )

    return residency.retried("denoise", from_last_step)
