"""Compare our networks with outputs of the reference code: `python tests/goldens/check.py FILE...`.

`--device cuda` runs the networks there.

A golden holds weights, inputs and outputs of one reference module and its `config`; the kind is told by what
a file holds, so that any sizes will do. Exit code: 0 all agree; 1 something differs or is not known here.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from PIL import Image
from safetensors import safe_open
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, installed or not

from dreamoving_cli.errors import UserError, WeightsError
from dreamoving_cli.extract import simcc
from dreamoving_cli.extract.depth_tone import as_8_bit, limits_of
from dreamoving_cli.extract.draw import draw_pose
from dreamoving_cli.extract.keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND
from dreamoving_cli.models.config import MotionConfig, PackConfig, VaeConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.keys import (
    POSITIONS,
    animatediff_to_ours,
    controlnet_to_ours,
    merge_lora,
    motion_block_to_ours,
)
from dreamoving_cli.models.layers import cross_attend, fold, prompt_keys, self_attend, unfold
from dreamoving_cli.models.load import load_exactly
from dreamoving_cli.models.motion import MotionBlock, sinusoid
from dreamoving_cli.models.projections import ImageFeatures
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.zoe import both_ways
from tests.goldens import minigpt

TOLERANCE = 1e-4  # absolute and relative, as the goldens' notes say

Results = dict[str, Tensor]  # name of a stored output -> ours


@dataclass(frozen=True)
class Golden:
    """One file: tensors in fp32 (integers as they are) and its config."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    metadata: dict[str, str]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under this prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def read(path: Path) -> Golden:
    """The golden in this file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # safetensors raises its own, unexported error types
        raise WeightsError(
            f"{path} cannot be read as safetensors: {error}", "Goldens are safetensors."
        ) from error
    upcast = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    return Golden(path, upcast, json.loads(metadata.get("config", "{}")), metadata)


def temporal_module(golden: Golden) -> Results:
    """B1: one motion block, with its intermediate states."""
    config, x = golden.config, golden.tensors["in.hidden_states"]
    motion = MotionConfig(
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        layers=config["num_transformer_block"],
        max_length=config["max_len"],
        groups=config["norm_num_groups"],
        norm_eps=config["groupnorm_eps"],
    )
    block = MotionBlock(config["in_channels"], motion).eval()
    weights = golden.under("weights.")
    load_exactly(block, motion_block_to_ours(weights))
    _check_positions(weights)
    seen: Results = {}
    if motion.layers == 1:  # of several transformer blocks, the stored states would be ambiguous
        _watch_block(block, seen, cells=(x.shape[0], x.shape[3] * x.shape[4]))
    out = unfold(block(fold(x), x.shape[2]), x.shape[2])
    return {"out.hidden_states": out, **{k: v for k, v in seen.items() if k in golden.tensors}}


def unet3d(golden: Golden) -> Results:
    """B1: a whole U-Net with motion blocks, ResNet norms per frame (v2, v3) or over the clip (v1)."""
    config, weights = golden.config, golden.under("weights.")
    unet = {
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
        "block_out_channels": config["block_out_channels"],
        "down_block_types": [name.replace("3D", "2D") for name in config["down_block_types"]],
        "up_block_types": [name.replace("3D", "2D") for name in config["up_block_types"]],
        "layers_per_block": config["layers_per_block"],
        "norm_num_groups": config["norm_num_groups"],
        "norm_eps": config["norm_eps"],
        "cross_attention_dim": config["cross_attention_dim"],
        "attention_head_dim": config["num_heads"],  # diffusers calls the number of heads so
    }
    middle = ("mid",) if config.get("motion_module_mid_block", False) else ()
    motion = MotionConfig(
        positions=("down", "up", *middle), heads=config["num_heads"], max_length=config["max_len"]
    )
    norm = "frame" if config.get("use_inflated_groupnorm", False) else "clip"
    model = VideoUNet(unet, motion, norm).eval()
    load_exactly(model, animatediff_to_ours(weights))
    _check_positions(weights)
    text = model.text_keys(golden.tensors["in.encoder_hidden_states"])
    prompts = [[(k, v, 1.0)] for k, v in text]
    return {"out.sample": model(golden.tensors["in.sample"], golden.tensors["in.timestep"], prompts)}


def controlnet(golden: Golden) -> Results:
    """A4: a ControlNet in LDM layout, converted and run without motion on clips of one frame."""
    config, depth = golden.config, len(golden.config["channel_mult"])
    attends = [2**level in config["attention_resolutions"] for level in range(depth)]
    layers = [config["num_res_blocks"]] * depth
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    weights = golden.under("weights.")
    model = VideoControlNet(
        {
            "in_channels": config["in_channels"],
            "conditioning_channels": config["hint_channels"],
            "block_out_channels": widths,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "layers_per_block": config["num_res_blocks"],
            "cross_attention_dim": config["context_dim"],
            "transformer_layers_per_block": config.get("transformer_depth", 1),
            "attention_head_dim": _heads(config, widths),
            "use_linear_projection": config.get("use_linear_in_transformer", False),
            "conditioning_embedding_out_channels": _hint_widths(weights),
        }
    ).eval()
    load_exactly(model, controlnet_to_ours(weights, layers))
    x, hint = (rearrange(golden.tensors[name], "b c h w -> b c 1 h w") for name in ("in.x", "in.hint"))
    prompts = [[(k, v, 1.0)] for k, v in model.text_keys(golden.tensors["in.context"])]
    residuals = model(x, golden.tensors["in.timesteps"], prompts, model.embed_control(hint))
    return {f"out.{i:02d}": residual for i, residual in enumerate(residuals)}


def ip_attention(golden: Golden) -> Results:
    """B2: text and image prompts summed in one attention (eq. 1), and FaceID's low-rank weights."""
    config, tensors = golden.config, golden.tensors
    x, text = tensors["in.hidden_states"], tensors["in.text"]
    attn1, attn2 = (_attention(golden, name) for name in ("attn1", "attn2"))
    face, cloth = (tensors[f"in.tokens{name}"] for name in "AB")
    guider = _guider(
        config["cross_attention_dim"], attn2, tokens={"face": face.shape[1], "cloth": cloth.shape[1]}
    )
    load_exactly(guider.attentions["face"], _first(golden.under("weights.adapterA.")))
    load_exactly(guider.attentions["cloth"], _first(golden.under("weights.adapterB.")))

    def run(attention: Attention, *images: tuple[ContentGuider, str, Tensor, float]) -> Tensor:
        prompts = [(*prompt_keys(attention, text), 1.0)]
        prompts += [(*guide.keys(kind, tokens)[0], strength) for guide, kind, tokens, strength in images]
        return cross_attend(attention, x, prompts, num_frames=1)

    a, b = (guider, "face", face, config["scaleA"]), (guider, "cloth", cloth, config["scaleB"])
    results = {"out.text_only": run(attn2), "out.A": run(attn2, a), "out.B": run(attn2, b)}
    results["out.A_plus_B"] = run(attn2, a, b)

    lora1, lora2 = golden.under("weights.faceid_attn1."), golden.under("weights.faceid_attn2.")
    merge_lora(attn1, lora1, config["lora_scale"])
    merge_lora(attn2, lora2, config["lora_scale"])
    load_exactly(guider.attentions["face"], _first({k: v for k, v in lora2.items() if "_ip." in k}))
    results["out.faceid_attn1_self"] = self_attend(attn1, x)
    results["out.faceid_attn2"] = run(attn2, (guider, "face", face, config["faceid_scale"]))
    return results


def ip_projections(golden: Golden) -> Results:
    """B2: image features -> prompt tokens, every projection in the file."""
    results: Results = {}
    for name in sorted({key.split(".")[0] for key in golden.tensors}):
        if name not in PROJECTION_MODELS:
            raise WeightsError(
                f"{golden.path} holds projection {name}", f"Known: {', '.join(PROJECTION_MODELS)}."
            )
        results |= {f"{name}.{output}": value for output, value in _projection(golden, name)}
    return results


def dwpose_draw(golden: Golden) -> Results:
    """B4: the pose drawing, pixel by pixel, and its parts as the pictures beside the file hold them."""
    points, scores = (golden.tensors[name].numpy() for name in ("in.keypoints134_px", "in.scores134"))
    height, width = golden.tensors["out.rgb_uint8"].shape[:2]
    drawn = {"full": draw_pose(points, scores, height, width)}
    for part, kept in {"body": (BODY,), "hand": (LEFT_HAND, RIGHT_HAND), "face": (FACE,)}.items():
        alone = np.zeros_like(scores)
        for points_of_part in kept:
            alone[:, points_of_part] = scores[:, points_of_part]
        drawn[part] = draw_pose(points, alone, height, width)
    full = golden.metadata.get("png", "").split(",")[0]
    for part, picture in drawn.items():
        path = golden.path.parent / full.replace("_full_", f"_{part}_")
        if (
            full
            and path.is_file()
            and not np.array_equal(np.asarray(Image.open(path).convert("RGB")), picture)
        ):
            raise WeightsError(f"{path} differs from our drawing", "Drawings must be equal in every pixel.")
    return {"out.rgb_uint8": torch.from_numpy(drawn["full"])}


def dwpose_decode(golden: Golden) -> Results:
    """B4: crops of boxes, and SimCC rows and columns as points of the picture."""
    height, width = (golden.tensors[f"in.simcc_{axis}_f16"].shape[-1] // 2 for axis in "yx")
    boxes = golden.tensors["in.boxes_xyxy"].double().numpy()
    places = [simcc.crop_of(box, height, width) for box in boxes]
    rows = (golden.tensors[f"in.simcc_{axis}_f16"].numpy() for axis in "xy")
    in_crop, scores = simcc.peaks(*rows, width)
    found = zip(in_crop, places, strict=True)
    computed = {
        "out.keypoints": [simcc.to_picture(points, *at, height, width) for points, at in found],
        "out.scores": scores,
        "mid.center": [center for center, _ in places],
        "mid.scale_after_aspect_fix": [size for _, size in places],
        "mid.warp_matrix": [simcc.crop_matrix(*at, height, width) for at in places],
    }
    return {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in computed.items()}


def dwpose_order(golden: Golden) -> Results:
    """B4: the 133 points of COCO-WholeBody as the 134 of OpenPose."""
    points, scores = simcc.to_134(
        *(golden.tensors[f"in.{name}133"].numpy() for name in ("keypoints", "scores"))
    )
    computed = {"out.keypoints134": points, "out.scores134": scores}
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in computed.items()}


def zoe_depth(golden: Golden) -> Results:
    """A5: how ZoeDepth looks at a picture, on a stand-in network, and how distances become a picture."""
    pictures, distances = golden.tensors["infer.in"], golden.tensors["in.depth"]

    def stand_in(x: Tensor) -> Tensor:
        across = x.mean(1, keepdim=True) * torch.linspace(0.5, 1.5, x.shape[-1])
        return torch.nn.functional.avg_pool2d(across, 2)

    plain = torch.nn.functional.interpolate(stand_in(pictures), pictures.shape[-2:], mode="bicubic")
    blocks = [distances.numpy()[:50], distances.numpy()[50:]]  # as a clip comes, piece by piece
    gray = torch.from_numpy(as_8_bit(limits_of(lambda: blocks).nearness(distances.numpy())))
    return {
        "infer.out_no_pad_no_flip": plain,
        "infer.out_pad_and_flip": both_ways(stand_in, pictures),
        "out.uint8": gray[..., None].expand(-1, -1, 3),
    }


def _projection(golden: Golden, name: str) -> Iterator[tuple[str, Tensor]]:
    """(stored output's name, ours) of one projection."""
    weights = golden.under(f"{name}.weights.")
    cross, hidden, settings = _settings(name, golden.config.get(PROJECTION_MODELS[name], {}), weights)
    given = golden.under(f"{name}.in.")
    features = ImageFeatures(
        given.get("clip_hidden"), given.get("image_embeds"), given.get("normed_embedding")
    )
    zeros = ImageFeatures(*(None if x is None else torch.zeros_like(x) for x in vars(features).values()))
    for output in golden.under(f"{name}.out"):
        asked = re.fullmatch(r"|\.uncond_zeros|\.out_noshortcut|\.out_shortcut(?:_scale([\d.]+))?", output)
        if asked is None:
            raise WeightsError(
                f"{golden.path} holds output {name}.out{output}", "Its meaning is not known here."
            )
        if "shortcut" in output:
            settings |= {"shortcut": "no" not in output, "scale": float(asked[1] or 1)}
        guider = ContentGuider(_config(cross, hidden, {"face": settings}), attentions=[]).eval()
        load_exactly(guider.projections["face"], weights)
        yield f"out{output}", guider.tokens("face", zeros if "uncond" in output else features)


def _settings(name: str, c: dict[str, Any], weights: dict[str, Tensor]) -> tuple[int, int, dict[str, Any]]:
    """Cross-attention width, image feature width, and the guider's entry for one reference projection."""
    shape = {key: c[key] for key in ("dim", "depth", "dim_head", "heads", "ff_mult", "tokens") if key in c}
    if name == "ImageProjModel":
        return c["cross"], c["clip"], {"projection": "base", **shape}
    if name == "Resampler":
        return (
            c["output_dim"],
            c["embedding_dim"],
            {"projection": "plus", **shape, "tokens": c["num_queries"]},
        )
    if name == "FullFaceMLPProjModel":
        cross, hidden = weights["proj.2.weight"].shape
        return cross, hidden, {"projection": "full-face"}
    if name == "FaceIDMLPProjModel":
        return c["cross"], 1, {"projection": "faceid", "identity": c["id"], **shape}
    return c["cross"], c["clip"], {"projection": "faceid-plus-v2", "identity": c["id"], **shape}


def _config(cross: int, hidden: int, guider: dict[str, dict[str, Any]]) -> PackConfig:
    """A pack's config of which only the Content Guider is built."""
    image = {"hidden_size": hidden, "projection_dim": hidden}
    return PackConfig(
        name="golden",
        unet={"cross_attention_dim": cross},
        guider=guider,
        text={},
        image=image,
        vae=VaeConfig(),
    )


def _guider(cross: int, attention: Attention, tokens: dict[str, int]) -> ContentGuider:
    kinds = {kind: {"projection": "base", "tokens": count} for kind, count in tokens.items()}
    return ContentGuider(_config(cross, 1, kinds), attentions=[(attention.inner_dim, attention.heads)]).eval()


def _attention(golden: Golden, name: str) -> Attention:
    config = golden.config
    cross = config["cross_attention_dim"] if name == "attn2" else None
    attention = Attention(
        config["query_dim"], cross, heads=config["heads"], dim_head=config["dim_head"]
    ).eval()
    load_exactly(attention, golden.under(f"weights.{name}."))
    return attention


def _first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"0.{key}": value for key, value in state.items()}


def _hint_widths(weights: dict[str, Tensor]) -> list[int]:
    """Widths of the hint encoder's levels: its first convolution, then every second one but the last."""
    biases = {
        int(k.split(".")[2]): v for k, v in weights.items() if re.search(r"input_hint_block\.\d+\.bias", k)
    }
    return [biases[number].shape[0] for number in sorted(biases)[:-1:2]]


def _heads(config: dict[str, Any], widths: list[int]) -> Any:
    head_dim = config.get("num_head_channels", -1)
    return config["num_heads"] if head_dim in (-1, None) else [width // head_dim for width in widths]


def _check_positions(weights: dict[str, Tensor]) -> None:
    """Stored position tables must be ours, which are computed and not loaded."""
    for key, table in weights.items():
        if key.endswith(POSITIONS):
            ours = sinusoid(table.shape[-2], table.shape[-1], table.device)
            if not agree(ours, table[0]):
                raise WeightsError(f"{key} is not our position table", "Has the file been changed?")


def _watch_block(block: MotionBlock, seen: Results, cells: tuple[int, int]) -> None:
    """Keep what a motion block computes on its way, in the layout that the reference reports."""
    batch, count = cells

    def keep(name: str, temporal: bool) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, x: Tensor) -> None:
            frames = rearrange(x, "(b n) f c -> (b f) n c", b=batch, n=count) if temporal else x
            seen[f"mid.{name}"] = frames.flatten(0, 1) if name == "after_proj_in" else frames

        return hook

    layer: Any = block.transformer_blocks[0]
    block.norm.register_forward_hook(keep("after_groupnorm", temporal=False))
    block.proj_in.register_forward_hook(keep("after_proj_in", temporal=False))
    layer.attn1.register_forward_hook(keep("attn0_out", temporal=True))
    layer.attn2.register_forward_hook(keep("attn1_out", temporal=True))
    layer.ff.register_forward_hook(keep("ff_out", temporal=True))
    layer.register_forward_hook(keep("block_out", temporal=True))


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Equal within the tolerance; integers exactly."""
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def check(path: Path, device: str = "cpu") -> list[str]:
    """What is wrong with our outputs on this file, one sentence each; nothing if all agree.

    device: where networks run; what holds none runs on the CPU.
    """
    if path.suffix == ".json":
        return minigpt.words(path)
    golden = read(path)
    run = next(
        (run for holds, run in KINDS.items() if any(key.startswith(holds) for key in golden.tensors)), None
    )
    if run is None:
        return [f"{path.name}: this kind of golden is not known here"]
    ours = run(golden) if run not in NETWORKS else on_device(run, golden, device)
    stored = {
        k: v for k, v in golden.tensors.items() if re.match(r"(?!.*weights\.)(.*\.)?(out|mid)([._]|$)", k)
    }
    lost = [k for k in stored if k not in ours and not k.startswith("mid.")]  # not every middle state is ours
    complaints = [f"{path.name}: {key} is not computed here" for key in lost]
    complaints += [f"{path.name}: {key} is missing from the file" for key in ours if key not in stored]
    both = [key for key in stored if key in ours and not agree(ours[key], stored[key])]
    return complaints + [f"{path.name}: {key} {_difference(ours[key], stored[key])}" for key in both]


def on_device(run: Callable[[Golden], Results], golden: Golden, device: str) -> Results:
    """The results of networks that are made and run on this device, in full fp32 on CUDA too."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    there = replace(golden, tensors={key: value.to(device) for key, value in golden.tensors.items()})
    with torch.device(device):
        return {key: value.cpu() for key, value in run(there).items()}


def _difference(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"is {tuple(ours.shape)}, in the file {tuple(theirs.shape)}"
    return f"differs by {(ours.double() - theirs.double()).abs().max():.3g}"


def main(words: list[str]) -> int:
    """Check every file; say which agree and what is wrong with the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    if failed := not options.paths:
        sys.stderr.write("Name the golden files to check.\n")
    for name in options.paths:
        try:
            complaints = check(Path(name), options.device)
        except (UserError, KeyError, ValueError, RuntimeError) as error:
            complaints = [f"{Path(name).name}: {error}"]
        failed = failed or bool(complaints)
        sys.stdout.write("".join(f"FAIL {line}\n" for line in complaints) or f"ok   {Path(name).name}\n")
    return int(failed)


PROJECTION_MODELS = {  # reference class -> its entry in the config
    "ImageProjModel": "ImageProjModel",
    "Resampler": "Resampler",
    "FullFaceMLPProjModel": "FullFaceMLP",
    "FaceIDMLPProjModel": "FaceIDMLP",
    "FaceIDProjPlusModel": "ProjPlus",
}

KINDS: dict[str, Callable[[Golden], Results]] = {  # a key's beginning that only this kind has -> its check
    "weights.temporal_transformer.": temporal_module,
    "weights.conv_in.": unet3d,
    "weights.control_model.": controlnet,
    "weights.adapterA.": ip_attention,
    **dict.fromkeys((f"{name}." for name in PROJECTION_MODELS), ip_projections),
    "in.keypoints134_px": dwpose_draw,
    "in.simcc_x_f16": dwpose_decode,
    "in.keypoints133": dwpose_order,
    "in.depth": zoe_depth,
    "weights.eva.": minigpt.captioner,
    "in.rgb_uint8_hwc": minigpt.preprocess,
}
NETWORKS = (temporal_module, unet3d, controlnet, ip_attention, ip_projections, minigpt.captioner)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
