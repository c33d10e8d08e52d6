"""The captioner's part of check.py: MiniGPT-v2's networks and answers, its pictures, its words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamoving_cli.caption.grounding import grounded_parts, phrases, without_marks
from dreamoving_cli.models.minigpt.checkpoint import Heads, build_captioner, captioner_config, to_ours
from dreamoving_cli.models.minigpt.model import HERE, TEMPLATE, Captioner, Decoding
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer, read_tokenizer
from dreamoving_cli.models.minigpt.vision import squash, vision_pixels

Results = dict[str, Tensor]
# Question, in the form of training with one <s>, and answer whose loss the golden holds; found by trying.
TRAINED = (
    "<s>[INST] <Img><ImageHere></Img> [grounding] describe this image in detail  [/INST]",
    "<p>a young woman</p> {<12><34><56><78>} is dancing",
)


def tokenizer_of(path: Path, size: int = 0) -> Tokenizer:
    """The tokenizer beside a golden, else the one in this folder; of several, that of this many pieces."""
    folders = (path.parent, Path(__file__).parent)
    found = [read_tokenizer(file) for folder in folders for file in sorted(folder.glob("*tokenizer*.model"))]
    return next((tokenizer for tokenizer in found if len(tokenizer.pieces) == size), found[0])


def captioner_of(golden: Any) -> Captioner:
    """The golden's captioner, through the loader of the public files."""
    vision, llama = (json.loads(golden.metadata[name]) for name in ("vit_config", "llama_config"))
    tokenizer = tokenizer_of(golden.path, llama["vocab_size"])
    eva, words, adapter = (golden.under(f"weights.{name}.") for name in ("eva", "llama", "minigpt_ckpt"))
    alpha = json.loads(golden.metadata["lora"])["alpha"]
    heads = Heads(vision["num_heads"], llama["num_attention_heads"])
    config = captioner_config(eva, words, tokenizer, heads, vision["img_size"])
    settings = config.llama | {k: llama[k] for k in ("rms_norm_eps", "max_position_embeddings")}
    config = config.model_copy(update={"llama": settings})
    return build_captioner(config, tokenizer, to_ours(eva, words, adapter, config, torch.float32, alpha))


def prompt_text(prompt: str) -> str:
    """What a user wrote, of a whole prompt."""
    start, end = TEMPLATE.split("{}")
    return prompt.removeprefix(start).removesuffix(end)


def captioner(golden: Any) -> Results:
    """B3: pictures and prompts to logits and ids, alone and as a batch."""
    model, tensors = captioner_of(golden), golden.tensors
    text = prompt_text(golden.metadata["prompt"])
    before, after = model.prompt_ids(text)
    if [before, after] != [tensors[f"in.ids_segment{i}"].tolist() for i in (0, 1)]:
        raise ValueError(f"ids of the prompt are {before}, {after}")
    pixels = tensors["in.pixel_values"]
    embeddings, mask = model.inputs(pixels, [text])
    out = model.llama_model(inputs_embeds=embeddings, output_hidden_states=True)
    seen = model.visual_encoder(pixels)
    joined = model.ln_vision(seen)
    results = {
        "mid.pos_embed_after_interpolation": model.visual_encoder.pos_embed,
        "mid.vit_out": seen,
        "mid.ln_vision_out": joined,
        "mid.concat4_tokens": joined[:, 1:].reshape(len(joined), -1, 4 * joined.shape[-1]),
        "mid.image_tokens_after_llama_proj": model.see(pixels),
        "mid.inputs_embeds": embeddings,
        "mid.llama_hidden_states_last": out.hidden_states[-1],
        "out.logits": out.logits,
    }
    if "out.train_loss" in tensors:
        around = [model.tokenizer.encode(part) for part in TRAINED[0].split(HERE)]
        results["out.train_loss"] = model.words_loss(model.see(pixels), (around[0], around[1]), [TRAINED[1]])
    return results | answers(model, embeddings, mask, golden) | batch(model, golden)


def answers(model: Captioner, embeddings: Tensor, mask: Tensor, golden: Any) -> Results:
    """Greedy ids with the scores that chose them, and the first step's scores for sampling."""
    steps = len(golden.tensors["out.greedy_processed_scores"])
    scores: list[Tensor] = []
    greedy = Decoding(max_new_tokens=steps, repetition_penalty=1.05)
    ids = model.generate(embeddings, mask, greedy, on_scores=scores.append)[0]
    sampled: list[Tensor] = []
    drawn = Decoding(sample=True, max_new_tokens=1, repetition_penalty=1.05)
    model.generate(embeddings, mask, drawn, torch.Generator().manual_seed(0), sampled.append)
    decoded = model.tokenizer.decode(ids.tolist())
    if decoded != golden.metadata["decoded_greedy"]:
        raise ValueError(f"the answer reads {decoded!r}, in the file {golden.metadata['decoded_greedy']!r}")
    return {
        "out.greedy_sequence_with_leading_bos": with_bos(model, ids),
        "out.greedy_processed_scores": torch.cat(scores),
        "out.sampling_first_step_warped_scores": sampled[0][0],
    }


def batch(model: Captioner, golden: Any) -> Results:
    """Two pictures with prompts of different lengths."""
    prompts = [prompt_text(prompt) for prompt in json.loads(golden.metadata["batch_prompts"])]
    asked = json.loads(golden.metadata["batch_generate_kwargs"])
    embeddings, mask = model.inputs(golden.tensors["batch.in.pixel_values"], prompts)
    scores: list[Tensor] = []
    decoding = Decoding(
        max_new_tokens=asked["max_new_tokens"], repetition_penalty=float(asked["repetition_penalty"])
    )
    ids = model.generate(embeddings, mask, decoding, on_scores=scores.append)
    return {
        "batch.mid.inputs_embeds_left_padded": embeddings,
        "batch.mid.attention_mask": mask,
        "batch.out.scores": torch.stack(scores, 1),
        "batch.out.sequences_with_leading_bos": with_bos(model, ids),
    }


def with_bos(model: Captioner, ids: Tensor) -> Tensor:
    """Ids behind the <s> with which the reference's sequences begin."""
    return torch.nn.functional.pad(ids, (1, 0), value=model.tokenizer.bos)


def preprocess(golden: Any) -> Results:
    """B3: a picture as the vision transformer takes it."""
    picture = golden.tensors["in.rgb_uint8_hwc"].numpy()
    side = golden.tensors["mid.resized_uint8_hwc"].shape[0]
    pixels = vision_pixels([picture], side)[0]
    return {
        "mid.resized_uint8_hwc": torch.from_numpy(np.array(squash(picture, side))),
        "out.pixel_values_every_4th": pixels[:, ::4, ::4],
    }


def words(path: Path) -> list[str]:
    """B3: prompts, ids of the small tokenizer, boxes and clean-up; what differs."""
    golden, tokenizer = json.loads(path.read_text(encoding="utf-8")), tokenizer_of(path)
    demo = golden["demo_prompt"]
    pairs = [("prompt", TEMPLATE.format(demo["user_text"]), demo["prompt"])]
    pairs.append(("segments", TEMPLATE.format(demo["user_text"]).split(HERE), demo["segments"]))
    for text, told in golden["tiny_token_ids"].items():
        pairs += ids_of(tokenizer, text, told)
    for case in golden["cases"]:
        pairs += case_of(case)
    return [
        f"{path.name}: {name} is {ours!r}, in the file {theirs!r}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def ids_of(tokenizer: Tokenizer, text: str, told: Any) -> list[tuple[str, Any, Any]]:
    """(name, ours, theirs) of one text's ids: a prompt by its segments, an answer with its way back."""
    if isinstance(told, list) and told and isinstance(told[0], dict):
        first = [[tokenizer.bos]] + [[]] * len(told)
        ours = [[*first[i], *tokenizer.encode(segment["text"])] for i, segment in enumerate(told)]
        return [(f"ids of {text}", ours, [segment["ids"] for segment in told])]
    if isinstance(told, dict):
        return [
            (f"ids of {text}", tokenizer.encode(text), told["ids"]),
            (f"text of {text}", tokenizer.decode(told["ids"]), told["decoded"]),
        ]
    return []


def case_of(case: Any) -> list[tuple[str, Any, Any]]:
    """(name, ours, theirs) of one answer: parts, boxes in pixels, clean words."""
    text = case["generation"]
    name = f"'{text[:30]}'"
    found, size = phrases(text), case["annotated_size"] or (500, 375)
    pixels = {
        phrase.words: [[number / 100 * size[i % 2] for i, number in enumerate(box)] for box in phrase.boxes]
        for phrase in found
    }
    theirs = case["entities_px_in_500_wide_image"] or {}
    theirs = {"": theirs} if isinstance(theirs, list) else theirs
    rounded = [{k: np.round(v, 6).tolist() for k, v in boxes.items()} for boxes in (pixels, theirs)]
    return [
        (f"parts of {name}", grounded_parts(text), case["extract_substrings"]),
        (f"boxes of {name}", *rounded),
        (
            f"words of {name}",
            without_marks(text),
            case["step2_p_tags_removed (demo regex with plain replacement)"],
        ),
    ]
