"""What a render is asked to do: frozen options, checked where they are born.

Every field is a key of a preset, and flags.py makes a flag of it, so its help is written once, here.
Not here: reading presets (presets.py), whether files exist, and whether a size fits a model pack (render.py
asks that).
"""

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from dreamoving_cli import prompts
from dreamoving_cli.errors import UsageError
from dreamoving_cli.frozen import OneOf, Options, field
from dreamoving_cli.windows import FUSIONS, SCHEDULES

# name -> diffusers class, and what it is told beside the pack's noise schedule
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "lcm": ("LCMScheduler", {}),
}

MODELS = ("auto", "sd15", "mini")
MAX_SEED = 2**32 - 1
MAX_FPS = 240


def seconds(value: Any) -> Any:
    """Exact seconds of "2.5", "5/2", "1:02.5" or a number; the type check refuses the rest."""
    if isinstance(value, str) and re.fullmatch(r"(\d+:){1,2}\d+(\.\d+)?", value):
        total = Fraction(0)
        for part in value.split(":"):
            total = total * 60 + Fraction(part)
        return total
    return Fraction(str(value)) if isinstance(value, float) and math.isfinite(value) else value


def frame_rate(value: Any) -> Any:
    """A rate as text: "source", or what a Fraction holds exactly."""
    if value is None or value == "source":
        return value
    try:
        rate = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= MAX_FPS:
        raise UsageError(f"fps is '{value}'", f"Give up to {MAX_FPS}, such as 24 or 30000/1001, or 'source'.")
    return str(rate)


def picture_size(value: Any) -> Any:
    """A size as "WIDTHxHEIGHT" in pixels, each side 16..9999."""
    if value is None:
        return value
    sides = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", str(value))
    if not sides or min(map(int, sides.groups())) < 16:
        raise UsageError(
            f"size is '{value}'", "Give WIDTHxHEIGHT in pixels, 16 or more a side, such as 512x768."
        )
    return value


def several(value: Any) -> Any:
    """One file or a list of them as a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, Path)) else value


def model_name(value: Any) -> Any:
    """One of MODELS, a file that names a model's parts, or a pack's folder."""
    if isinstance(value, (str, Path)) and (str(value) in MODELS or is_model_path(value)):
        return str(value)
    choice = " or ".join((", ".join(MODELS[:-1]), MODELS[-1]))
    raise UsageError(
        f"model is '{value}'", f"Choose {choice}, or give a model file (.yaml) or a pack's folder."
    )


def is_model_path(value: Any) -> bool:
    """Whether this is a model file, or the folder of a model pack, and no name."""
    return str(value).endswith((".yaml", ".yml")) or (Path(str(value)) / "config.json").is_file()


Strength = Annotated[float, Field(strict=True, ge=0, le=2)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[Fraction, BeforeValidator(seconds), PlainSerializer(str), Field(ge=0)]
Rate = Annotated[str | None, BeforeValidator(frame_rate)]
Files = Annotated[
    tuple[Path, ...],
    BeforeValidator(several),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    ),
]
Model = Annotated[str, BeforeValidator(model_name)]
Words = Annotated[str, AfterValidator(prompts.checked)]
Size = Annotated[str | None, BeforeValidator(picture_size)]


class ControlOptions(Options):
    """One ControlNet: what it follows and how strongly, from which step to which."""

    kind: str = Field(description="What the file shows: pose, depth, ...")
    file: Path | None = Field(
        default=None, description="Footage or map video (default: made from the driving video)."
    )
    control_scale: Strength = Field(
        default=1.0, description="Multiplies this ControlNet's residuals; 0 is off."
    )
    control_start: Share = Field(default=0.0, description="Share of the steps after which it begins to act.")
    control_end: Share = Field(default=1.0, description="Share of the steps after which it no longer acts.")

    @model_validator(mode="after")
    def check_control(self) -> Self:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.kind):
            raise UsageError(
                f"control kind is '{self.kind}'", "Use lower-case letters, such as pose or depth."
            )
        if self.control_start >= self.control_end:
            span = (
                f"control_start of '{self.kind}' is {self.control_start}, its control_end {self.control_end}"
            )
            raise UsageError(span, "Choose a start below the end.")
        return self


class LoraOptions(Options):
    """One LoRA, merged into the model before it renders."""

    file: Path = Field(description="A LoRA file, or a LoRA's id in models.lock.")
    scale: float = Field(default=1.0, strict=True, ge=-4, le=4, description="How strongly it counts.")


class ContextOptions(Options):
    """Which frames the model sees together, and how overlapping windows are averaged."""

    context_frames: Count | None = field(None, "Windows", "Frames of one window (default: the model pack's).")
    context_overlap: int | None = field(
        None,
        "Windows",
        "Frames that two neighbors share (default: a quarter of the window).",
        strict=True,
        ge=0,
    )
    context_stride: Count = field(1, "Windows", "Step between the frames inside a window.")
    schedule: Annotated[str, OneOf(tuple(SCHEDULES))] = field(
        "uniform", "Windows", "How windows lie: fixed, borders moving between steps, or end joined to start."
    )
    fusion: Annotated[str, OneOf(tuple(FUSIONS))] = field(
        "pyramid", "Windows", "How the frames of several windows are averaged."
    )
    window_batch: Count | None = field(
        None, "Windows", "Windows computed at once (default: as many as are faster and fit into memory)."
    )

    @model_validator(mode="after")
    def check_overlap(self) -> Self:
        if self.context_frames and (self.context_overlap or 0) >= self.context_frames:
            raise UsageError(
                f"context_overlap is {self.context_overlap}, the window {self.context_frames} frames",
                f"Choose an overlap of 0 to {self.context_frames - 1}.",
            )
        return self

    def resolved(self, pack_frames: int) -> Self:
        """With the model pack's window, and a quarter of it as overlap, where nothing was chosen."""
        frames = self.context_frames or pack_frames
        overlap = frames // 4 if self.context_overlap is None else self.context_overlap
        return self.replace(context_frames=frames, context_overlap=overlap)


class RenderOptions(Options):
    """Everything that one render needs to know but the device and the output file."""

    model: Model = field(
        "auto",
        "Look",
        "auto, sd15, mini, a model file or a pack's folder; auto: sd15 if it and CUDA are here, or mini.",
    )
    loras: tuple[LoraOptions, ...] = field(
        (), "Look", "FILE[:SCALE]: a style, character or motion LoRA; repeatable.", "--lora"
    )
    pose: Path | None = field(None, "Inputs", "The dance: footage, a pose map video or keypoints JSON.")
    pose_kind: Literal["auto", "footage", "map", "json"] = field(
        "auto", "Inputs", "What --pose is; auto: what extract-pose wrote into it, else footage."
    )
    depth: Path | None = field(None, "Inputs", "What is near and far: footage or a depth map video.")
    depth_kind: Literal["auto", "footage", "map"] = field("auto", "Inputs", "As --pose-kind, of --depth.")
    controls: tuple[ControlOptions, ...] = field(
        (), "Inputs", "KIND=FILE[:SCALE[:START-END]]: a further control; repeatable.", "--control"
    )
    face: Files = field((), "Inputs", "A photo of the person; repeatable, several are averaged.")
    cloth: Path | None = field(None, "Inputs", "A photo of the garment.")
    style: Path | None = field(None, "Inputs", "One picture that guides the whole look.")
    prompt: Words = field("", "Look", "The person and the scene, in words; '@2.5s ...' lines: from then on.")
    negative_prompt: str = field("", "Look", "What should not be seen.")
    guidance_scale: float = field(
        2.0, "Look", "Classifier-free guidance; 1 is off and twice as fast.", strict=True, ge=1, le=30
    )
    guidance_rescale: Share = field(0.0, "Look", "Keeps guidance from glaring colors; 1 is most, 0 off.")
    guidance_start: Share = field(0.0, "Look", "Share of the steps after which guidance begins.")
    guidance_end: Share = field(1.0, "Look", "Share of the steps after which guidance ends: faster.")
    driver_guidance_scale: float = field(
        1.0, "Look", "Guidance by pose and depth: above 1 they are followed more closely; 1 is off.",
        strict=True, ge=1, le=10,
    )  # fmt: skip
    driver_guidance_start: Share = field(0.0, "Look", "Share of the steps after which that begins.")
    driver_guidance_end: Share = field(1.0, "Look", "Share of the steps after which that ends.")
    face_strength: Strength = field(1.0, "Look", "Weight of --face; 0 is off.")
    cloth_strength: Strength = field(1.0, "Look", "Weight of --cloth; 0 is off.")
    style_strength: Strength = field(1.0, "Look", "Weight of --style; 0 is off.")
    pose_scale: Strength = field(1.0, "Look", "Weight of the pose control; 0 is off.")
    pose_start: Share = field(0.0, "Look", "Share of the steps after which the pose begins to act.")
    pose_end: Share = field(1.0, "Look", "Share of the steps after which the pose no longer acts.")
    depth_scale: Strength = field(1.0, "Look", "Weight of the depth control; 0 is off.")
    depth_start: Share = field(0.0, "Look", "Share of the steps after which depth begins to act.")
    depth_end: Share = field(1.0, "Look", "Share of the steps after which depth no longer acts.")
    steps: int = field(25, "Sampling", "Denoising steps.", strict=True, ge=1, le=1000)
    sampler: Annotated[str, OneOf(tuple(SAMPLERS))] = field(
        "ddim", "Sampling", "The solver that takes the steps."
    )
    cache_interval: int = field(
        1, "Sampling",
        "Steps from one in full to the next; between them the U-Net's deep part is kept (DeepCache); 1: off.",
        strict=True, ge=1, le=10,
    )  # fmt: skip
    cache_branch_id: int = field(
        0, "Sampling",
        "The skip connection up to which all steps compute: 0 is the outermost and fastest.",
        strict=True, ge=0, le=99,
    )  # fmt: skip
    shared_noise: Share | None = field(
        None, "Sampling", "Share of the starting noise common to all frames (default: the model pack's)."
    )
    anchor_frames: int | None = field(
        None, "Windows",
        "Frames that all others look at, so that clothes stay the same; 0: off (default: the model pack's).",
        strict=True, ge=0, le=8,
    )  # fmt: skip
    seed: int | None = field(None, "Sampling", "Same seed, same video; drawn and recorded if absent.",
        strict=True, ge=0, le=MAX_SEED)  # fmt: skip
    size: Size = field(None, "Output", "WIDTHxHEIGHT in pixels (default: the driving video's shape).")
    max_pixels: int | None = field(
        None,
        "Output",
        "Most pixels of a frame when no size is given (default: the model pack's).",
        strict=True,
        ge=4096,
    )
    fps: Rate = field(
        None, "Output", "Frames a second, or 'source' (default: the source's, halved while over 30)."
    )
    start_s: Seconds = field(
        Fraction(0), "Output", "Begin here in the driving video: seconds or M:SS.", "--start"
    )
    duration_s: Seconds | None = field(None, "Output", "Render this long: seconds or M:SS.", "--duration")
    num_frames: Count | None = field(None, "Output", "Render this many frames.", "--frames")
    context: ContextOptions = ContextOptions()
    decode_batch: Count = field(8, "Windows", "Frames decoded at once: faster, more memory.")
    decoder: Literal["own", "taesd"] = field(
        "own", "Windows", "own, or taesd: quicker, with less detail; for Stable Diffusion's latents."
    )
    codec: Literal["h264", "hevc", "av1", "vp9", "prores", "gif", "png"] | None = field(
        None, "Output", "Video codec (default: by the output's extension)."
    )
    quality: int | None = field(
        None,
        "Output",
        "The codec's constant quality, lower is better (default: its own).",
        strict=True,
        ge=0,
        le=63,
    )
    audio: bool = field(True, "Output", "Keep the driving video's sound.", strict=True)

    @model_validator(mode="after")
    def check_together(self) -> Self:
        if self.duration_s == 0:
            raise UsageError("duration_s is 0", "Give more than 0 seconds.")
        if self.duration_s is not None and self.num_frames is not None:
            raise UsageError(
                f"duration_s is {self.duration_s} and num_frames {self.num_frames}", "Give only one."
            )
        for name in ("guidance", "driver_guidance", "pose", "depth"):
            start, end = (getattr(self, f"{name}_{side}") for side in ("start", "end"))
            if start >= end:
                span = f"{name}_start is {start}, {name}_end {end}"
                raise UsageError(span, "Choose a start below the end.")
        kinds = [control.kind for control in self.all_controls]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise UsageError(f"control '{twice[0]}' is given more than once", "Give each kind one file.")
        return self

    @property
    def all_controls(self) -> tuple[ControlOptions, ...]:
        """--pose, --depth and the further controls as one list, each kind once."""
        own = ((kind, getattr(self, kind)) for kind in ("pose", "depth"))
        return (*(self._control(kind, file) for kind, file in own if file is not None), *self.controls)

    def _control(self, kind: str, file: Path) -> ControlOptions:
        """--pose or --depth, with what goes with it."""
        sides = ("scale", "start", "end")
        given = {f"control_{side}": getattr(self, f"{kind}_{side}") for side in sides}
        return ControlOptions(kind=kind, file=file, **given)

    def pictures(self, kind: str) -> tuple[Path, ...]:
        """The pictures given as face, cloth or style."""
        return several(getattr(self, kind))  # type: ignore[no-any-return]

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The asked size as (height, width), the order inside the code; None: follow the driving video."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(height), int(width)
