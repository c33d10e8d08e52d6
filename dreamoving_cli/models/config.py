"""The sizes of one model pack, as its config.json holds them; no tensors here.

A pack is the set of networks that render together. Toy and full width differ only in this file's values:

    config = PackConfig.load(folder / "config.json")
    config.pixel_factor     # pixels per latent cell, each side
    config.size_multiple    # what a picture's sides must divide by
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dreamoving_cli.errors import WeightsError

Span = Literal["frame", "clip"]  # what one GroupNorm takes its statistics from


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MotionConfig(_Frozen):
    """Where motion blocks sit and what they look like (AnimateDiff's temporal transformer)."""

    positions: tuple[str, ...] = ("down", "mid", "up")  # also single levels: "down.0", "up.2"
    heads: int = 8
    head_dim: int | None = None  # None: channels / heads
    layers: int = 1  # transformer blocks in one motion block
    max_length: int = 64  # frames it was trained at; longer windows work, the table is a sinusoid
    scale: float = 1.0  # of the logits of attention along time: above 1 there is more motion
    norm: Span = "frame"
    groups: int = 32
    norm_eps: float = 1e-6

    def has(self, position: str, level: int) -> bool:
        """Whether the blocks of `position` ("down", "mid", "up") carry motion blocks at this level."""
        return position in self.positions or f"{position}.{level}" in self.positions


class VaeConfig(_Frozen):
    """The autoencoder: a diffusers class, its arguments, and the pixel shuffle around it."""

    kind: Literal["AutoencoderTiny", "AutoencoderKL"] = Field(default="AutoencoderTiny", alias="class")
    kwargs: dict[str, Any] = Field(default_factory=dict)
    patch: int = Field(default=1, ge=1)  # pixels are unshuffled by this before it and shuffled after it
    patch_out: int | None = Field(default=None, ge=1)  # shuffled after it; None = `patch`
    latent_patch: int = Field(default=1, ge=1)  # its latents are unshuffled by this for the U-Net

    @property
    def channels(self) -> int:
        """Channels of a latent cell, as the U-Net sees it."""
        return int(self.kwargs.get("latent_channels", 4)) * self.latent_patch**2

    @property
    def factor(self) -> int:
        """Pixels per latent cell, each side."""
        levels = "num_encoder_blocks" if self.kind == "AutoencoderTiny" else "block_out_channels"
        default = 4 if self.kind == "AutoencoderTiny" else 1
        return self.patch * self.latent_patch * 2 ** (len(self.kwargs.get(levels, range(default))) - 1)


class SchedulerConfig(_Frozen):
    """The noise schedule the networks were trained with."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1
    clip_sample: bool = False


class PackConfig(_Frozen):
    """Everything needed to build a pack's networks without weights."""

    name: str
    unet: dict[str, Any]  # arguments of diffusers' UNet2DConditionModel
    motion: MotionConfig | None = MotionConfig()
    resnet_norm: Span = "frame"  # AnimateDiff v1 was trained with "clip", v2 and v3 with "frame"
    controls: dict[str, dict[str, Any]] = Field(default_factory=dict)  # kind -> arguments beside the U-Net's
    controlnet_motion: bool = True
    guider: dict[str, dict[str, Any]] = Field(default_factory=dict)  # face | cloth | style -> projection
    text: dict[str, Any]  # arguments of transformers' CLIPTextConfig
    image: dict[str, Any] | None = None  # arguments of transformers' CLIPVisionConfig
    vae: VaeConfig
    scheduler: SchedulerConfig = SchedulerConfig()
    context_frames: int = Field(default=64, ge=1)
    shared_noise: float = Field(default=0.0, ge=0, le=1)  # of the starting noise, by variance
    anchor_frames: int = Field(default=0, ge=0, le=8)  # see anchors.py; 0 = none, as in the paper
    max_pixels: int = Field(default=512 * 768, ge=1)  # of a frame whose size nobody chose

    @field_validator("controls", mode="before")
    @classmethod
    def _kinds_alone_mean_defaults(cls, value: Any) -> Any:
        return {kind: {} for kind in value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> "PackConfig":
        cells = self.vae.channels
        if self.unet.get("in_channels", 4) != cells:
            raise ValueError(
                f"the U-Net takes {self.unet.get('in_channels', 4)} channels, the VAE gives {cells}"
            )
        if self.guider and self.image is None:
            raise ValueError("image prompts need an image encoder")
        return self

    @property
    def latent_channels(self) -> int:
        return self.vae.channels

    @property
    def pixel_factor(self) -> int:
        return self.vae.factor

    @property
    def size_multiple(self) -> int:
        """Pixels a side must divide by so that every U-Net level halves exactly."""
        return self.pixel_factor * 2 ** (len(self.unet.get("block_out_channels", range(4))) - 1)

    @property
    def cross_attention_dim(self) -> int:
        return int(self.unet["cross_attention_dim"])

    def controlnet(self, kind: str) -> dict[str, Any]:
        """Arguments of this control's ControlNetModel: the U-Net's, a fitting hint encoder, then its own."""
        stages = self.pixel_factor.bit_length()  # one halving fewer than entries
        widths = (16, 32, 96, 256) if stages == 4 else tuple(min(16 * 2**i, 256) for i in range(stages))
        inherited = {key: self.unet[key] for key in _SHARED_WITH_CONTROLNET if key in self.unet}
        return {"conditioning_embedding_out_channels": widths, **inherited, **self.controls[kind]}

    @classmethod
    def load(cls, path: Path) -> "PackConfig":
        """The config in this file; WeightsError names what is wrong with it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read: {error.strerror}", "Is this a model pack's folder?"
            ) from error
        except ValidationError as error:
            raise WeightsError(f"{path} is not a pack's config: {error}", "Fetch the pack again.") from error

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, by_alias=True)


_SHARED_WITH_CONTROLNET = (
    "in_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "mid_block_type",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
)
