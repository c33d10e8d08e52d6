"""Train the embedded captioner: `python -m dreamoving_cli.train captioner`.

One thread, resumable. Beside the words, heads that are thrown away later tell each patch of the picture what
it shows: from nothing, the words alone teach a vision transformer slowly.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.models.minigpt.config import CaptionerConfig, VisionConfig
from dreamoving_cli.models.minigpt.load import save_captioner
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer, learn_tokenizer
from dreamoving_cli.train.caption_data import Example, PictureStore, prepare
from dreamoving_cli.train.caption_facts import FRAMING_WORDS, vocabulary
from dreamoving_cli.train.garments import COLORS, PATTERNS
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.whole import whole_file

PROMPT = "[grounding] describe this frame in a detailed manner"
VOCABULARY = 900
WHOLE = ("<p>", "</p>", "<Img>", "</Img>", "[INST]", "[/INST]", "[grounding]", "{", "}",
         *(f"<{number}>" for number in range(101)))  # fmt: skip
WARMUP = 100  # steps
COOL = 0.3  # share of the steps in which the learning rate falls to nothing
EMA = 0.995
KINDS = ("plain", "room", "stage", "outdoors")
NONE = -100  # no class
AUX = 0.3  # weight of the heads' losses
STRENGTH = 0.3  # of patches and positions at the start
NOISE = 0.02  # added to the principal components' variances


@dataclass(frozen=True)
class CaptionRun:
    """Where and how long to train."""

    clips: Path | None
    out: Path
    steps: int = 6000
    batch: int = 16
    lr: float = 2e-3
    side: int = 112  # pixels, a multiple of 28
    width: int = 64  # of both transformers, a multiple of 32
    drawn: int = 2500  # people rendered beside those of the clips
    scenes: int = 1500
    save_every_s: float = 240.0
    seed: int = 0


def mini_captioner(tokenizer: Tokenizer, side: int, width: int) -> CaptionerConfig:
    """The embedded captioner's shape: pixels a side, and the width of both transformers."""
    llama = {
        "vocab_size": len(tokenizer.pieces), "hidden_size": width, "intermediate_size": 8 * width // 3,
        "num_hidden_layers": 2, "num_attention_heads": width // 32, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": None,
    }  # fmt: skip
    vision = VisionConfig(side=side, width=width, depth=3, heads=width // 32)
    return CaptionerConfig(
        name="mini", vision=vision, llama=llama, max_new_tokens=96, repetition_penalty=1.0, max_length=256
    )


class Heads(nn.Module):
    """What each patch, or the whole picture, shows; for training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {"person": 1, "color": len(COLORS), "pattern": len(PATTERNS), "kind": len(KINDS),
                 "background": len(COLORS), "framing": len(FRAMING_WORDS)}  # fmt: skip
        self.linear = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, seen: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """The sum of the losses; seen: b n d, targets: b n or b, NONE where unknown."""
        loss = F.binary_cross_entropy_with_logits(self.linear["person"](seen)[..., 0], targets["person"])
        for name in ("color", "pattern", "kind", "background"):
            known = targets[name] != NONE
            if known.any():
                loss = loss + F.cross_entropy(self.linear[name](seen[known]), targets[name][known])
        return loss + F.cross_entropy(self.linear["framing"](seen.mean(1)), targets["framing"])


def targets_of(examples: list[Example], grid: int) -> dict[str, Tensor]:
    """What the heads should say, patch by patch in raster order."""
    alphas = torch.from_numpy(np.stack([example.alpha for example in examples])).float() / 255
    person = rearrange(F.adaptive_avg_pool2d(alphas[:, None], grid), "b 1 h w -> b (h w)")
    at = (np.arange(grid) + 0.5) / grid
    inside = [
        ((at > y0) & (at < y1))[:, None] & ((at > x0) & (at < x1))[None]
        for x0, y0, x1, y1 in (example.facts["torso"] for example in examples)
    ]
    torso = torch.from_numpy(np.stack(inside).reshape(len(examples), -1)) & (person > 0.7)
    empty = person < 0.1

    def patches(name: str, words: tuple[str, ...], where: Tensor) -> Tensor:
        index = [words.index(e.facts[name]) if e.facts[name] in words else NONE for e in examples]
        return torch.tensor(index)[:, None].expand_as(where).masked_fill(~where, NONE)

    colors = tuple(COLORS)
    framing = [list(FRAMING_WORDS).index(example.facts["framing"]) for example in examples]
    return {
        "person": person, "color": patches("color", colors, torso),
        "pattern": patches("pattern", PATTERNS, torso),
        "kind": patches("kind", KINDS, empty), "background": patches("background", colors, empty),
        "framing": torch.tensor(framing),
    }  # fmt: skip


class CaptionTrainer:
    """The state of a run."""

    def __init__(self, run: CaptionRun) -> None:
        self.run, self.step = run, 0
        torch.set_num_threads(1)
        self.tokenizer = learn_tokenizer(vocabulary(np.random.default_rng(run.seed)), WHOLE, VOCABULARY)
        torch.manual_seed(run.seed)
        config = mini_captioner(self.tokenizer, run.side, run.width)
        prepare(run.out / "pictures", run.clips, run.drawn, run.scenes)
        self.store = PictureStore(run.out / "pictures", run.side)
        self.model, self.heads = Captioner(config, self.tokenizer), Heads(config.vision.width)
        start(self.model, self.store)
        self.around = self.model.prompt_ids(PROMPT)
        named: dict[str, Tensor] = {
            **dict(self.model.named_parameters()),
            **{f"heads.{n}": p for n, p in self.heads.named_parameters()},
        }
        matrices = {
            n: p for n, p in named.items() if is_matrix(n, p) and "lm_head" not in n and "heads." not in n
        }
        self.muon = Muon(matrices, 0.01)
        self.parameters = list(named.values())
        rest = [p for n, p in named.items() if n not in matrices]
        self.optimizer = torch.optim.AdamW(rest, lr=run.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.losses: list[tuple[float, float]] = []
        self.saved_at = self.started = time.monotonic()

    def loss(self) -> tuple[Tensor, Tensor]:
        """(of the words, of the heads), drawn from (seed, step) alone."""
        rng = np.random.default_rng((self.run.seed, self.step))
        examples = [self.store.draw(rng) for _ in range(self.run.batch)]
        pixels = torch.from_numpy(np.stack([example.picture for example in examples]))
        pixels = normalize_pixels(rearrange(pixels, "b h w c -> b c h w").float() / 255)
        seen = self.model.ln_vision(self.model.visual_encoder(pixels))
        told = self.heads(seen[:, 1:], targets_of(examples, self.model.config.vision.grid))
        captions = [example.caption for example in examples]
        return self.model.words_loss(self.model.project(seen), self.around, captions), told

    def train_step(self) -> None:
        """One update."""
        left = 1 - self.step / self.run.steps
        rate = self.run.lr * min((self.step + 1) / WARMUP, 1.0, left / COOL)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        words, told = self.loss()
        for p in self.parameters:
            p.grad = None
        (words + AUX * told).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.muon.step(rate)
        with torch.no_grad():
            moved: list[Tensor] = list(self.model.parameters())
            decay = min(EMA, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.average.values()), moved, 1 - decay)
        self.step += 1
        self.losses.append((float(words.detach()), float(told.detach())))
        if self.step % 50 == 0:
            self.log()
        if time.monotonic() - self.saved_at > self.run.save_every_s:
            self.save()

    def log(self) -> None:
        """One line of the mean losses."""
        words, told = np.mean(self.losses[-50:], 0)
        line = {"step": self.step, "words": round(words, 4), "heads": round(told, 4),
                "cpu_s": round(time.process_time(), 1)}  # fmt: skip
        with (self.run.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.losses.clear()

    def save(self) -> None:
        """Write the checkpoint and the captioner as it is now, whole."""
        state = {
            "step": self.step, "model": self.model.state_dict(), "heads": self.heads.state_dict(),
            "average": self.average, "optimizer": self.optimizer.state_dict(), "momentum": self.muon.momentum,
        }  # fmt: skip
        with whole_file(self.run.out / "state.pt") as part:
            torch.save(state, part)
        kept = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.average[name])
            save_captioner(self.model, self.run.out / "captioner")
            for name, p in self.model.named_parameters():
                p.copy_(kept[name])
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.run.out / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.muon.momentum = state["average"], state["momentum"]


@torch.no_grad()
def start(model: Captioner, store: PictureStore) -> None:
    """Starting weights: small normal ones; for patches their principal components, for positions waves."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.trunc_normal_(p, std=0.02 if "proj.weight" not in name else p[0].numel() ** -0.5)
    vision, eyes = model.config.vision, model.visual_encoder
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(np.stack([store.draw(rng).picture for _ in range(48)]))
    pixels = normalize_pixels(rearrange(pictures, "b h w c -> b c h w").float() / 255)
    patches = rearrange(pixels, "b c (y p) (x q) -> (b y x) (c p q)", p=vision.patch, q=vision.patch)
    middle = patches.mean(0)
    sizes, directions = torch.linalg.eigh((patches - middle).T @ (patches - middle) / len(patches))
    weights = (directions / (sizes.clamp(min=0) + NOISE).sqrt())[:, -vision.width :].T * STRENGTH
    first: Any = eyes.patch_embed["proj"]
    first.weight.copy_(weights.view_as(first.weight))
    first.bias.copy_(-weights @ middle)
    eyes.pos_embed[:, 1:].copy_(STRENGTH * waves(vision.grid, vision.width))


def waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of rows and columns: (grid grid) width."""
    rates = 1 / 30 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)  # grid width/2
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return rearrange(torch.cat([rows, columns], -1), "y x d -> (y x) d")


def train_captioner(run: CaptionRun) -> Path:
    """Train to the last step; where the captioner is."""
    run.out.mkdir(parents=True, exist_ok=True)
    trainer = CaptionTrainer(run)
    trainer.resume()
    while trainer.step < run.steps:
        trainer.train_step()
    trainer.save()
    return run.out / "captioner"
