"""Public layouts: random networks written as public files are read back as they were."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.footprint import held_values, kept_bytes
from dreamoving_cli.models.checkpoints.assemble import STATISTICS, count_values, recipe_config, weights_of
from dreamoving_cli.models.checkpoints.files import Part, Recipe, read_shapes, read_tensors
from dreamoving_cli.models.checkpoints.identify import NAMES, identify
from dreamoving_cli.models.checkpoints.lora import merge_loras
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.models.strict import load_exactly
from dreamoving_cli.options import ControlOptions, RenderOptions
from dreamoving_cli.windows import Windows
from tests import checkpoints as public

PICTURES = ("face", "cloth", "style")
CONTROLS = ("pose", "depth")


@pytest.fixture(scope="module")
def pack() -> Pack:
    return public.random_pack(public.config())


@pytest.fixture(scope="module")
def folder(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of the pack in one public layout."""
    folder = tmp_path_factory.mktemp("files")
    for name, state in {
        "base": public.single_file(pack),
        "motion": public.motion_layout(pack),
        "image_encoder": dict(pack.image_encoder.state_dict()),
        **{kind: public.ldm_controlnet(pack, kind) for kind in CONTROLS},
        **{kind: public.adapter(pack, kind) for kind in PICTURES},
    }.items():
        public.save(folder / name, state)
    public.write_tokenizer(folder / "tokenizer")
    return folder


def recipe(folder: Path, **changes: Path | None) -> Recipe:
    """All files of the folder, some replaced or left out."""
    names = ("base", "motion", "image_encoder", *PICTURES)
    paths: dict[str, Path | None] = {name: folder / name for name in names}
    paths |= {
        "vocabulary": folder / "tokenizer/vocab.json",
        "merges": folder / "tokenizer/merges.txt",
        **changes,
    }
    controls = {kind: Part(paths.pop(kind, None) or folder / kind) for kind in CONTROLS}
    parts = {role: Part(path, trusted=True) for role, path in paths.items() if path is not None}
    return Recipe("random", parts, controls)


def same(ours: Pack, theirs: Pack, *networks: str) -> None:
    """Every weight of these networks (all: none named) is equal."""
    for name, network in theirs.networks().items():
        if networks and name not in networks:
            continue
        state = ours.networks()[name].state_dict()
        assert state.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key]), (name, key)


def test_a_pack_in_public_layouts_is_read_as_it_was(pack: Pack, folder: Path) -> None:
    again = load_pack(recipe(folder))
    same(again, pack)
    expected = pack.config.model_copy(update={"controlnet_motion": True})
    assert again.config == expected
    assert again.config.context_frames == 16
    assert not any(weight.is_meta for network in again.networks().values() for weight in network.parameters())


def layouts(pack: Pack, part: str) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Every other way in which a part of the pack is published."""
    unet, text = public.under(pack.unet.state_dict(), "unet."), public.clip_text(pack)
    all_layouts: dict[str, dict[str, Callable[[], dict[str, Tensor]]]] = {
        "unet": {
            "diffusers": lambda: unet,
            "ldm": lambda: prefixed(public.ldm_unet(pack), "model.diffusion_model."),
        },
        "vae": {
            "diffusers": lambda: public.under(pack.vae.state_dict(), "vae."),
            "old": lambda: public.old_vae(pack),
            "ldm": lambda: public.ldm_vae(pack) | {"loss.logvar": torch.zeros(1)},
            "ldm-prefixed": lambda: prefixed(public.ldm_vae(pack), "first_stage_model."),
            "checkpoint": lambda: public.single_file(pack),
        },
        "text_encoder": {"transformers": lambda: text},
        "motion": {
            "no-table": lambda: public.motion_layout(pack, None),
            "long": lambda: public.motion_layout(pack, 128),
            "trained-here": lambda: prefixed(public.motion_layout(pack), "module."),
            "with-unet": lambda: public.motion_layout(pack) | unet,
            "diffusers": lambda: public.adapter_motion_layout(pack),
        },
        "pose": {
            "prefixed": lambda: prefixed(public.ldm_controlnet(pack, "pose"), "control_model."),
            "diffusers": lambda: public.under(pack.controlnets["pose"].state_dict(), "controlnet."),
            "ours": lambda: dict(pack.controlnets["pose"].state_dict()),
            "whole-model": lambda: (
                public.single_file(pack) | prefixed(public.ldm_controlnet(pack, "pose"), "control_model.")
            ),
        },
        "image_encoder": {
            "old": lambda: (
                pack.image_encoder.state_dict()
                | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
            )
        },
    }
    return all_layouts[part]


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "motion", "pose", "image_encoder"])
def test_every_layout_of_a_part_gives_the_same_weights(
    pack: Pack, folder: Path, part: str, tmp_path: Path
) -> None:
    for name, make in layouts(pack, part).items():
        path = public.save(tmp_path / name, make())
        fit(recipe(folder, **{part: path}), pack)


def fit(files: Recipe, pack: Pack) -> None:
    """The files hold the pack's weights, tensor by tensor, and nothing else."""
    for network, state, part in weights_of(files, pack):
        own = network.state_dict()
        assert state.keys() == own.keys() - (set(STATISTICS) if network is pack.vae else set()), part.name
        assert all(torch.equal(value, own[key]) for key, value in state.items()), part.name


def test_a_diffusers_folder_is_a_base(pack: Pack, folder: Path, tmp_path: Path) -> None:
    for part, name in (
        ("unet", "diffusion_pytorch_model.fp16.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ):
        (tmp_path / part).mkdir()
        state = next(iter(layouts(pack, part).values()))()
        public.save(tmp_path / part / name, state)
    files = recipe(folder, base=tmp_path)
    fit(files, pack)
    assert len(files.parts["base"].files) == 3


@pytest.mark.parametrize("face", ["base", "full-face", "faceid", "faceid-plus-v2"])
def test_every_ip_adapter_finds_its_place(pack: Pack, face: str, folder: Path, tmp_path: Path) -> None:
    settings = public.config(face=face)
    theirs = replace(pack, config=settings, guider=ContentGuider(settings))
    torch.save(nested(public.adapter(theirs, "face")), tmp_path / "adapter.bin")
    files = recipe(folder, cloth=None, style=None)
    part = Part(tmp_path / "adapter.bin", trusted=True, converted=tmp_path / "copy.safetensors", kind=face)
    files = Recipe("random", {**files.parts, "face": part})
    assert recipe_config(files).guider["face"] == settings.guider["face"]
    only_face = settings.model_copy(update={"guider": {"face": settings.guider["face"]}})
    [(_, state, _)] = [
        x for x in weights_of(files, replace(theirs, config=only_face)) if x[0] is theirs.guider
    ]
    own = {key: value for key, value in theirs.guider.state_dict().items() if ".face." in key}
    assert state.keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in state.items())


def nested(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As .bin files hold it: a dict of two dicts."""
    heads = ("image_proj", "ip_adapter")
    return {head: public.under(state, f"{head}.") for head in heads}


def test_faceid_changes_the_32_spatial_attentions_and_only_them(tmp_path: Path) -> None:
    settings = public.config("narrow", face="faceid")
    only_face = {"guider": {"face": settings.guider["face"]}, "controls": {}}
    pack = public.random_pack(settings.model_copy(update=only_face))
    state = public.adapter(pack, "face")
    before = {key: value.clone() for key, value in pack.unet.state_dict().items()}
    merge_loras(pack, state, 1.0, "faceid")
    after = pack.unet.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    attentions = public.adapter_attentions(pack.unet.unet)
    assert len(attentions) == 32
    names = ("to_q", "to_k", "to_v", "to_out.0")
    assert changed == {f"unet.{attention}.{name}.weight" for attention in attentions for name in names}
    for number, place in ((0, "down_blocks.0"), (12, "up_blocks.1"), (31, "mid_block")):
        assert attentions[number].startswith(place)  # as the reference numbers them
        key, half = f"unet.{attentions[number]}.to_q.weight", f"ip_adapter.{number}.to_q_lora"
        added = state[f"{half}.up.weight"] @ state[f"{half}.down.weight"]
        torch.testing.assert_close(after[key], before[key] + added)


def test_a_faceid_file_brings_its_lora(pack: Pack, folder: Path, tmp_path: Path) -> None:
    settings = public.config(face="faceid")
    state = public.adapter(replace(pack, config=settings, guider=ContentGuider(settings)), "face")
    path = public.save(tmp_path / "faceid", state)
    files = recipe(folder, face=path, cloth=None, style=None)
    ours = load_pack(Recipe("random", files.parts)).unet.state_dict()
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"
    number = len(public.adapter_attentions(pack.unet.unet)) - 1
    half = f"ip_adapter.{number}.to_out_lora"
    added = state[f"{half}.up.weight"] @ state[f"{half}.down.weight"]
    torch.testing.assert_close(ours[key], pack.unet.state_dict()[key] + added)


def test_a_video_controlnet_of_ours_keeps_its_motion(pack: Pack, folder: Path, tmp_path: Path) -> None:
    settings = pack.config
    theirs = VideoControlNet(settings.controlnet("pose"), settings.motion)
    path = public.save(tmp_path / "video", dict(theirs.state_dict()))
    ours, plain = (VideoControlNet(settings.controlnet("pose"), settings.motion) for _ in range(2))
    fresh = replace(pack, controlnets={"pose": ours, "depth": plain})
    for network, state, part in weights_of(recipe(folder, pose=path), fresh):
        if network in (ours, plain):
            load_exactly(network, state, source=part.name)
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert plain.motion is None  # a plain ControlNet's motion would be the identity


@pytest.mark.parametrize(
    ("table", "mid", "frames", "norm"),
    [(24, False, 16, "clip"), (32, True, 16, "frame"), (32, False, 16, "frame"), (64, True, 32, "frame"),
     (128, True, 64, "frame"), (64, False, 64, "frame"), (None, True, 16, "frame")],
)  # fmt: skip
def test_a_motion_module_tells_its_version(
    pack: Pack, table: int | None, mid: bool, frames: int, norm: str, folder: Path, tmp_path: Path
) -> None:
    state = public.motion_layout(pack, table)
    kept = {key: value for key, value in state.items() if mid or not key.startswith("mid_block.")}
    path = public.save(tmp_path / "motion", kept)
    config = recipe_config(recipe(folder, motion=path))
    assert (config.context_frames, config.resnet_norm) == (frames, norm)
    assert config.motion is not None
    assert ("mid" in config.motion.positions) is mid
    part = Part(path, trained_frames=48, resnet_norm="clip", beta_schedule="scaled_linear", motion_scale=1.15)
    files = recipe(folder)
    told = recipe_config(Recipe("random", {**files.parts, "motion": part}, context_frames=20))
    assert told.motion is not None
    assert (told.motion.max_length, told.context_frames, told.resnet_norm) == (48, 20, "clip")
    assert told.scheduler.beta_schedule == "scaled_linear"
    assert told.motion.scale == 1.15


@pytest.mark.parametrize("role", ["base", "motion", "pose", "image_encoder", "face"])
def test_a_wrong_file_is_called_what_it_is(pack: Pack, folder: Path, role: str) -> None:
    wrong = folder / ("cloth" if role == "motion" else "motion")
    said = "is an IP-Adapter plus" if role == "motion" else "is a motion module"
    with pytest.raises(WeightsError, match=rf"{said}; '(controls: )?{role}' takes .*Give it as '"):
        recipe_config(recipe(folder, **{role: wrong}))


@pytest.mark.parametrize("change", ["missing", "unexpected", "other shapes"])
def test_every_tensor_is_accounted_for(pack: Pack, folder: Path, change: str, tmp_path: Path) -> None:
    """In each family: one tensor lost, one too many, one of another shape."""
    made = {
        "unet": lambda: public.ldm_unet(pack),
        "vae": lambda: public.ldm_vae(pack),
        "text_encoder": lambda: public.clip_text(pack),
        "motion": lambda: public.motion_layout(pack),
        "pose": lambda: public.ldm_controlnet(pack, "pose"),
        "face": lambda: public.adapter(pack, "face"),
        "image_encoder": lambda: dict(pack.image_encoder.state_dict()),
    }
    for role, make in made.items():
        state = {key: value for key, value in make().items() if not key.endswith("position_ids")}
        key = [key for key in state if key.endswith(".weight") and value_is_plain(key)][-1]
        value = state.pop(key)
        if change == "unexpected":
            state |= {key: value, "strange.weight": torch.zeros(3)}
        elif change == "other shapes":
            state[key] = value.new_zeros(*value.shape, 2)
        path = public.save(tmp_path / role, state)
        with pytest.raises(WeightsError):
            load_all(recipe(folder, **{role: path}), pack)


def load_all(files: Recipe, pack: Pack) -> None:
    for network, weights, part in weights_of(files, pack):
        load_exactly(network, weights, STATISTICS if network is pack.vae else (), part.name)


def value_is_plain(key: str) -> bool:
    """Not a tensor from which sizes are read, so that the strict load itself is tested."""
    return "conv1" not in key and "in_layers.2" not in key


def test_a_checkpoint_with_something_else_in_it_is_refused(pack: Pack, folder: Path, tmp_path: Path) -> None:
    path = public.save(tmp_path / "strange", public.single_file(pack) | {"lora_something": torch.zeros(1)})
    with pytest.raises(WeightsError, match="holds 'lora_something', which no part"):
        recipe_config(recipe(folder, base=path))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conditioner.embedders.0.transformer.x", "model.diffusion_model.y"], "sdxl"),
        (["cond_stage_model.model.transformer.x", "model.diffusion_model.y"], "sd2"),
        (["controlnet_cond_embedding.weight", "down_blocks.0.motion_modules.0.x"], "sparsectrl"),
        (["lora_controlnet", "input_blocks.0.0.weight"], "control-lora"),
        (["lora_unet_x.hada_w1_a"], "other-lora"),
        (["decoder.layers.0.weight", "encoder.layers.0.weight"], "taesd"),
        (["unet.conv_in.weight"], "pack-unet"),
        (["x"], "unknown"),
    ],
)
def test_files_that_are_not_taken_are_known(names: list[str], kind: str) -> None:
    assert identify(dict.fromkeys(names, torch.zeros(1))) == kind
    assert NAMES[kind]


def test_a_pickle_is_opened_only_if_its_hash_was_known(pack: Pack, tmp_path: Path) -> None:
    path, copy = tmp_path / "mm.ckpt", tmp_path / "converted" / "mm.safetensors"
    state = public.motion_layout(pack)
    torch.save({"state_dict": state, "global_step": 7, "epoch": 1}, path)
    with pytest.raises(WeightsError, match=r"is a pickle, which can run code.*models convert"):
        read_tensors(Part(path))
    trusted = Part(path, trusted=True, converted=copy)
    assert read_shapes(trusted).keys() == state.keys()
    assert not copy.exists()  # shapes alone convert nothing
    assert all(torch.equal(value, state[key]) for key, value in read_tensors(trusted).items())
    path.write_bytes(b"PK\x03\x04 gone")  # from now on the copy is read
    assert read_tensors(trusted).keys() == state.keys()
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]


class Evil:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


def test_a_pickle_that_holds_more_than_tensors_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "callback": Evil()}, path)
    with pytest.raises(WeightsError, match="holds more than tensors, or is damaged"):
        read_tensors(Part(path, trusted=True))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("length", [0x80, 0x180, 0x4B50])
def test_a_header_whose_length_begins_like_a_pickle_is_safetensors(length: int, tmp_path: Path) -> None:
    text = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + text + b"\0\0\0\0")
    assert read_tensors(Part(path))["x"].shape == (1,)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{broken}"])
def test_broken_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"neither safetensors nor|cannot be read"):
        read_shapes(Part(path))
    with pytest.raises(WeightsError):
        read_tensors(Part(path))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_shapes(Part(tmp_path / "none"))


def test_faceid_plus_needs_to_be_told_its_version(pack: Pack, folder: Path, tmp_path: Path) -> None:
    settings = public.config(face="faceid-plus-v2")
    theirs = replace(pack, config=settings, guider=ContentGuider(settings))
    path = public.save(tmp_path / "plus", public.adapter(theirs, "face"))
    with pytest.raises(WeightsError, match=r"version 1 or 2.*kind: faceid-plus-v2"):
        recipe_config(recipe(folder, face=path))
    for kind, shortcut in (("faceid-plus", False), ("faceid-plus-v2", True)):
        parts = {**recipe(folder).parts, "face": Part(path, kind=kind)}
        assert recipe_config(Recipe("random", parts)).guider["face"]["shortcut"] is shortcut


def test_of_each_network_is_told_what_its_files_hold_in_16_bits(
    pack: Pack, folder: Path, tmp_path: Path
) -> None:
    half = {key: value.half() for key, value in public.under(pack.unet.state_dict(), "unet.").items()}
    files = recipe(folder, unet=public.save(tmp_path / "unet", half))
    counts = count_values(files)
    kept = kept_bytes(files)
    assert kept.keys() == {"unet", "controlnet_pose", "controlnet_depth"}
    assert kept["controlnet_pose"] == 4 * counts["controlnet_pose"]
    assert kept["unet"] == 4 * counts["unet"] - 2 * sum(value.numel() for value in half.values())


def test_of_public_files_each_tells_whether_its_residuals_are_held(pack: Pack, folder: Path) -> None:
    """A ControlNet without motion blocks, though the config of the whole knows only that there are some."""
    files = recipe(folder)
    config, windows = recipe_config(files), Windows(100, 16, 4)
    options = RenderOptions(controls=(ControlOptions(kind="pose"),), size="64x64")
    alone = pack.config.model_copy(update={"controlnet_motion": False})
    held = held_values(files, config, options, windows)
    assert held == held_values(folder, alone, options, windows) > 0
    assert pack.controlnets["pose"].motion is None


def test_a_missing_part_is_named(folder: Path, pack: Pack, tmp_path: Path) -> None:
    path = public.save(tmp_path / "half", prefixed(public.ldm_unet(pack), "model.diffusion_model."))
    with pytest.raises(WeightsError, match="has no file for its vae"):
        recipe_config(recipe(folder, base=path))
