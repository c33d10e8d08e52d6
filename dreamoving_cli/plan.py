"""What a render will do, decided before any model is loaded: the pack, the size, the frames, the windows.

Whatever can be refused is refused here, in seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dreamoving_cli import caching, compiling, paths, taesd
from dreamoving_cli.batching import at_once
from dreamoving_cli.conditioning import Place
from dreamoving_cli.controls import ControlFile, Driver, asked_frames, control_files, open_driver
from dreamoving_cli.device import GIB, Machine, available_gib, choose_devices, choose_dtype
from dreamoving_cli.errors import DeviceMemoryError, UsageError
from dreamoving_cli.footprint import measure, widths, window_rows
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import fit_size
from dreamoving_cli.memory import NAMES, Mode, Sizes, choose, ladder, need
from dreamoving_cli.models.checkpoints.assemble import recipe_config
from dreamoving_cli.models.checkpoints.files import Part, Recipe
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import absolute, with_seed
from dreamoving_cli.prompts import FrameTexts, of_frames
from dreamoving_cli.prompts import read as read_prompt
from dreamoving_cli.recipes import find_loras, find_recipe, has_files, recipe_notes
from dreamoving_cli.sampling import make_scheduler
from dreamoving_cli.weights import weight_paths
from dreamoving_cli.windows import Windows

PICTURES = ("face", "cloth", "style")


@dataclass(frozen=True)
class Job:
    """One render, resolved."""

    requested: RenderOptions  # as asked for
    options: RenderOptions  # nothing left open: these repeat the render
    source: Path | Recipe  # the model pack's folder, or the public files that make one
    config: PackConfig
    loras: list[tuple[Part, float]]  # merged into it
    devices: tuple[torch.device, ...]  # all share the windows and the frames; the first also writes
    dtype: torch.dtype
    files: list[ControlFile]
    driver: Driver
    size: tuple[int, int]  # height, width
    windows: Windows
    at_once: str  # windows computed together, and why so many
    notes: list[str]  # what the user should know
    sizes: Sizes
    modes: list[Mode]  # of memory: the chosen one, then those to fall back on
    compile: str = "off"  # one of compiling.NAMES

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w of one frame."""
        factor = self.config.pixel_factor
        return self.config.latent_channels, self.size[0] // factor, self.size[1] // factor


@dataclass(frozen=True)
class Plan:
    """A job in plain values, for --dry-run."""

    model: str
    device: str
    dtype: str
    size: str
    fps: str
    frames: int
    duration_s: float
    controls: list[str]
    pictures: list[str]
    steps: int
    sampler: str
    cache: str  # which steps are computed in full, and what is kept of them
    seed: int
    windows: str
    at_once: str  # windows computed together, and why so many
    vram: str  # the memory mode
    compile: str  # one of compiling.NAMES
    memory_gib: float  # in this mode
    available_gib: float
    notes: list[str]


def plan(options: RenderOptions, machine: Machine | str = "auto") -> Plan:
    """What `render` would do with these options."""
    job = prepare(options, machine)
    context = job.windows
    return Plan(
        model=job.config.name,
        device=device_names(job.devices),
        dtype=str(job.dtype).removeprefix("torch."),
        size=f"{job.size[1]}x{job.size[0]}",
        fps=str(job.driver.fps),
        frames=job.driver.num_frames,
        duration_s=round(float(job.driver.num_frames / job.driver.fps), 3),
        controls=[f"{f.control.kind} ({f.form}, {f.control.control_scale:g}): {f.path}" for f in job.files],
        pictures=[f"{k}: {path}" for k in used_pictures(job.options) for path in job.options.pictures(k)],
        steps=job.options.steps,
        sampler=job.options.sampler,
        cache=caching.told(job.options, job.config, job.sizes.deep, job.driver.num_frames),
        seed=job.options.seed or 0,
        windows=f"{len(context.windows_at(0))} of {context.context_frames} frames, "
        f"overlap {context.context_overlap}, {context.schedule}, {context.fusion}"
        + (f", anchor frames {', '.join(map(str, context.anchors))}" if context.anchors else ""),
        at_once=job.at_once,
        vram=str(job.modes[0]),
        compile=job.compile,
        memory_gib=round(need(job.modes[0], job.sizes) / GIB, 2),
        available_gib=round(free_gib(job.devices), 2),
        notes=job.notes,
    )


def prepare(options: RenderOptions, machine: Machine | str = "auto") -> Job:
    """Resolve everything that was left open; refuse what cannot be done. machine: or just its device."""
    machine = Machine(machine) if isinstance(machine, str) else machine
    devices = choose_devices(machine.device)
    on, dtype = devices[0], common_dtype(devices, machine.dtype)
    compiling.refuse(machine.compile, on)
    files = control_files(options)
    name, notes = choose_pack(options.model, on)
    source, config = find_pack(name, options, files)
    make_scheduler(options.sampler, options.steps, config.scheduler.model_dump())
    check_pack(config, options, files)
    driver = open_driver(options, files)
    size = choose_size(options, config, driver)
    context = options.context.resolved(config.context_frames)
    shared = config.shared_noise if options.shared_noise is None else options.shared_noise
    anchors = config.anchor_frames if options.anchor_frames is None else options.anchor_frames
    resolved = with_seed(absolute(options)).replace(
        model=name, size=f"{size[1]}x{size[0]}", fps=str(driver.fps), context=context, shared_noise=shared,
        anchor_frames=anchors,
    )  # fmt: skip
    for kind in used_pictures(options):
        for path in options.pictures(kind):
            read_image(path)
    told = recipe_notes(source, options.sampler) if isinstance(source, Recipe) else ()
    shown = context.replace(window_batch=context.window_batch or 1).model_dump()
    windows = Windows(driver.num_frames, **shown, anchor_frames=anchors, ranks=len(devices))
    windows = replace(windows, full_steps=caching.full_steps(resolved))
    decoding = decoding_config(config, options)
    sizes = measure(source, decoding, resolved, windows, Place(on, dtype))
    rows = window_rows(config, resolved, windows)
    together = at_once(context.window_batch, windows, rows, widths(config)[0], on.type)
    batches = together.counts, min(options.decode_batch, driver.num_frames)
    modes = choose_modes(machine.vram, batches, decoding, sizes, devices)
    if context.window_batch is None:
        resolved = resolved.replace(context=context.replace(window_batch=modes[0].window_batch))
    return Job(
        requested=options,
        options=resolved,
        source=source,
        config=config,
        loras=find_loras(options.loras),
        devices=devices,
        dtype=dtype,
        files=files,
        driver=driver,
        size=size,
        windows=replace(windows, window_batch=modes[0].window_batch),
        at_once=together.told(modes[0]),
        notes=[
            *notes,
            *told,
            *remarks(options, config, driver, size),
            *memory_remarks(modes[0]),
            *compiling.remarks(machine.compile, modes[0], on),
            *device_remarks(windows, options.steps, devices),
        ],
        sizes=sizes,
        modes=modes,
        compile=machine.compile,
    )


def choose_pack(model: str, device: torch.device) -> tuple[str, list[str]]:
    """The name of the model pack; auto falls back to the miniature, and says so."""
    if model != "auto":
        return model, []
    lacks = [] if has_files("sd15") else ["its files are not here"]
    lacks += [] if device.type == "cuda" else ["there is no CUDA device"]
    if lacks:
        return "mini", [f"model: mini, the miniature (sd15: {' and '.join(lacks)})"]
    return "sd15", ["model: sd15"]


def find_pack(
    name: str, options: RenderOptions, files: list[ControlFile]
) -> tuple[Path | Recipe, PackConfig]:
    """Where the model pack is, and its config; of public files, those that this render uses."""
    if name == "mini" or Path(name).is_dir():
        folder = paths.MINI if name == "mini" else Path(name)
        return folder, PackConfig.load(folder / "config.json")
    recipe = find_recipe(name, [file.control.kind for file in files], used_pictures(options))
    return recipe, recipe_config(recipe)


def check_pack(config: PackConfig, options: RenderOptions, files: list[ControlFile]) -> None:
    """Refuse controls and pictures that the pack was not made for."""
    wanted = [("control", f.control.kind, config.controls) for f in files]
    wanted += [("picture", kind, config.guider) for kind in used_pictures(options)]
    for what, kind, offered in wanted:
        if kind not in offered:
            names = ", ".join(offered) or "none"
            raise UsageError(f"model '{config.name}' has no {what} '{kind}'", f"It has: {names}.")


def decoding_config(config: PackConfig, options: RenderOptions) -> PackConfig:
    """The pack's config with the autoencoder that decodes; TAESD knows no latents but Stable Diffusion's."""
    if options.decoder == "own":
        return config
    if config.vae.kind != "AutoencoderKL" or config.latent_channels != taesd.CONFIG.channels:
        raise UsageError(
            f"decoder is 'taesd', and model '{config.name}' has latents of its own", "Leave --decoder out."
        )
    weight_paths([taesd.TAESD])
    return config.model_copy(update={"vae": taesd.CONFIG})


def choose_size(options: RenderOptions, config: PackConfig, driver: Driver) -> tuple[int, int]:
    """(height, width): the asked size if it divides, else the driver's shape within the pixel budget."""
    multiple = config.size_multiple
    asked = options.height_width
    if asked is None:
        return fit_size(*driver.source_size, multiple, options.max_pixels or config.max_pixels)
    if asked[0] % multiple or asked[1] % multiple:
        near = "x".join(str(max(round(side / multiple), 1) * multiple) for side in reversed(asked))
        raise UsageError(
            f"size is {options.size}", f"Model '{config.name}' needs multiples of {multiple}: {near} is near."
        )
    return asked


def remarks(
    options: RenderOptions, config: PackConfig, driver: Driver, size: tuple[int, int]
) -> Iterator[str]:
    """What was decided for the user, and what may surprise."""
    name = driver.path.name
    if options.fps is None and driver.fps != driver.source_fps:
        yield (
            f"{name} runs at {float(driver.source_fps):g} fps and is rendered at {float(driver.fps):g}; "
            "--fps source keeps all frames"
        )
    asked = asked_frames(options, driver.fps)
    if asked is not None and asked > driver.num_frames:
        yield f"{name} has {driver.num_frames} of the {asked} frames asked for"
    height, width = driver.source_size
    if options.size is None:
        cropped = " cropped at the center," if height * size[1] != width * size[0] else ""
        yield f"{name} is {width}x{height}:{cropped} rendered at {size[1]}x{size[0]}"
    told = frame_texts(options.prompt, driver).texts
    for part in read_prompt(options.prompt):
        if part.words not in told:
            yield f"of the prompt, '{part}' is not in the rendered stretch"
    frames = options.context.context_frames or 0
    if frames > config.context_frames:
        yield f"windows of {frames} frames: model '{config.name}' was trained at {config.context_frames}"


def frame_texts(prompt: str, driver: Driver) -> FrameTexts:
    """Which words each frame of the render has."""
    return of_frames(prompt, driver.start_s, (driver.source_fps, driver.fps), driver.num_frames)


def memory_remarks(mode: Mode) -> Iterator[str]:
    """What the memory mode changes in the picture."""
    if mode.eight_bit or mode.tiled:
        yield f"memory is short, --vram {mode}: the picture differs slightly from one made in --vram high"


def used_pictures(options: RenderOptions) -> list[str]:
    """The image prompts that are given and count; strength 0 costs nothing."""
    return [k for k in PICTURES if options.pictures(k) and getattr(options, f"{k}_strength")]


def device_remarks(windows: Windows, steps: int, devices: Sequence[torch.device]) -> Iterator[str]:
    """How several devices share the windows of a step; borders move, so steps differ by one or two."""
    if len(devices) == 1:
        return
    shares = [len(share) for share in windows.shared_out(0)]
    yield (
        f"{sum(shares)} windows a step on {len(devices)} devices ({device_names(devices)}): "
        f"{', '.join(map(str, shares))}; text and pictures are encoded on each, frames decoded in turn"
    )
    most = max(len(windows.windows_at(step)) for step in range(steps))
    if most < len(devices):
        yield (
            f"there are at most {most} windows a step: {len(devices) - most} of the {len(devices)} devices "
            "will only decode; fewer --devices do"
        )


def device_names(devices: Sequence[torch.device]) -> str:
    """As --devices takes them."""
    return ",".join(map(str, devices))


def common_dtype(devices: Sequence[torch.device], asked: str) -> torch.dtype:
    """The precision that all of them compute in: fp16, where they would choose differently."""
    chosen = {choose_dtype(device, asked) for device in devices}
    return chosen.pop() if len(chosen) == 1 else torch.float16


def free_gib(devices: Sequence[torch.device]) -> float:
    """Memory that a render can take on each device; on the CPU they share it."""
    least = min(available_gib(device) for device in devices)
    return least / len(devices) if devices[0].type == "cpu" else least


def choose_modes(
    asked: str,
    batches: tuple[Sequence[int], int],
    config: PackConfig,
    sizes: Sizes,
    devices: Sequence[torch.device],
) -> list[Mode]:
    """The memory mode, from what is free now, and those below it; refuses what fits in none."""
    if asked not in ("auto", *NAMES):
        raise UsageError(f"vram is '{asked}'", f"Choose auto, {', '.join(NAMES)}.")
    tiles = config.vae.kind == "AutoencoderKL"
    modes = ladder(asked, batches, devices[0].type, tiles=tiles, half=sizes.half_saves)
    where = str(devices[0]) if len(devices) == 1 else "each device"
    chosen = choose(asked, modes, sizes, int(free_gib(devices) * GIB), where)
    kept, free = sizes.deep * len(devices) / GIB, available_gib(torch.device("cpu"))
    if not sizes.on_cpu and not chosen[0].keeps_deep and kept > free:
        raise DeviceMemoryError(
            f"step caching keeps {kept:.1f} GiB in main memory, which has {free:.1f} GiB free",
            "Give fewer frames, a higher --cache-branch-id, or --cache-interval 1.",
        )
    return chosen
