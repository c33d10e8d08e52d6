"""What a weight file is, told by the names of its tensors, and the refusal of a file in the wrong place.

Some files share all names: plus and plus-face, FaceID-plus and FaceID-plus-v2, openpose and depth. Those are
told by their hash in models.lock or by the place the user gives them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dreamoving_cli.errors import WeightsError

LORA_MARKS = (
    "lora_A.",
    "lora_down.",
    "lora.down.",
    "_lora.down.",
    "lora_linear_layer.",
    "lora_unet_",
    "lora_te_",
)
OTHER_LORAS = (".hada_", ".lokr_", ".dora_scale", ".lora_mid.", ".oft_")

# kind -> what a sentence calls it
NAMES = {
    "checkpoint": "a Stable Diffusion 1.x checkpoint",
    "sd2": "a Stable Diffusion 2 checkpoint",
    "sdxl": "a Stable Diffusion XL model",
    "unet": "a Stable Diffusion U-Net",
    "vae": "an autoencoder",
    "taesd": "a tiny autoencoder for previews (TAESD)",
    "text-encoder": "a CLIP text encoder",
    "image-encoder": "a CLIP image encoder",
    "motion": "a motion module",
    "motion-lora": "a motion LoRA",
    "lora": "a LoRA",
    "other-lora": "a LoRA of another construction (LoHa, LoKr, DoRA or CP)",
    "sparsectrl": "a SparseCtrl encoder",
    "control-lora": "a control LoRA",
    "controlnet": "a ControlNet",
    "video-controlnet": "a Video ControlNet",
    "pack-unet": "the U-Net of a model pack",
    "base": "an IP-Adapter",
    "plus": "an IP-Adapter plus",
    "full-face": "an IP-Adapter full-face",
    "faceid": "an IP-Adapter FaceID",
    "faceid-plus": "an IP-Adapter FaceID-plus",
    "unknown": "not a weight file that is known here",
}
ADAPTERS = ("base", "plus", "full-face", "faceid", "faceid-plus")
LORAS = ("lora", "motion-lora", "faceid", "faceid-plus")  # FaceID files carry one
WHERE = {
    "checkpoint": "base", "unet": "unet", "vae": "vae", "text-encoder": "text_encoder", "motion": "motion",
    "image-encoder": "image_encoder", "controlnet": "controls", "video-controlnet": "controls",
    "motion-lora": "--lora", "lora": "--lora", **dict.fromkeys(ADAPTERS, "face, cloth or style"),
}  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """Names of tensors, asked in a few ways."""

    names: Collection[str]

    def start(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.names)

    def hold(self, *parts: str) -> bool:
        return any(part in name for name in self.names for part in parts)


def identify(state: Mapping[str, Any]) -> str:
    """The kind of file that has tensors of these names, a key of NAMES."""
    names = {name.removeprefix("module.") for name in state}
    keys = Keys(names)
    for find in (_of_lora, _of_adapter, _of_control, _of_whole_model, _of_network):
        if kind := find(keys):
            return kind
    return "unknown"


def require(kinds: Collection[str], state: Mapping[str, Any], name: str, role: str) -> str:
    """The file's kind, one of `kinds`; otherwise a sentence says what the file is and where it belongs."""
    found = identify(state)
    if found in kinds:
        return found
    wanted = NAMES[next(iter(kinds))]
    remedy = f"Give it as '{WHERE[found]}'." if found in WHERE else "Is it the right file?"
    what = NAMES[found] if found != "unknown" else f"{NAMES[found]} (it begins with {sorted(state)[:2]})"
    raise WeightsError(f"{name} is {what}; '{role}' takes {wanted}", remedy)


def _of_lora(keys: Keys) -> str:
    if keys.hold(*OTHER_LORAS):
        return "other-lora"
    if "lora_controlnet" in keys.names:
        return "control-lora"
    if not keys.hold(*LORA_MARKS) or keys.start("ip_adapter."):
        return ""
    return "motion-lora" if keys.hold("motion_modules.") else "lora"


def _of_adapter(keys: Keys) -> str:
    if not keys.start("ip_adapter."):
        return ""
    marks = {
        "image_proj.latents": "plus",
        "image_proj.perceiver_resampler.proj_in.weight": "faceid-plus",
        "image_proj.proj.3.weight": "full-face",
        "image_proj.proj.weight": "base",
        "image_proj.proj.2.weight": "faceid",
    }
    return next((kind for mark, kind in marks.items() if mark in keys.names), "")


def _of_control(keys: Keys) -> str:
    if "controlnet.conv_in.weight" in keys.names:
        return "video-controlnet"
    if "controlnet_cond_embedding.weight" in keys.names:
        return "sparsectrl"
    if "controlnet_cond_embedding.conv_in.weight" in keys.names:
        return "sparsectrl" if keys.hold("motion_modules.") else "controlnet"
    return "controlnet" if keys.hold("input_hint_block.") else ""


def _of_whole_model(keys: Keys) -> str:
    if keys.start("conditioner.embedders.") or keys.hold("add_embedding."):
        return "sdxl"
    if keys.start("cond_stage_model.model."):
        return "sd2"
    return "checkpoint" if keys.start("model.diffusion_model.") else ""


def _of_network(keys: Keys) -> str:
    marks = {
        "unet.conv_in.weight": "pack-unet",
        "vision_model.embeddings.class_embedding": "image-encoder",
        "text_model.embeddings.token_embedding.weight": "text-encoder",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "text-encoder",
        "first_stage_model.decoder.conv_in.weight": "vae",
        "decoder.conv_in.weight": "vae",
        "decoder.layers.0.weight": "taesd",
        "time_embedding.linear_1.weight": "unet",
    }
    found = next((kind for mark, kind in marks.items() if mark in keys.names), "")
    return "motion" if not found and keys.hold("motion_modules.") else found
