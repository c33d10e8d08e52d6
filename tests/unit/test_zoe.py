"""ZoeDepth with tiny random weights: both layouts of its files, what is refused, the look at a picture."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models import zoe

MANIFESTS = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "manifests"


def tiny_zoe(folder: Path, two_heads: bool = False) -> Path:
    """A folder with a tiny random ZoeDepth as transformers saves it."""
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

    backbone = BeitConfig(
        image_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24,
        use_relative_position_bias=True, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    heads = [dict(head, n_bins=8) for head in (zoe.INDOORS, zoe.OUTDOORS)[: 1 + two_heads]]
    more: dict[str, Any] = {}
    if two_heads:
        more = {
            "num_patch_transformer_layers": 1, "patch_transformer_hidden_size": 8,
            "patch_transformer_intermediate_size": 16, "patch_transformer_num_attention_heads": 2,
        }  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=4, bin_embedding_dim=8, num_attractors=[4, 2, 2, 1], bin_configurations=heads,
        initializer_range=0.2, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    ZoeDepthForDepthEstimation(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_zoe(tmp_path_factory.mktemp("zoe"))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))


def test_a_folder_is_loaded_as_it_was_saved(folder: Path, pictures: torch.Tensor) -> None:
    from transformers import ZoeDepthForDepthEstimation

    theirs = ZoeDepthForDepthEstimation.from_pretrained(folder).eval()
    with torch.inference_mode():
        ours, wanted = (zoe.distances(network, pictures) for network in (zoe.load_zoe(folder), theirs))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    assert ours.shape == (1, 1, 128, 192)
    assert ours.min() > 0


def as_the_authors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that transformers saved, under the names and in the pieces of the authors' file."""
    core, old = "core.core.", {}
    for name, tensor in state.items():
        name = name.removeprefix("metric_head.")
        for ours, theirs in AUTHORS:
            name = re.sub(ours, theirs, name)
        old[name] = tensor
    for block in sorted({name.split(".query")[0] for name in old if name.endswith("query.weight")}):
        weights = [old.pop(f"{block}.{part}.weight") for part in zoe.QKV]
        old[f"{block}.qkv.weight"] = torch.cat(weights)
        for part in ("query", "value"):
            old[f"{block}.{part[0]}_bias"] = old.pop(f"{block}.{part}.bias")
        old[f"{block}.relative_position_index"] = torch.zeros(3, dtype=torch.int64)
    assert any(name.startswith(core) for name in old)
    return old


LAYER = r"^backbone\.encoder\.layer\.(\d+)\."
AFTER = "core.core.pretrained.act_postprocess"
BLOCK = r"core.core.pretrained.model.blocks.\1."
TABLE = "relative_position_bias_table"
AUTHORS = (  # transformers' names as they are saved -> the authors', written down on their own
    (r"^backbone\.embeddings\.cls_token", "core.core.pretrained.model.cls_token"),
    (r"^backbone\.embeddings\.patch_embeddings\.projection", "core.core.pretrained.model.patch_embed.proj"),
    (LAYER + r"layernorm_before", BLOCK + "norm1"), (LAYER + r"layernorm_after", BLOCK + "norm2"),
    (LAYER + r"intermediate\.dense", BLOCK + "mlp.fc1"),
    (LAYER + r"attention\.output\.dense", BLOCK + "attn.proj"),
    (LAYER + r"output\.dense", BLOCK + "mlp.fc2"),
    (LAYER + r"lambda_(\d)", BLOCK + r"gamma_\2"),
    (LAYER + rf"attention\.attention\.relative_position_bias\.{TABLE}", BLOCK + f"attn.{TABLE}"),
    (LAYER + r"attention\.attention\.(query|key|value)", BLOCK + r"attn.\2"),
    *((rf"^neck\.reassemble_stage\.readout_projects\.{k}", f"{AFTER}{k + 1}.0.project")
      for k in range(4)),
    *((rf"^neck\.reassemble_stage\.layers\.{k}\.projection", f"{AFTER}{k + 1}.3")
      for k in range(4)),
    *((rf"^neck\.reassemble_stage\.layers\.{k}\.resize", f"{AFTER}{k + 1}.4")
      for k in range(4)),
    *((rf"^neck\.convs\.{k}\.", f"core.core.scratch.layer{k + 1}_rn.") for k in range(4)),
    *((rf"^neck\.fusion_stage\.layers\.{k}\.", f"core.core.scratch.refinenet{4 - k}.") for k in range(4)),
    (r"residual_layer(\d)\.convolution(\d)", r"resConfUnit\1.conv\2"),
    (r"(refinenet\d)\.projection", r"\1.out_conv"),
    (r"^relative_head\.conv1", "core.core.scratch.output_conv.0"),
    (r"^relative_head\.conv2", "core.core.scratch.output_conv.2"),
    (r"^relative_head\.conv3", "core.core.scratch.output_conv.4"),
    (r"^((?:seed_bin_regressor|seed_projector|projectors\.\d|attractors\.\d))\.conv1", r"\1._net.0"),
    (r"^((?:seed_bin_regressor|seed_projector|projectors\.\d|attractors\.\d))\.conv2", r"\1._net.2"),
)  # fmt: skip


def test_the_authors_layout_gives_the_same_distances(
    folder: Path, tmp_path: Path, pictures: torch.Tensor
) -> None:
    theirs = as_the_authors(load_file(folder / "model.safetensors"))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "model.safetensors")
    with torch.inference_mode():
        ours, wanted = (zoe.distances(zoe.load_zoe(path), pictures) for path in (tmp_path, folder))
    torch.testing.assert_close(ours, wanted)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = next(name for name in state if "metric_head" in name and "weight" in name)
    for change, says in ((None, "missing keys"), (torch.zeros(1), "is not a ZoeDepth")):
        wrong = {k: v for k, v in state.items() if k != name} | ({} if change is None else {name: change})
        save_file(wrong, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(WeightsError, match=says):
            zoe.load_zoe(tmp_path)
    save_file(state | {"more": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="unexpected keys"):
        zoe.load_zoe(tmp_path)
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        zoe.load_zoe(tmp_path.parent)
    (tmp_path / "zoe.pt").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(WeightsError, match="is a pickle"):
        zoe.load_zoe(tmp_path / "zoe.pt")


def test_the_head_that_was_chosen_first_is_kept(tmp_path: Path) -> None:
    network = zoe.load_zoe(tiny_zoe(tmp_path, two_heads=True))
    zoe.hold_head(network)
    classifier = network.metric_head.mlp_classifier
    width = classifier.linear1.in_features
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    said = [int(classifier(row[None]).argmax()) for row in x]
    assert len(set(said)) == 1
    free = zoe.load_zoe(tmp_path).metric_head.mlp_classifier
    assert len({int(free(row[None]).argmax()) for row in 9 * x}) == 2  # it would have changed its mind


def test_a_plain_rim_changes_nothing_inside() -> None:
    """A look that treats every pixel alike gives the same with rim and mirror image as without."""
    x = torch.rand(2, 3, 40, 56)
    torch.testing.assert_close(zoe.both_ways(lambda p: p.mean(1, keepdim=True), x), x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("size", "inner"), [((384, 512), (384, 512)), ((512, 512), (512, 512)), ((1000, 600), (864, 512))]
)
def test_the_networks_own_size(size: tuple[int, int], inner: tuple[int, int]) -> None:
    assert zoe.inner_size(*size) == inner


@pytest.mark.shared
def test_every_name_of_the_authors_file_is_known() -> None:
    path = MANIFESTS / "A5_zoedepth_ZoeD_M12_N_model.json"
    if not path.is_file():
        pytest.skip("the lists of public tensors do not lie beside this checkout")
    from transformers import ZoeDepthForDepthEstimation

    listed = json.loads(path.read_text())
    theirs = {name: torch.empty(shape, device="meta") for name, (shape, _) in listed.items()}
    with torch.device("meta"):
        network = ZoeDepthForDepthEstimation(zoe.zoe_config(two_heads=False))
    translated = zoe.to_transformers(theirs)
    assert not [name for name in translated if name.startswith("core.")]
    sizes = sorted(tuple(v.shape) for v in translated.values())
    ours = {name: v for name, v in network.state_dict().items() if not zoe.IDLE.search(name)}
    assert sizes == sorted(tuple(v.shape) for v in ours.values())
