"""The sizes of one captioner, as its config.json holds them; no tensors here.

The full model and the embedded one differ only in this file's values.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dreamoving_cli.errors import WeightsError

MLP_RATIO = 4.3637  # EVA's
TOKENS_JOINED = 4  # neighbors in raster order that make one token for the language model


class VisionConfig(BaseModel):
    """EVA's vision transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: int = Field(ge=14)  # pixels; pictures are squashed to a square
    patch: int = Field(default=14, ge=1)
    width: int
    depth: int
    heads: int
    hidden: int | None = None  # of the MLP; None: width times MLP_RATIO, cut off

    @property
    def mlp_width(self) -> int:
        return self.hidden or int(self.width * MLP_RATIO)

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.side // self.patch

    @model_validator(mode="after")
    def _patches_join(self) -> "VisionConfig":
        if self.side % self.patch or self.grid**2 % TOKENS_JOINED:
            raise ValueError(f"{self.side} pixels in patches of {self.patch} do not join by {TOKENS_JOINED}")
        return self


class CaptionerConfig(BaseModel):
    """Everything needed to build a captioner without weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    vision: VisionConfig
    llama: dict[str, Any]  # arguments of transformers' LlamaConfig
    max_new_tokens: int = Field(default=500, ge=1)
    repetition_penalty: float = Field(default=1.05, gt=0)
    max_length: int = Field(default=2000, ge=1)  # of picture, prompt and answer

    @classmethod
    def load(cls, path: Path) -> "CaptionerConfig":
        """The config in this file; WeightsError names what is wrong with it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read: {error.strerror}", "Is this a captioner's folder?"
            ) from error
        except ValidationError as error:
            raise WeightsError(f"{path} is not a captioner's config: {error}", "Reinstall it.") from error
