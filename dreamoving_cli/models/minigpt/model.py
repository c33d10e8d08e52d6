"""MiniGPT-v2: EVA's tokens, four joined into one, through a linear map into Llama; greedy or sampled answers.

Reference: Vision-CAIR/MiniGPT-4 (Chen et al. 2023). LoRA is merged into the weights when they are loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.minigpt.config import TOKENS_JOINED, CaptionerConfig
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer
from dreamoving_cli.models.minigpt.vision import VisionTransformer, vision_pixels

TEMPLATE = "<s>[INST] <Img><ImageHere></Img> {} [/INST]"
HERE = "<ImageHere>"
NEVER = -float("inf")
NO_TOKEN = -100


@dataclass(frozen=True)
class Decoding:
    """How words are chosen; the sampling values are those of the reference's demo."""

    sample: bool = False
    max_new_tokens: int = 500
    repetition_penalty: float = 1.0
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50  # inherited by the reference from its library's defaults


class Captioner(nn.Module):
    """Pictures and a prompt to an answer."""

    def __init__(self, config: CaptionerConfig, tokenizer: Tokenizer) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        hidden = int(config.llama["hidden_size"])
        self.visual_encoder = VisionTransformer(config.vision)
        self.ln_vision = nn.LayerNorm(config.vision.width)
        self.llama_proj = nn.Linear(TOKENS_JOINED * config.vision.width, hidden)
        self.llama_model: Any = LlamaForCausalLM(LlamaConfig(**config.llama))

    @property
    def device(self) -> torch.device:
        return self.llama_proj.weight.device

    def see(self, pixels: Tensor) -> Tensor:
        """pixels: b 3 s s, normalized -> b l d in the language model's width."""
        return self.project(self.ln_vision(self.visual_encoder(pixels)))

    def project(self, seen: Tensor) -> Tensor:
        """b (1 + n) d of the vision transformer, class token first -> b n/4 d of the language model."""
        return self.llama_proj(rearrange(seen[:, 1:], "b (l k) d -> b l (k d)", k=TOKENS_JOINED))

    def prompt_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids before and after the picture; the first begins with two <s>, as the reference's do."""
        if HERE in text:
            raise UsageError(f"the prompt holds {HERE}", "Leave it out; the picture comes first.")
        before, after = TEMPLATE.format(text).split(HERE)
        return [self.tokenizer.bos, *self.tokenizer.encode(before)], self.tokenizer.encode(after)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Ids as 1 l d."""
        return self.llama_model.get_input_embeddings()(torch.tensor([ids], device=self.device))

    def inputs(self, pixels: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings b l d, shorter ones padded with zeros on the left, and their mask b l."""
        rows = []
        for seen, text in zip(self.see(pixels), prompts, strict=True):
            before, after = map(self.embed, self.prompt_ids(text))
            rows.append(torch.cat([before[0], seen, after[0]]))
        length = max(map(len, rows))
        embeddings = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
        mask = torch.zeros(len(rows), length, dtype=torch.long, device=embeddings.device)
        for i, row in enumerate(rows):
            embeddings[i, length - len(row) :], mask[i, length - len(row) :] = row, 1
        return embeddings, mask

    def words_loss(self, seen: Tensor, around: tuple[list[int], list[int]], answers: Sequence[str]) -> Tensor:
        """`ids_loss` of answers in words."""
        rows = [[*self.tokenizer.encode(answer), self.tokenizer.eos] for answer in answers]
        length = max(map(len, rows))
        told = torch.tensor([row + [NO_TOKEN] * (length - len(row)) for row in rows], device=self.device)
        return self.ids_loss(seen, around, told)

    def ids_loss(self, seen: Tensor, around: tuple[list[int], list[int]], told: Tensor) -> Tensor:
        """Mean cross-entropy of the answers; seen: b l d from `see`, around: ids before and after it.

        told: b n, ids of the answers and the end mark, then NO_TOKEN.
        """
        before, after = (self.embed(part).expand(len(told), -1, -1) for part in around)
        words = self.llama_model.get_input_embeddings()(told[:, :-1].clamp(min=0))
        inputs = torch.cat([before, seen, after, words], 1)
        hidden = self.llama_model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = self.llama_model.lm_head(hidden[:, -told.shape[1] :]).flatten(0, 1)
        return F.cross_entropy(logits.float(), told.flatten(), ignore_index=NO_TOKEN)

    @torch.inference_mode()
    def describe(
        self,
        pictures: Sequence[np.ndarray],
        prompt: str,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """One answer for each picture, uint8 h w c: greedy, or drawn with the generator."""
        limits = self.config.max_new_tokens, self.config.repetition_penalty
        decoding = Decoding(generator is not None, *limits)
        pixels = vision_pixels(list(pictures), self.config.vision.side).to(
            self.device, self.llama_proj.weight.dtype
        )
        embeddings, mask = self.inputs(pixels, [prompt] * len(pictures))
        room = self.config.max_length - decoding.max_new_tokens
        if embeddings.shape[1] > room:  # the reference would cut off the picture
            problem = f"picture and prompt are {embeddings.shape[1]} tokens long, {room} fit"
            raise UsageError(problem, "Give a shorter --prompt.")
        ids = self.generate(embeddings, mask, decoding, generator)
        return [self.answer(row) for row in ids.tolist()]

    def answer(self, ids: Sequence[int]) -> str:
        """The words of generated ids, up to the end mark."""
        ids = list(ids)
        ids = ids[: ids.index(self.tokenizer.eos)] if self.tokenizer.eos in ids else ids
        return self.tokenizer.decode(ids).split("###")[0].split("Assistant:")[-1].strip()

    @torch.inference_mode()
    def generate(
        self,
        embeddings: Tensor,
        mask: Tensor,
        decoding: Decoding,
        generator: torch.Generator | None = None,
        on_scores: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Ids of the answers, b n, filled with the end mark; embeddings: b l d, mask: b l.

        on_scores: what to call with every step's scores, b v, as they decide.
        """
        batch = len(embeddings)
        ids = torch.full((batch, 1), self.tokenizer.bos, device=embeddings.device)  # the penalty covers it
        done = torch.zeros(batch, dtype=torch.bool, device=embeddings.device)
        step: dict[str, Any] = {"inputs_embeds": embeddings}
        cache = None
        for _ in range(decoding.max_new_tokens):
            logits, cache = self._next(step, mask, cache)
            scores = warp(penalize(logits, ids, decoding.repetition_penalty), decoding)
            if on_scores is not None:
                on_scores(scores)
            chosen = choose(scores, decoding.sample, generator).masked_fill(done, self.tokenizer.eos)
            ids, mask = torch.cat([ids, chosen[:, None]], 1), torch.cat([mask, mask.new_ones(batch, 1)], 1)
            done |= chosen == self.tokenizer.eos
            if done.all():
                break
            step = {"input_ids": chosen[:, None]}
        return ids[:, 1:]

    def _next(self, step: dict[str, Any], mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the next token, b v, fp32, and what the language model remembers."""
        count = next(iter(step.values())).shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -count:]
        out = self.llama_model(
            **step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float(), out.past_key_values


def penalize(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make tokens that were said less likely; logits: b v, ids: b n (Keskar et al. 2019)."""
    if penalty == 1:
        return logits
    said = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(said < 0, said * penalty, said / penalty))


def warp(scores: Tensor, decoding: Decoding) -> Tensor:
    """Temperature, the `top_k` best, of these the best that hold `top_p`; scores: b v, greedy: unchanged."""
    if not decoding.sample:
        return scores
    scores = scores / decoding.temperature
    least = scores.topk(min(decoding.top_k, scores.shape[-1])).values[:, -1:]
    scores = scores.masked_fill(scores < least, NEVER)
    ordered, order = scores.sort(descending=False)
    improbable = ordered.softmax(-1).cumsum(-1) <= 1 - decoding.top_p
    improbable[:, -1] = False
    return scores.masked_fill(improbable.scatter(1, order, improbable), NEVER)


def choose(scores: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
    """The best token of each row, or one drawn on the CPU; scores: b v -> b."""
    if not sample:
        return scores.argmax(-1)
    drawn = torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator)
    return drawn[:, 0].to(scores.device)


@contextmanager
def fast_init() -> Iterator[None]:
    """Build a network without filling weights that a file will replace."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with init_empty_weights(include_buffers=False):
        yield
