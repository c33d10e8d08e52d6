"""The public files at full width: every name and shape of the lists of them loads, and ours are the same."""

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamoving_cli.models.checkpoints.assemble import STATISTICS, recipe_config, weights_of
from dreamoving_cli.models.checkpoints.files import Part, Recipe, read_shapes
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.layers import cross_attentions
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.strict import load_exactly
from dreamoving_cli.models.unet import VideoUNet
from tests import checkpoints as public

MANIFESTS = Path(__file__).parents[2].parent / "shared" / "parity" / "manifests"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"no lists of public files at {MANIFESTS}"),
]
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "int64": ("I64", 8)}
PLUS = "A2_ip-adapter-plus_sd15__and_plus-face_sd15"
DEFAULTS = {
    "unet": "A1_unet3d_sd15_full_without_motion",
    "motion": "A1_mm_sd_v15_v2__v2_len32",
    "pose": "A4_control_v11_sd15_original_pth",
    "depth": "A4_control_v11_sd15_diffusers",
    "image_encoder": "A2_image_encoder_vit_h14",
    "face": PLUS,
    "cloth": PLUS,
}
ADAPTERS = {
    "plus": PLUS,
    "base": "A2_ip-adapter_sd15",
    "full-face": "A2_ip-adapter-full-face_sd15",
    "faceid": "A2_ip-adapter-faceid_sd15",
    "faceid-plus-v2": "A2_ip-adapter-faceid-plusv2_sd15",
}
MOTION = {  # list -> (has a middle, frames, statistics of norms)
    "A1_mm_sd_v15__v1_len24": (False, 16, "clip"),
    "A1_mm_sd_v15_v2__v2_len32": (True, 16, "frame"),
    "A1_v3_sd15_mm__v3_len32": (False, 16, "frame"),
    "A1_long_animatediff_32f__len64": (True, 32, "frame"),
    "A1_long_animatediff_64f__len128": (True, 64, "frame"),
    "A1_dreamoving_assumed_len64_nomid": (False, 64, "frame"),
}


def manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor."""
    listed: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in listed.items()}


def hollow(path: Path, listed: Mapping[str, tuple[tuple[int, ...], str]]) -> Path:
    """A safetensors file with these names and shapes whose weights are a hole: full size, no disk."""
    header, end = {}, 0
    for key, (shape, dtype) in listed.items():
        name, size = DTYPES[dtype]
        start, end = end, end + size * torch.Size(shape).numel()
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture(scope="module")
def full() -> Pack:
    """Full width without memory."""
    with torch.device("meta"):
        return build_pack(public.config("full"), tokenizer=())


@pytest.fixture(scope="module")
def without_mid(full: Pack) -> Pack:
    """The same without motion in the middle."""
    assert full.config.motion is not None
    motion = full.config.motion.model_copy(update={"positions": ("down", "up")})
    with torch.device("meta"):
        return replace(full, unet=VideoUNet(full.config.unet, motion))


def with_guider(pack: Pack, guider: dict[str, dict[str, Any]]) -> Pack:
    """The same pack with other image prompts."""
    sizes = [(attention.inner_dim, attention.heads) for attention in cross_attentions(pack.unet.unet)]
    config = pack.config.model_copy(update={"guider": guider})
    with torch.device("meta"):
        return replace(pack, config=config, guider=ContentGuider(config, sizes))


@pytest.fixture(scope="module")
def folder(full: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lists as files; autoencoder and text encoder, of which there is no list, as we write them."""
    folder = tmp_path_factory.mktemp("hollow")
    for name in {*DEFAULTS.values(), *ADAPTERS.values(), *MOTION, "A2_ip-adapter-faceid-portrait_sd15"}:
        hollow(folder / name, manifest(name))
    for name, state in {"vae": public.ldm_vae(full), "text_encoder": public.clip_text(full)}.items():
        floats = {k: v for k, v in state.items() if v.is_floating_point()}
        hollow(folder / name, {key: (shape, "float16") for key, shape in shapes(floats).items()})
    return folder


def load(folder: Path, pack: Pack, **changes: str) -> PackConfig:
    """The config of these files, after every tensor of every file has found its place in the pack."""
    names = {**DEFAULTS, "vae": "vae", "text_encoder": "text_encoder", **changes}
    parts = {role: Part(folder / name, kind="faceid-plus-v2") for role, name in names.items()}
    controls = {kind: parts.pop(kind) for kind in ("pose", "depth")}
    recipe = Recipe("sd15", parts, controls)
    config = recipe_config(recipe)
    pack = with_guider(pack, config.guider)
    for network, state, part in weights_of(recipe, pack, read_shapes):
        load_exactly(network, state, STATISTICS if network is pack.vae else (), part.name)
    return config


@pytest.mark.parametrize("name", MOTION)
def test_motion_modules_load(name: str, folder: Path, full: Pack, without_mid: Pack) -> None:
    mid, frames, norm = MOTION[name]
    config = load(folder, full if mid else without_mid, motion=name)
    assert config.motion is not None
    assert (("mid" in config.motion.positions), config.context_frames, config.resnet_norm) == (
        mid,
        frames,
        norm,
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_ip_adapters_load(kind: str, folder: Path, full: Pack) -> None:
    config = load(folder, full, face=ADAPTERS[kind])
    assert config.guider["face"] == public.config("full", face=kind).guider["face"]
    assert config.guider["cloth"] == full.config.guider["cloth"]


def test_the_portrait_adapter_loads(folder: Path, full: Pack) -> None:
    config = load(folder, full, face="A2_ip-adapter-faceid-portrait_sd15")
    assert config.guider["face"] == {"projection": "faceid", "tokens": 16, "identity": 512}


def test_sizes_are_those_of_stable_diffusion(folder: Path, full: Pack) -> None:
    expected = {"name": "sd15", "controlnet_motion": True, "context_frames": 16}
    guider = {kind: full.config.guider[kind] for kind in ("face", "cloth")}
    assert load(folder, full) == full.config.model_copy(update={**expected, "guider": guider})


def test_attentions_are_numbered_as_listed(full: Pack) -> None:
    listed: dict[str, str] = json.loads((MANIFESTS / "A2_attn_processor_index_to_unet_path.json").read_text())
    ours = public.adapter_attentions(full.unet.unet)
    assert {str(i): f"{name}.processor" for i, name in enumerate(ours)} == listed


def faces(kind: str) -> dict[str, dict[str, Any]]:
    return {"face": public.config("full", face=kind).guider["face"]}


def test_random_files_have_exactly_the_listed_tensors(full: Pack, without_mid: Pack) -> None:
    """What the tests write at reduced width is, at full width, the public layout."""
    control = public.ldm_controlnet(full, "pose")
    written: dict[str, Mapping[str, Tensor]] = {
        "A1_unet3d_sd15_full_without_motion": public.under(full.unet.state_dict(), "unet."),
        "A1_mm_sd_v15__v1_len24": public.motion_layout(without_mid, 24),
        "A1_mm_sd_v15_v2__v2_len32": public.motion_layout(full, 32),
        "A1_v3_sd15_mm__v3_len32": public.motion_layout(without_mid, 32),
        "A1_long_animatediff_64f__len128": public.motion_layout(full, 128),
        "A4_control_v11_sd15_original_pth": {f"control_model.{key}": value for key, value in control.items()},
        "A4_control_v11_sd15_diffusers": public.under(full.controlnets["pose"].state_dict(), "controlnet."),
        **{
            name: public.adapter(with_guider(full, faces(kind)), "face", 128)
            for kind, name in ADAPTERS.items()
        },
    }
    for name, state in written.items():
        assert shapes(state) == {key: shape for key, (shape, _) in manifest(name).items()}, name
    encoder = {key: shape for key, (shape, _) in manifest(DEFAULTS["image_encoder"]).items()}
    del encoder["vision_model.embeddings.position_ids"]
    assert shapes(full.image_encoder.state_dict()) == encoder
