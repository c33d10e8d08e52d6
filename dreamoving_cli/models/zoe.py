"""ZoeDepth (Bhat et al., 2023) through transformers: loading its public files, and one careful look.

The files come in two layouts: transformers' (Intel/zoedepth-*) and the authors' (ZoeD_M12_*.pt), whose names
are translated here. A look is the authors': a reflected rim, the mirrored picture too, the mean of both.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models.checkpoints.files import Part, read_tensors

INSIDE = (384, 512)  # height, width: of the network's own pictures, about
MULTIPLE = 32
RIM = 3.0  # times the root of half a side is reflected about the picture
INDOORS = {"name": "nyu", "n_bins": 64, "min_depth": 1e-3, "max_depth": 10.0}
OUTDOORS = {"name": "kitti", "n_bins": 64, "min_depth": 1e-3, "max_depth": 80.0}
BACKBONE: dict[str, Any] = {
    "image_size": 384,
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "use_relative_position_bias": True,
    "reshape_hidden_states": False,
    "out_features": ["stage6", "stage12", "stage18", "stage24"],
}
# What a file may hold that no network needs: tables that are computed, and a classifier's head.
IDLE = re.compile(r"relative_position_index|k_idx|[kK]_minus_1|fc_norm|pretrained\.model\.head")
# The authors' names, in order; whatever matches is replaced.
NAMES = (
    (r"^core\.core\.pretrained\.model\.blocks\.", "backbone.encoder.layer."),
    (r"^core\.core\.pretrained\.model\.patch_embed\.proj", "backbone.embeddings.patch_embeddings.projection"),
    (r"^core\.core\.pretrained\.model\.cls_token", "backbone.embeddings.cls_token"),
    (r"^(backbone\.encoder\.layer\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"^(backbone\.encoder\.layer\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.gamma_([12])$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.(relative_position_bias_table)", r".attention.attention.relative_position_bias.\1"),
    (r"^core\.core\.pretrained\.act_postprocess1\.0\.project", "neck.reassemble_stage.readout_projects.0"),
    (r"^core\.core\.pretrained\.act_postprocess2\.0\.project", "neck.reassemble_stage.readout_projects.1"),
    (r"^core\.core\.pretrained\.act_postprocess3\.0\.project", "neck.reassemble_stage.readout_projects.2"),
    (r"^core\.core\.pretrained\.act_postprocess4\.0\.project", "neck.reassemble_stage.readout_projects.3"),
    (r"^core\.core\.pretrained\.act_postprocess1\.3", "neck.reassemble_stage.layers.0.projection"),
    (r"^core\.core\.pretrained\.act_postprocess2\.3", "neck.reassemble_stage.layers.1.projection"),
    (r"^core\.core\.pretrained\.act_postprocess3\.3", "neck.reassemble_stage.layers.2.projection"),
    (r"^core\.core\.pretrained\.act_postprocess4\.3", "neck.reassemble_stage.layers.3.projection"),
    (r"^core\.core\.pretrained\.act_postprocess1\.4", "neck.reassemble_stage.layers.0.resize"),
    (r"^core\.core\.pretrained\.act_postprocess2\.4", "neck.reassemble_stage.layers.1.resize"),
    (r"^core\.core\.pretrained\.act_postprocess4\.4", "neck.reassemble_stage.layers.3.resize"),
    (r"^core\.core\.scratch\.layer1_rn", "neck.convs.0"),
    (r"^core\.core\.scratch\.layer2_rn", "neck.convs.1"),
    (r"^core\.core\.scratch\.layer3_rn", "neck.convs.2"),
    (r"^core\.core\.scratch\.layer4_rn", "neck.convs.3"),
    (r"^core\.core\.scratch\.refinenet1\.", "neck.fusion_stage.layers.3."),
    (r"^core\.core\.scratch\.refinenet2\.", "neck.fusion_stage.layers.2."),
    (r"^core\.core\.scratch\.refinenet3\.", "neck.fusion_stage.layers.1."),
    (r"^core\.core\.scratch\.refinenet4\.", "neck.fusion_stage.layers.0."),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
    (r"\.out_conv\.", ".projection."),
    (r"^core\.core\.scratch\.output_conv\.0", "relative_head.conv1"),
    (r"^core\.core\.scratch\.output_conv\.2", "relative_head.conv2"),
    (r"^core\.core\.scratch\.output_conv\.4", "relative_head.conv3"),
    (r"^mlp_classifier\.0", "mlp_classifier.linear1"),
    (r"^mlp_classifier\.2", "mlp_classifier.linear2"),
    (r"\._net\.0\.", ".conv1."),
    (r"\._net\.2\.", ".conv2."),
    (r"^patch_transformer\.transformer_encoder\.layers\.", "patch_transformer.transformer_encoder."),
    (r"^(conv2|patch_transformer|mlp_classifier|projectors|seed_bin_regressors?|seed_projector|attractors"
     r"|conditional_log_binomial)\.", r"metric_head.\1."),
)  # fmt: skip

State = Mapping[str, Tensor]


def load_zoe(path: Path, part: Part | None = None) -> Any:
    """The network of a file in either layout, or of a folder with its config.json beside the weights.

    part: what is known of the file; by default nothing, so that a pickle is refused.
    """
    from transformers import ZoeDepthConfig, ZoeDepthForDepthEstimation

    if path.is_dir():
        weights = path / "model.safetensors"
        if not (path / "config.json").is_file() or not weights.is_file():
            raise WeightsError(
                f"'{path}' holds no config.json and model.safetensors", "Give a ZoeDepth's folder."
            )
        config, part = ZoeDepthConfig.from_pretrained(path), Part(weights)
    else:
        config, part = None, part or Part(path)
    state = to_transformers(read_tensors(part))
    config = config or zoe_config(any("mlp_classifier" in name for name in state))
    builder: Any = ZoeDepthForDepthEstimation
    try:
        network, told = builder.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(
            f"{part.name} is not a ZoeDepth: {str(error).splitlines()[0][:120]}", FIX
        ) from error
    refuse_misfits(part.name, told)
    return network.eval()


FIX = "Fetch it again: dreamoving models pull depth."


def refuse_misfits(name: str, told: Mapping[str, Any]) -> None:
    """Names that the network lacks or the file lacks, and tensors of another shape."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        wrong = sorted(str(key) for key in told.get(problem, ()) if not IDLE.search(str(key)))
        if wrong:
            kind = problem.replace("_", " ")
            raise WeightsError(f"{name} is not a ZoeDepth: {len(wrong)} {kind}, the first {wrong[0]}", FIX)


def zoe_config(two_heads: bool) -> Any:
    """The shape of ZoeD_M12_N, or of ZoeD_M12_NK with a head for rooms and one for streets."""
    from transformers import BeitConfig, ZoeDepthConfig

    values: dict[str, Any] = {"bin_configurations": [INDOORS]}
    if two_heads:
        values = {
            "bin_configurations": [INDOORS, OUTDOORS],
            "num_patch_transformer_layers": 4,
            "patch_transformer_hidden_size": 128,
            "patch_transformer_intermediate_size": 1024,
            "patch_transformer_num_attention_heads": 4,
        }
    return ZoeDepthConfig(
        backbone_config=BeitConfig(**BACKBONE), neck_hidden_sizes=[256, 512, 1024, 1024], **values
    )


def to_transformers(state: State) -> State:
    """The authors' tensors under transformers' names; those that have them already as they are."""
    if not any(name.startswith("core.core.") for name in state):
        return {name: tensor for name, tensor in state.items() if not IDLE.search(name)}
    translated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if IDLE.search(name):
            continue
        for old, new in NAMES:
            name = re.sub(old, new, name)
        translated |= split(name, tensor)
    return translated


def split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values that lie in one tensor, each under its own name."""
    if name.endswith(".attn.qkv.weight"):
        stem = name.replace(".attn.qkv.weight", ".attention.attention")
        return {f"{stem}.{part}.weight": x for part, x in zip(QKV, tensor.chunk(3), strict=True)}
    if name.endswith((".attn.q_bias", ".attn.v_bias")):
        stem, letter = name.rsplit(".attn.", 1)
        return {f"{stem}.attention.attention.{'query' if letter[0] == 'q' else 'value'}.bias": tensor}
    if ".self_attn.in_proj_" in name:
        stem, kind = name.split(".in_proj_")
        return {f"{stem}.{part}.{kind}": x for part, x in zip(QKV, tensor.chunk(3), strict=True)}
    return {name: tensor}


QKV = ("query", "key", "value")


def hold_head(network: Any) -> None:
    """Of two heads keep the one chosen first: a head that changes within a clip changes all distances."""
    classifier = getattr(network.metric_head, "mlp_classifier", None)
    if classifier is None:
        return
    chosen: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, logits: Tensor) -> Tensor:
        if not chosen:
            chosen.append(logits.sum(0, keepdim=True).detach())
        return chosen[0].expand_as(logits)

    classifier.register_forward_hook(hook)


def inner_size(height: int, width: int) -> tuple[int, int]:
    """At which size the network sees a picture: its own, changed as little as possible, in steps of 32."""
    scales = INSIDE[0] / height, INSIDE[1] / width
    scale = min(scales, key=lambda s: abs(1 - s))
    first, second = (round(scale * side / MULTIPLE) * MULTIPLE for side in (height, width))
    return max(first, MULTIPLE), max(second, MULTIPLE)


def distances(network: Any, pictures: Tensor) -> Tensor:
    """Meters, b 1 h w, of pictures b 3 h w in 0..1."""

    def look(x: Tensor) -> Tensor:
        small = F.interpolate(x, inner_size(*x.shape[-2:]), mode="bilinear", align_corners=True)
        return network(2 * small - 1).predicted_depth[:, None]

    return both_ways(look, pictures)


def both_ways(look: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The mean over a picture and its mirror image, each with a reflected rim that is cut off again."""
    return (with_rim(look, pictures) + with_rim(look, pictures.flip(-1)).flip(-1)) / 2


def with_rim(look: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """b 1 h w of b 3 h w: networks are worst at the rim, so it is put outside."""
    height, width = pictures.shape[-2:]
    down, across = (int((side / 2) ** 0.5 * RIM) for side in (height, width))
    wide = F.pad(pictures, (across, across, down, down), mode="reflect")
    seen = look(wide)
    if seen.shape[-2:] != wide.shape[-2:]:
        seen = F.interpolate(seen, wide.shape[-2:], mode="bicubic", align_corners=False)
    return seen[..., down : down + height, across : across + width]
