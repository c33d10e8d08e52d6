"""Packs: built, saved, loaded strictly; prompts from text and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.models.config import PackConfig, VaeConfig
from dreamoving_cli.models.content_guider import PROMPTS
from dreamoving_cli.models.encoders import learn_tokenizer, prepare_pictures, read_tokenizer
from dreamoving_cli.models.load import Pack, build_pack, fill, load_pack, open_pack, save_pack
from dreamoving_cli.models.strict import is_empty
from dreamoving_cli.models.tiny import tiny_config

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pack() -> Pack:
    built = build_pack(tiny_config(), seed=0)
    for network in built.networks().values():
        network.eval().requires_grad_(False)
    return built


@pytest.fixture
def folder(pack: Pack, tmp_path: Path) -> Path:
    save_pack(pack, tmp_path / "tiny", torch.float32)
    return tmp_path / "tiny"


def test_sizes_follow_from_the_config() -> None:
    config = tiny_config()
    assert (config.pixel_factor, config.size_multiple, config.latent_channels) == (16, 32, 4)
    assert len(config.controlnet("pose")["conditioning_embedding_out_channels"]) == 5
    plain = PackConfig(
        name="sd", unet={"cross_attention_dim": 768}, controls=["pose"], text={}, vae=VaeConfig()
    )  # type: ignore[arg-type]
    assert plain.controlnet("pose")["conditioning_embedding_out_channels"] == (16, 32, 96, 256)


def test_a_config_survives_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config().to_json())
    assert PackConfig.load(tmp_path / "config.json") == tiny_config()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unett": {}}, "unett"),
        ({"vae": {"class": "Autoencoder"}}, "AutoencoderTiny"),
        ({"unet": {"in_channels": 9}}, "takes 9 channels"),
        ({"image": None}, "need an image encoder"),
    ],
)
def test_a_wrong_config_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = json.dumps({**json.loads(tiny_config().to_json()), **change})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=said):
        PackConfig.load(tmp_path / "config.json")


def test_a_saved_pack_is_loaded_as_it_was(pack: Pack, folder: Path) -> None:
    again = load_pack(folder)
    assert again.config == pack.config
    for name, network in pack.networks().items():
        state = again.networks()[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    prompts = ["A woman dances, on the beach!", ""]
    torch.testing.assert_close(again.encode_text(prompts), pack.encode_text(prompts))
    assert not any(weight.requires_grad for weight in again.unet.parameters())


def test_only_the_wanted_controls_are_loaded(folder: Path) -> None:
    (folder / "controlnet_depth.safetensors").unlink()
    assert set(load_pack(folder, controls=["pose"]).controlnets) == {"pose"}
    with pytest.raises(WeightsError, match=r"controlnet_depth\.safetensors is missing"):
        load_pack(folder)
    with pytest.raises(UsageError, match="It has: pose, depth"):
        load_pack(folder, controls=["canny"])


def test_a_network_that_does_not_fit_stays_empty(
    pack: Pack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pack(pack, folder)
    opened = open_pack(folder)
    assert all(map(is_empty, opened.networks().values()))
    with monkeypatch.context() as patched:
        patched.setattr(
            "dreamoving_cli.models.load.quick_convolutions", lambda _: (_ for _ in ()).throw(MemoryError)
        )
        with pytest.raises(MemoryError):
            fill(opened, "unet")
    assert is_empty(opened.unet)
    fill(opened, "unet", as_stored=True)
    kept = {
        type(m) for m in opened.unet.modules() for w in m.parameters(recurse=False) if w.dtype == torch.half
    }
    assert kept == {torch.nn.Linear, torch.nn.Conv2d}
    fill(opened, "vae", dtype=torch.bfloat16)
    assert opened.vae.std.dtype == torch.bfloat16
    assert all(map(is_empty, (opened.text_encoder, opened.guider)))


def test_half_precision_on_disk_and_in_memory(pack: Pack, folder: Path) -> None:
    save_pack(pack, folder)
    assert load_file(folder / "unet.safetensors")["unet.conv_in.weight"].dtype == torch.float16
    again = load_pack(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in again.unet.parameters()} == {torch.bfloat16}
    assert again.image_tokens("face", [PICTURE]).dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["missing", "unexpected", "other shapes"])
def test_weights_are_loaded_strictly(change: str, folder: Path) -> None:
    path = folder / "guider.safetensors"
    state = load_file(path)
    key = next(iter(state))
    value = state.pop(key)
    if change == "unexpected":
        state |= {key: value, "more": torch.zeros(1)}
    elif change == "other shapes":
        state[key] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(WeightsError, match=rf"{change} \['"):
        load_pack(folder)


def test_broken_files_are_refused(folder: Path) -> None:
    (folder / "vae.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"vae\.safetensors cannot be read"):
        load_pack(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json cannot be read"):
        load_pack(folder)


def test_a_seed_fixes_the_weights_and_leaves_the_global_draw_alone() -> None:
    before = torch.random.get_rng_state()
    one, two = build_pack(tiny_config(), seed=3), build_pack(tiny_config(), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), two.unet.parameters(), strict=True))


def test_text_becomes_one_sequence_per_prompt(pack: Pack) -> None:
    text = pack.encode_text(["a dancer", "a dancer", "x" * 500])
    assert text.shape == (3, 32, 32)
    assert torch.equal(text[0], text[1])


def test_tokenizers_learn_words_and_spell_the_rest() -> None:
    sentences = ["a woman dances in a park", "a man dances on a stage"]
    learned = learn_tokenizer(sentences, size=560)
    assert len(learned) <= 560
    assert learned.tokenize("A woman dances") == ["a</w>", "woman</w>", "dances</w>"]
    assert learned.decode(learned("wombat née 7").input_ids, skip_special_tokens=True) == "wombat née 7"
    assert len(learn_tokenizer()) == 514


def test_a_tokenizer_is_read_from_its_two_public_files(tmp_path: Path) -> None:
    learned = learn_tokenizer(["a woman dances in a park", "a man dances on a stage"], size=560)
    vocabulary, merges = tmp_path / "first", tmp_path / "second"  # a store calls them after their content
    vocabulary.write_text(json.dumps(learned.get_vocab()), encoding="utf-8")
    pairs = json.loads(learned.backend_tokenizer.to_str())["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    merges.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    again = read_tokenizer(vocabulary, merges, 77)
    for text in ("A woman dances", "wombat née 7", "", "x" * 200):
        assert again(text).input_ids == learned(text).input_ids
    padded = again("a man", padding="max_length", max_length=9).input_ids
    assert padded == learned("a man", padding="max_length", max_length=9).input_ids


@pytest.mark.parametrize("kind", PROMPTS)
def test_pictures_become_tokens(pack: Pack, kind: str) -> None:
    tokens = pack.image_tokens(kind, [PICTURE])
    assert tokens.shape == pack.image_tokens(kind, None).shape == (1, 4, 32)
    assert not torch.allclose(tokens, pack.image_tokens(kind, None))
    keys = pack.guider.keys(kind, tokens)
    assert [k.shape[1::2] for k, _ in keys] == [k.shape[1::2] for k, _ in pack.unet.text_keys(tokens)]


def test_several_pictures_are_averaged(pack: Pack) -> None:
    other = 255 - PICTURE
    both = pack.image_tokens("face", [PICTURE, other])
    mean = (pack.image_tokens("face", [PICTURE]) + pack.image_tokens("face", [other])) / 2
    torch.testing.assert_close(both, mean)


def test_each_kind_has_weights_of_its_own(pack: Pack) -> None:
    face, cloth = pack.image_tokens("face", [PICTURE]), pack.image_tokens("cloth", [PICTURE])
    assert not torch.allclose(face, cloth)
    assert not torch.allclose(pack.guider.keys("face", face)[0][0], pack.guider.keys("cloth", face)[0][0])


def test_an_unknown_kind_of_picture_is_refused(pack: Pack) -> None:
    with pytest.raises(UsageError, match="It takes: face, cloth, style"):
        pack.image_tokens("shoes", None)


def test_no_picture_is_the_encoder_on_zeros(pack: Pack) -> None:
    seen = pack.image_encoder(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(pack.no_image().hidden, seen)


def test_pictures_are_resized_on_the_short_side_and_cropped() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255  # only the center third is white
    pixels = prepare_pictures([wide, np.full((7, 5, 3), 255, np.uint8)], 32)
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 16, 16], pixels[1, :, 0, 0])


def test_a_tokenizer_larger_than_the_text_encoder_is_refused() -> None:
    config = tiny_config()
    small = config.model_copy(update={"text": {**config.text, "vocab_size": 100}})
    with pytest.raises(WeightsError, match="514 tokens, the text encoder 100"):
        build_pack(small)
