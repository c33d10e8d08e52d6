"""Train the embedded captioner: `python -m dreamoving_cli.train captioner`.

Resumable; on CUDA or one thread of a CPU. Beside the words, heads that are thrown away later tell each patch
of the picture what it shows: from nothing, the words alone teach a vision transformer slowly.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.models.minigpt.config import CaptionerConfig, VisionConfig
from dreamoving_cli.models.minigpt.load import load_captioner, save_captioner
from dreamoving_cli.models.minigpt.model import NO_TOKEN, Captioner
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer, learn_tokenizer
from dreamoving_cli.train.caption_batch import (
    CLASSES,
    SCENE_CLASSES,
    Pictures,
    drawn_job,
    patch_targets,
    people_job,
    scenes_job,
)
from dreamoving_cli.train.caption_facts import ARMS, vocabulary
from dreamoving_cli.train.live import Clock, Dice, Feed, Job, autocast, fresh_seeds, settle_device
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.whole import whole_file

PROMPT = "[grounding] describe this frame in a detailed manner"
VOCABULARY = 900
WHOLE = ("<p>", "</p>", "<Img>", "</Img>", "[INST]", "[/INST]", "[grounding]", "{", "}",
         *(f"<{number}>" for number in range(101)))  # fmt: skip
WARMUP = 100  # steps
COOL = 0.3  # share of the steps in which the learning rate falls to nothing
EMA = 0.995
AUX = 0.3  # weight of the heads' losses
PATCHES = ("color", "second", "pattern", "kind", "background")  # what a head tells of each patch
STRENGTH = 0.3  # of patches and positions at the start
BLOCKS, LAYERS = 5, 2  # of the vision transformer and of the language model
PEOPLE_A_SEED = 40_000  # runs of other seeds render other people; below the held-out ones for seeds up to 11
CHUNK = 32  # clips, people or scenes that a job makes
LOOK_EVERY_S = 60.0  # seconds between two looks for new clips
NOISE = 0.02  # added to the principal components' variances


@dataclass(frozen=True)
class CaptionRun:
    """Where and how long to train."""

    clips: Path | None
    out: Path
    steps: int = 6000
    minutes: float | None = None  # instead of steps
    batch: int = 16
    lr: float = 2e-3
    side: int = 224  # pixels, a multiple of 28
    width: int = 160  # of both transformers, a multiple of 32
    drawn: int = 2500  # people rendered beside those of the clips
    scenes: int = 1500
    workers: int = 0  # processes that bring pictures; 0: none, they come before the first step
    device: str = "cpu"
    save_every_s: float = 240.0
    seed: int = 0
    init: Path | None = None  # a captioner to train on; its own side and width count


def mini_captioner(tokenizer: Tokenizer, side: int, width: int) -> CaptionerConfig:
    """The embedded captioner's shape: pixels a side, and the width of both transformers."""
    llama = {
        "vocab_size": len(tokenizer.pieces), "hidden_size": width, "intermediate_size": 8 * width // 3,
        "num_hidden_layers": LAYERS, "num_attention_heads": width // 32, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": None,
    }  # fmt: skip
    vision = VisionConfig(side=side, width=width, depth=BLOCKS, heads=width // 32)
    return CaptionerConfig(
        name="mini", vision=vision, llama=llama, max_new_tokens=96, repetition_penalty=1.0, max_length=256
    )


class Heads(nn.Module):
    """What each patch, or the whole picture, shows; for training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {"person": 1, "arms": len(ARMS)}
        sizes |= {name: len(words) for name, words in (CLASSES | SCENE_CLASSES).items()}
        self.linear = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, seen: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """The sum of the losses; seen: b n d, targets: b n or b, NO_TOKEN where unknown."""
        whole = seen.mean(1)
        said = {n: head(seen if n in (*PATCHES, "person") else whole) for n, head in self.linear.items()}
        person = said.pop("person").float()[..., 0]
        loss = F.binary_cross_entropy_with_logits(person, targets["person"])
        for name, scores in said.items():
            loss = loss + known_loss(scores.flatten(0, -2), targets[name].flatten())
        return loss


def known_loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy where the class is known, 0 where none is; scores: n k, classes: n."""
    total = F.cross_entropy(scores.float(), classes, ignore_index=NO_TOKEN, reduction="sum")
    return total / (classes != NO_TOKEN).sum().clamp(min=1)


@cache
def own_tokenizer(seed: int) -> Tokenizer:
    """Learned from the sentences that are taught."""
    return learn_tokenizer(vocabulary(np.random.default_rng(seed)), WHOLE, VOCABULARY)


class CaptionTrainer:
    """The state of a run."""

    def __init__(self, run: CaptionRun) -> None:
        self.run, self.step, self.clock = run, 0, Clock(run.steps, run.minutes)
        self.device = settle_device(run.device)
        torch.manual_seed(run.seed)
        self.model = taught(run.init) if run.init else untaught(run)
        vision = self.model.config.vision
        self.heads = Heads(vision.width)
        self.pictures = Pictures(self.model.tokenizer, vision.side, self.device)
        self.feed = Feed(self.pictures.add, run.workers)
        self.feed.run(first_jobs(run, vision.side))
        if run.init:
            silence(self.heads)
        else:
            start(self.model, self.pictures)
        self.model.to(self.device)
        self.heads.to(self.device)
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
        self.losses: list[Tensor] = []
        self.saved_at = time.monotonic()

    def loss(self) -> tuple[Tensor, Tensor]:
        """(of the words, of the heads), drawn from (seed, step) alone."""
        with torch.no_grad():
            batch = self.pictures.draw(Dice(self.device, self.run.seed, self.step), self.run.batch)
            targets = patch_targets(batch, self.model.config.vision.grid)
        with autocast(self.device):
            seen = self.model.ln_vision(self.model.visual_encoder(normalize_pixels(batch.pixels)))
            told = self.heads(seen[:, 1:], targets)
            return self.model.ids_loss(self.model.project(seen), self.around, batch.told), told

    def train_step(self) -> None:
        """One update."""
        left = 1 - self.clock.share(self.step)
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
        self.losses.append(torch.stack([words.detach(), told.detach()]))
        if self.step % 50 == 0:
            self.log()
        if time.monotonic() - self.saved_at > self.run.save_every_s:
            self.save()

    def train(self) -> None:
        """To the end; where time is what counts, clips and people that come meanwhile are used too."""
        if self.run.minutes is not None:
            self.feed.follow(later_jobs(self.run, self.pictures.side))
        while self.clock.share(self.step) < 1:
            self.train_step()
            self.feed.poll()
        self.feed.close()
        self.save()

    def log(self) -> None:
        """One line of the mean losses."""
        words, told = torch.stack(self.losses[-50:]).mean(0).tolist()
        line = {"step": self.step, "words": round(words, 4), "heads": round(told, 4),
                "people": self.pictures.pools["people"].count,
                "used_s": round(self.clock.used_s, 1), "cpu_s": round(time.process_time(), 1)}  # fmt: skip
        with (self.run.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.losses.clear()

    def save(self) -> None:
        """Write the checkpoint and the captioner as it is now, whole."""
        state = {
            "step": self.step, "used_s": self.clock.used_s, "model": self.model.state_dict(),
            "heads": self.heads.state_dict(), "average": self.average,
            "optimizer": self.optimizer.state_dict(), "momentum": self.muon.momentum,
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
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
        self.step = state["step"]
        self.clock.used_s += state["used_s"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.muon.momentum = state["average"], state["momentum"]


def clip_jobs(clips: Path, seeds: list[int], side: int) -> list[Job]:
    """What cuts people from these clips."""
    return [partial(people_job, clips, seeds[at : at + CHUNK], side) for at in range(0, len(seeds), CHUNK)]


def first_jobs(run: CaptionRun, side: int) -> list[Job]:
    """What is there before the first step."""
    jobs = clip_jobs(run.clips, fresh_seeds(run.clips, set()), side) if run.clips else []
    for job, first, count in ((drawn_job, first_person(run), run.drawn), (scenes_job, 0, run.scenes)):
        jobs += [partial(job, first + at, min(CHUNK, count - at), side) for at in range(0, count, CHUNK)]
    return jobs


def first_person(run: CaptionRun) -> int:
    """The number of the first person that this run renders."""
    return run.seed % 12 * PEOPLE_A_SEED


def later_jobs(run: CaptionRun, side: int) -> Iterator[Job]:
    """Clips that were written meanwhile, else people who are rendered anew; endless."""
    known = set(fresh_seeds(run.clips, set())) if run.clips else set()
    looked, at = time.monotonic(), first_person(run) + run.drawn
    while True:
        if run.clips and time.monotonic() - looked > LOOK_EVERY_S:
            looked = time.monotonic()
            seeds = fresh_seeds(run.clips, known)
            known.update(seeds)
            yield from clip_jobs(run.clips, seeds, side)
        yield partial(drawn_job, at, CHUNK, side)
        at += CHUNK


def untaught(run: CaptionRun) -> Captioner:
    """A captioner of the run's sizes that knows nothing yet."""
    tokenizer = own_tokenizer(run.seed)
    return Captioner(mini_captioner(tokenizer, run.side, run.width), tokenizer)


def taught(folder: Path) -> Captioner:
    """The captioner in this folder, to be trained on."""
    return load_captioner(folder).train().requires_grad_(True)


@torch.no_grad()
def silence(heads: Heads) -> None:
    """Heads that know nothing ask nothing of what they are put on."""
    for p in heads.parameters():
        p.zero_()


@torch.no_grad()
def start(model: Captioner, pictures: Pictures) -> None:
    """Starting weights: small normal ones; for patches their principal components, for positions waves."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.trunc_normal_(p, std=0.02 if "proj.weight" not in name else p[0].numel() ** -0.5)
    vision, eyes = model.config.vision, model.visual_encoder
    pixels = normalize_pixels(pictures.draw(Dice(pictures.device, 0), 48).pixels.cpu())
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
    trainer.train()
    return run.out / "captioner"
