"""The captioner with random weights: tokenizer, loader of the public layout, answers."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.models.checkpoints.files import Part
from dreamoving_cli.models.minigpt.checkpoint import (
    Heads,
    PublicFiles,
    assemble_captioner,
    assembled_shapes,
    build_captioner,
    captioner_config,
    to_ours,
)
from dreamoving_cli.models.minigpt.load import load_captioner, save_captioner
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.models.minigpt.tokenizer import (
    Tokenizer,
    learn_tokenizer,
    parse_tokenizer,
    read_tokenizer,
    write_tokenizer,
)
from tests.captioners import SENTENCES, WHOLE, random_captioner

GOLDENS = Path(__file__).parents[1] / "goldens"
MANIFESTS = Path(__file__).parents[2].parent / "shared" / "parity" / "manifests"
VISION, WORDS, PIECES = 88, 128, 320  # one attention head each, so that sizes are read as from the full files
LAYERS = 32
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer(SENTENCES, WHOLE, PIECES + 100)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30).filter(lambda text: "<unk>" not in text and "\u2581" not in text))
def test_every_text_comes_back(text: str) -> None:
    tokenizer = learn_tokenizer(SENTENCES, WHOLE, PIECES + 100)
    if "<s>" not in text and "</s>" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_is_written_and_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = parse_tokenizer(write_tokenizer(tokenizer))
    assert [piece.text for piece in again.pieces] == [piece.text for piece in tokenizer.pieces]
    assert again.encode(SENTENCES[0]) == tokenizer.encode(SENTENCES[0])
    assert (again.add_space, again.squeeze) == (True, False)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(write_tokenizer(tokenizer)[:-40])
    with pytest.raises(WeightsError, match="is not a SentencePiece model"):
        read_tokenizer(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_tokenizer(tmp_path / "absent")


def public_states(tokenizer: Tokenizer, hidden: int = WORDS) -> tuple[dict[str, Tensor], ...]:
    """EVA with its 40th block and head, Llama, LoRA and projector: the public layout at the least width."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.05

    d, mlp = VISION, int(VISION * 4.3637)
    eva = {"cls_token": draw(1, 1, d), "pos_embed": draw(1, 257, d),
           "patch_embed.proj.weight": draw(d, 3, 14, 14), "patch_embed.proj.bias": draw(d),
           "norm.weight": draw(d), "norm.bias": draw(d),
           "head.weight": draw(4, d), "head.bias": draw(4), "mask_token": draw(1, 1, d)}  # fmt: skip
    for i in range(40):
        eva |= {f"blocks.{i}.{n}.{k}": draw(d) for n in ("norm1", "norm2") for k in ("weight", "bias")}
        eva |= {f"blocks.{i}.attn.{n}": draw(d) for n in ("q_bias", "v_bias", "proj.bias")}
        eva |= {f"blocks.{i}.attn.qkv.weight": draw(3 * d, d), f"blocks.{i}.attn.proj.weight": draw(d, d),
                f"blocks.{i}.mlp.fc1.weight": draw(mlp, d), f"blocks.{i}.mlp.fc1.bias": draw(mlp),
                f"blocks.{i}.mlp.fc2.weight": draw(d, mlp), f"blocks.{i}.mlp.fc2.bias": draw(d)}  # fmt: skip
    size, inner = len(tokenizer.pieces), 2 * hidden
    llama = {"model.embed_tokens.weight": draw(size, hidden), "lm_head.weight": draw(size, hidden),
             "model.norm.weight": draw(hidden)}  # fmt: skip
    adapter = {"llama_proj.weight": draw(hidden, 4 * d), "llama_proj.bias": draw(hidden)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        llama |= {f"{at}.self_attn.{n}_proj.weight": draw(hidden, hidden) for n in "qkvo"}
        llama |= {f"{at}.mlp.{n}_proj.weight": draw(inner, hidden) for n in ("gate", "up")}
        llama |= {f"{at}.mlp.down_proj.weight": draw(hidden, inner),
                  f"{at}.input_layernorm.weight": draw(hidden),
                  f"{at}.post_attention_layernorm.weight": draw(hidden),
                  f"{at}.self_attn.rotary_emb.inv_freq": draw(4)}  # fmt: skip
        lora = f"llama_model.base_model.model.{at}.self_attn"
        adapter |= {f"{lora}.{n}_proj.lora_{m}.weight": draw(*((8, hidden) if m == "A" else (hidden, 8)))
                    for n in "qv" for m in "AB"}  # fmt: skip
        adapter[f"{lora}.rotary_emb.inv_freq"] = draw(4)
    return eva, llama, adapter


def write_public(folder: Path, tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]) -> PublicFiles:
    """The files as they are published: two pickles (one with an optimizer), Llama in two safetensors."""
    eva, llama, adapter = states
    torch.save(eva, folder / "eva_vit_g.pth")
    wrapped = {"model": adapter, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3}
    torch.save(wrapped, folder / "minigptv2_checkpoint.pth")
    keys = sorted(llama)
    for i, part in enumerate((keys[::2], keys[1::2])):
        save_file({key: llama[key] for key in part}, folder / f"{i}.safetensors")
    (folder / "tokenizer.model").write_bytes(write_tokenizer(tokenizer))
    return PublicFiles(
        Part(folder / "eva_vit_g.pth", trusted=True),
        [Part(folder / "0.safetensors"), Part(folder / "1.safetensors")],
        Part(folder / "minigptv2_checkpoint.pth", trusted=True),
        folder / "tokenizer.model",
    )


@pytest.fixture(scope="module")
def states(tokenizer: Tokenizer) -> tuple[dict[str, Tensor], ...]:
    return public_states(tokenizer)


def test_the_public_files_make_a_captioner(
    tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...], tmp_path: Path
) -> None:
    assert sum(".lora_" in key for key in states[2]) == 128
    files = write_public(tmp_path, tokenizer, states)
    model = assemble_captioner(files)
    assert model.config.vision.depth == 39
    assert model.config.vision.side == 448
    assert model.visual_encoder.pos_embed.shape[1] == 1025
    assert model.config.llama["rms_norm_eps"] == 1e-5
    named = {name: p.shape for name, p in model.named_parameters()}
    assert named == {name: shape.shape for name, shape in assembled_shapes(files).items()}
    assert torch.equal(model.ln_vision.weight, torch.ones(VISION))
    name = "model.layers.31.self_attn.v_proj"
    lora = f"llama_model.base_model.model.{name}.lora_"
    change = 16 / 8 * states[2][f"{lora}B.weight"] @ states[2][f"{lora}A.weight"]
    merged = model.llama_model.model.layers[31].self_attn.v_proj.weight
    torch.testing.assert_close(merged, states[1][f"{name}.weight"] + change)


def test_an_untrusted_pickle_is_not_opened(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "eva_vit_g.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    files = PublicFiles(Part(path), [], Part(path), tmp_path / "tokenizer.model")
    files.tokenizer.write_bytes(write_tokenizer(tokenizer))
    with pytest.raises(WeightsError, match="pickle"):
        assemble_captioner(files)


@pytest.mark.parametrize(
    ("which", "key", "message"),
    [
        (
            2,
            "llama_model.base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight",
            "127 LoRA tensors of 128",
        ),
        (2, "llama_proj.bias", "no projector"),
        (1, "model.layers.5.mlp.up_proj.weight", "missing"),
        (0, "blocks.7.attn.v_bias", "missing"),
        (0, "pos_embed", "no 'pos_embed'"),
    ],
)
def test_a_lost_tensor_is_named(
    which: int, key: str, message: str, tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]
) -> None:
    changed = tuple(
        {k: v for k, v in state.items() if i != which or k != key} for i, state in enumerate(states)
    )
    with pytest.raises(WeightsError, match=message):
        load(tokenizer, changed)


def test_a_strange_tensor_is_named(tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]) -> None:
    eva, llama, adapter = states
    with pytest.raises(WeightsError, match=r"unexpected.*visual_encoder\.blocks\.0\.gamma_1"):
        load(tokenizer, (eva | {"blocks.0.gamma_1": torch.ones(VISION)}, llama, adapter))
    with pytest.raises(WeightsError, match="pieces, Llama"):
        load(replace(tokenizer, pieces=tokenizer.pieces[:-1]), states)


def load(tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]) -> Captioner:
    config = captioner_config(states[0], states[1], tokenizer)
    return build_captioner(config, tokenizer, to_ours(*states, config, torch.float32))


def test_later_names_of_lora_are_read_too(
    tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]
) -> None:
    later = {k.replace(".weight", ".default.weight") if "lora_" in k else k: v for k, v in states[2].items()}
    ours, theirs = (load(tokenizer, (*states[:2], adapter)).state_dict() for adapter in (states[2], later))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.shared
@pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"no lists of public files at {MANIFESTS}")
def test_the_lists_of_the_public_files_at_full_width(tokenizer: Tokenizer) -> None:
    names = (
        "A3_eva_vit_g_pth__39_blocks_224px",
        "A3_llama2_7b_chat_hf",
        "A3_minigptv2_checkpoint_pth__model",
    )
    listed = [json.loads((MANIFESTS / f"{name}.json").read_text()) for name in names]
    eva, llama, adapter = (
        {key: torch.empty(shape, device="meta") for key, (shape, _) in each.items()} for each in listed
    )
    padded = replace(
        tokenizer, pieces=tokenizer.pieces + (tokenizer.pieces[-1],) * (32000 - len(tokenizer.pieces))
    )
    config = captioner_config(eva, llama, padded)
    assert (config.vision.depth, config.vision.heads, config.vision.mlp_width) == (39, 16, 6144)
    assert config.llama["num_attention_heads"] == 32
    state = to_ours(eva, llama, adapter, config, torch.float16)
    whole = json.loads((MANIFESTS / "A3_minigptv2_assembled_full_state_dict.json").read_text())
    used = [key for key in whole if "lora_" not in key and "inv_freq" not in key]
    assert len(state) == len(used)


def test_answers_are_the_same_alone_and_together() -> None:
    model = random_captioner()
    pictures = [PICTURE, PICTURE[::-1].copy(), PICTURE[:, ::-1].copy()]
    together = model.describe(pictures, "describe this")
    assert [model.describe([picture], "describe this")[0] for picture in pictures] == together
    first, second = (
        model.describe([PICTURE], "describe this", torch.Generator().manual_seed(s)) for s in (1, 1)
    )
    assert first == second


def test_prompts_of_different_lengths_do_not_disturb_each_other() -> None:
    model = random_captioner()
    pixels = torch.randn(2, 3, model.config.vision.side, model.config.vision.side)
    together, mask = model.inputs(pixels, ["describe", "describe this frame in a detailed manner"])
    alone, own = model.inputs(pixels[:1], ["describe"])
    assert int(mask[0].sum()) == alone.shape[1] == int(own.sum())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = model.llama_model(inputs_embeds=together, attention_mask=mask, position_ids=positions).logits
        theirs = model.llama_model(inputs_embeds=alone, attention_mask=own).logits
    torch.testing.assert_close(ours[0, -1], theirs[0, -1], rtol=1e-4, atol=1e-4)


def test_prompts_that_do_not_fit_are_refused() -> None:
    for prompt in ("word " * 200, "see <ImageHere>"):
        with pytest.raises(UsageError):
            random_captioner().describe([PICTURE], prompt)


def test_a_captioner_is_saved_and_loaded(tmp_path: Path) -> None:
    model = random_captioner()
    save_captioner(model, tmp_path, torch.float32)
    assert load_captioner(tmp_path).describe([PICTURE], "describe") == model.describe([PICTURE], "describe")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="is not a captioner's config"):
        load_captioner(tmp_path)


def test_heads_are_asked_for_where_files_do_not_tell(
    tokenizer: Tokenizer, states: tuple[dict[str, Tensor], ...]
) -> None:
    config = captioner_config(states[0], states[1], tokenizer, Heads(4, 2), side=56)
    assert (config.vision.heads, config.llama["num_attention_heads"], config.vision.grid) == (4, 2, 4)
