"""Text and image encoders (transformers' CLIP) and their input: tokenizer, pixel preprocessing.

A tokenizer is CLIP's byte-level BPE: released files, or one learned from a few sentences for a small pack.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

START, END = "<|startoftext|>", "<|endoftext|>"
BYTES = 256  # every text can be spelled with these, in the middle and at the end of a word
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def build_text_encoder(text: dict[str, Any]) -> nn.Module:
    """A CLIPTextModel; text: arguments of CLIPTextConfig."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**text))


def build_image_encoder(image: dict[str, Any]) -> nn.Module:
    """A CLIP image encoder, with its projection where the config names a `projection_dim`."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    kind = CLIPVisionModelWithProjection if "projection_dim" in image else CLIPVisionModel
    return kind(CLIPVisionConfig(**image))


def learn_tokenizer(sentences: Iterable[str] = (), size: int = 2 * BYTES + 2, max_length: int = 77) -> Any:
    """A CLIP tokenizer of at most `size` tokens, merged as in `sentences`; without them it spells bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[Any] = []
    sentences = [sentence.lower() for sentence in sentences]
    if sentences:
        learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        learned.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        )
        learned.train_from_iterator(sentences, trainer)
        merges = _merges_of(learned)
        merges = merges[: max(size - 2 - len(vocabulary), 0)]
        vocabulary += [left + right for left, right in merges]
    tokens = {token: i for i, token in enumerate([*dict.fromkeys(vocabulary), START, END])}
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=max_length)


def _merges_of(tokenizer: Any) -> list[Any]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def read_tokenizer(vocabulary: Path, merges: Path, max_length: int) -> Any:
    """A CLIP tokenizer from its vocab.json and merges.txt, wherever they lie and whatever they are called."""
    from transformers import CLIPTokenizer

    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs: list[Any] = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    return CLIPTokenizer(vocab=tokens, merges=pairs, model_max_length=max_length)


def encode_text(encoder: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token sequences padded to the tokenizer's length, as SD takes them: b l d."""
    length = encoder.config.max_position_embeddings
    ids = torch.from_numpy(np.stack([_token_ids(tokenizer, prompt, length) for prompt in prompts]))
    return encoder(ids.to(encoder.device, non_blocking=True)).last_hidden_state


@lru_cache(maxsize=2**16)  # training asks for the same captions again and again
def _token_ids(tokenizer: Any, prompt: str, length: int) -> np.ndarray:
    """The tokens of a prompt, cut or padded to `length`."""
    return np.array(tokenizer(prompt, padding="max_length", truncation=True, max_length=length).input_ids)


def prepare_pictures(pictures: Sequence[np.ndarray], side: int) -> Tensor:
    """uint8 h w c each -> b c side side, normalized for CLIP: shorter side resized, then the center."""
    return torch.cat(
        [_prepare(torch.from_numpy(np.ascontiguousarray(picture)), side) for picture in pictures]
    )


def normalize_pixels(pixels: Tensor) -> Tensor:
    """b c h w in 0..1 -> the same, normalized for CLIP."""
    mean, std = (rearrange(pixels.new_tensor(x), "c -> 1 c 1 1") for x in (PIXEL_MEAN, PIXEL_STD))
    return (pixels - mean) / std


def _prepare(picture: Tensor, side: int) -> Tensor:
    pixels = rearrange(picture, "h w c -> 1 c h w").float() / 255
    height, width = pixels.shape[-2:]
    scale = side / min(height, width)
    size = (max(round(height * scale), side), max(round(width * scale), side))
    pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return normalize_pixels(pixels[:, :, top : top + side, left : left + side])
