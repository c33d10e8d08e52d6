"""What each kind of stage minimizes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.controlnet import add_residuals
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.train.adversary import Adversary
from dreamoving_cli.train.data import Batch
from dreamoving_cli.train.decoded import clean_guess, decoded_loss
from dreamoving_cli.train.stray import error_of_clean, strayed

HEAD_PIXEL = 4.0  # how much a pixel of the head counts beside any other, for the autoencoder
UNUSED = {"face": 0.0, "cloth": 0.0, "style": 0.8}  # chance that a whole batch does not attend to a kind
PERSON, ARMS, HEAD = 3.0, 8.0, 10.0  # how much a cell of these counts beside one of the background


def reconstruction_loss(
    pack: Pack, pictures: Tensor, head: Tensor, generator: torch.Generator, settings: Any
) -> tuple[Tensor, Tensor]:
    """Autoencoder: absolute error of pixels and of their gradients; latents kept small. And what it decoded.

    pictures: n 3 h w; head: n 1 h w, 0..1: eyes and mouths are a few pixels, and a person is turned by them.
    The decoder sees latents with noise, each picture's of another strength: the denoiser leaves some.
    Distances are to pictures sharpened by `settings.sharpen`: what minimizes them is a little blurred.
    """
    raw = pack.vae.encode_raw(pictures)
    drawn_on = generator_on(raw.device, generator)
    strength = (
        torch.rand((len(raw), 1, 1, 1), generator=drawn_on, device=drawn_on.device) * settings.latent_noise
    )
    noise = strength * torch.randn(raw.shape, generator=drawn_on, device=drawn_on.device)
    out = pack.vae.decode_raw(raw + noise.to(raw))
    weights = 1 + (HEAD_PIXEL - 1) * head
    error = out - sharpened(pictures, settings.sharpen)
    across, down = error.diff(dim=-1).abs() * weights[..., 1:], error.diff(dim=-2).abs() * weights[..., 1:, :]
    edges = across.mean() + down.mean()
    loss = (error.abs() * weights).mean() + 0.5 * (error.square() * weights).mean() + edges
    loss = loss + 1e-3 * raw.square().mean()
    return loss, out


def sharpened(pictures: Tensor, amount: float) -> Tensor:
    """Unsharp masking, as of Real-ESRGAN's targets (Wang et al. 2021); pictures: n c h w in -1..1."""
    if not amount:
        return pictures
    taps = torch.exp(-0.5 * torch.arange(-2, 3, device=pictures.device).square())
    kernel = torch.outer(taps, taps / taps.sum().square()).expand(pictures.shape[1], 1, 5, 5)
    blurred = F.conv2d(F.pad(pictures, (2, 2, 2, 2), "reflect"), kernel, groups=pictures.shape[1])
    return (pictures + amount * (pictures - blurred)).clamp(-1, 1)


def drift(vae: VAE, start: VAE, pictures: Tensor) -> Tensor:
    """Mean squared change of the latents since the `start`: a model that was trained on those still fits."""
    with torch.no_grad():
        before = start.encode_raw(pictures)
    return (vae.encode_raw(pictures) - before).square().mean()


class Facts(nn.Module):
    """Heads that read colors and classes off the image tokens; they speed up training and are not kept."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "face": {"skin": 3, "hair": 3, "hair_style": 4},
        "cloth": {"cloth_color": 3, "cloth_pattern": 7, "cloth_cut": 8},
    }

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        heads = {
            name: nn.Linear(width * tokens, size)
            for sizes in self.SIZES.values()
            for name, size in sizes.items()
        }
        self.heads = nn.ModuleDict(heads)

    def forward(self, kind: str, tokens: Tensor, facts: dict[str, Tensor], seen: Tensor) -> Tensor:
        """tokens: b l d; seen: b, 1 where the picture was shown, 0 where it was dropped."""
        total = tokens.new_zeros(())
        for name, size in self.SIZES[kind].items():
            told = self.heads[name](rearrange(tokens, "b l d -> b (l d)")).float()
            truth = facts[name]
            if size == 3:
                errors = 3 * (torch.sigmoid(told) - truth).abs().mean(1)
            else:
                errors = 0.2 * F.cross_entropy(told, truth, reduction="none")
            total = total + (errors * seen).sum() / seen.sum().clamp(min=1)
        return total


def snr_schedule(pack: Pack, beta_schedule: str | None = None) -> Tensor:
    """alphas_cumprod, n, of the pack's noise schedule, or of the stage's own."""
    from diffusers import DDIMScheduler

    wanted = pack.config.scheduler.model_dump(exclude={"clip_sample", "steps_offset"})
    wanted |= {"beta_schedule": beta_schedule} if beta_schedule else {}
    scheduler: Any = DDIMScheduler(clip_sample=False, **wanted)
    return scheduler.alphas_cumprod


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator for what is large: on CUDA its own, as drawing it on the CPU takes as long as the step.

    Everything else is drawn on the CPU, the same everywhere.
    """
    if device.type != "cuda":
        return generator
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def clip_noise(shape: tuple[int, ...], generator: torch.Generator, shared: float) -> Tensor:
    """Unit noise b c f h w; `shared` of its variance common to all frames (mixed noise, Ge et al. 2023)."""
    own = torch.randn(shape, generator=generator, device=generator.device)
    if shape[2] == 1 or not shared:
        return own
    common = torch.randn((*shape[:2], 1, *shape[3:]), generator=generator, device=generator.device)
    return shared**0.5 * common + (1 - shared) ** 0.5 * own


@dataclass(frozen=True)
class Dropped:
    """Which samples see no text or no pictures, b each; 1 = dropped."""

    text: Tensor
    images: Tensor


def draw_dropped(count: int, settings: Any, generator: torch.Generator) -> Dropped:
    """As IP-Adapter does it: one draw decides between both, text alone, pictures alone and none."""
    draw = torch.rand(count, generator=generator)
    both = draw < settings.drop_both
    text = (draw >= settings.drop_both) & (draw < settings.drop_both + settings.drop_text)
    last = settings.drop_both + settings.drop_text + settings.drop_images
    images = (draw >= settings.drop_both + settings.drop_text) & (draw < last)
    return Dropped((both | text).float(), (both | images).float())


def image_prompts(
    pack: Pack, batch: Batch, dropped: Tensor, facts: Facts | None, generator: torch.Generator, absent: float
) -> tuple[list[list[Any]], Tensor]:
    """Keys of face, cloth and style for every cross-attention, strengths b 1 1 1, and the loss of `facts`."""
    kinds, extra = [], dropped.new_zeros(())
    for kind, pixels in batch.pictures.items():
        used = float(torch.rand((), generator=generator)) >= UNUSED[kind]
        if not pack.any_of([used])[0]:
            continue
        chance = 0.0 if kind == "style" else absent
        drawn = torch.rand(len(pixels), generator=generator) if used else torch.zeros(len(pixels))
        present = (drawn >= chance).float()
        present = present.to(dropped.device, non_blocking=True)
        kept = pixels * rearrange(1 - dropped, "b -> b 1 1 1")  # all zero means "no picture"
        tokens = pack.guider.tokens(kind, pack.image_features(kept))
        if facts is not None and kind in Facts.SIZES:
            extra = extra + facts(kind, tokens, batch.facts, 1 - dropped)
        strength = rearrange(torch.maximum(present, dropped) * float(used), "b -> b 1 1 1")
        kinds.append([(k, v, strength) for k, v in pack.guider.keys(kind, tokens)])
    return kinds, extra


def noise_loss(
    pack: Pack,
    batch: Batch,
    generator: torch.Generator,
    settings: Any,
    facts: Facts | None,
    alphas: Tensor,
    adversary: Adversary | None = None,
) -> Tensor:
    """Denoising loss of a batch under the stage's settings: prompts dropped, controls chosen."""
    count = len(batch.latents)
    device = batch.latents.device
    t = noise_levels(count, len(alphas), generator, settings.noise)
    noise = clip_noise(tuple(batch.latents.shape), generator_on(device, generator), settings.shared_noise).to(
        device
    )
    weights = snr_weights(alphas[t], settings.snr_gamma, pack.config.scheduler.prediction_type)
    a, s = (rearrange(x, "b -> b 1 1 1 1") for x in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
    a, s, weights, t = (x.to(device, non_blocking=True) for x in (a, s, weights, t))
    x = a * strayed(batch, settings.stray, generator) + s * noise
    dropped = draw_dropped(count, settings, generator)
    said = ["" if d else c for d, c in zip(dropped.text.tolist(), batch.captions, strict=True)]
    text = pack.encode_text(said)
    prompts = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(text)]
    extra = noise.new_zeros(())
    if settings.images:
        seen = dropped.images.to(device, non_blocking=True)
        images, extra = image_prompts(pack, batch, seen, facts, generator, settings.absent)
        prompts = [list(p) + [keys[i] for keys in images] for i, p in enumerate(prompts)]
    residuals = control_residuals(pack, batch, x, t, text, settings, generator)
    guess = pack.unet(x, t, prompts, residuals, use_motion=settings.motion).float()
    prediction = pack.config.scheduler.prediction_type
    clean = clean_guess(x, guess, a, s, prediction)
    if batch.other is not None:
        error = error_of_clean(clean, batch.latents, s)
    else:
        error = guess - (a * noise - s * batch.latents if prediction == "v_prediction" else noise)
    loss = weighted_mean(error.square() * weights, batch) + 0.3 * extra
    if settings.decoded:
        signal = rearrange(a.square(), "b 1 1 1 1 -> b")
        loss = loss + settings.decoded * decoded_loss(pack, clean, batch, signal, adversary, generator)
    return loss


def noise_levels(count: int, levels: int, generator: torch.Generator, noise: str) -> Tensor:
    """Steps b. even: all alike; high: in proportion to their number, as poses and colors are decided there;
    low: the other way around, for what is left of the noise at the end.
    """
    draw = torch.rand(count, generator=generator)
    share = {"even": draw, "high": draw.sqrt(), "low": 1 - draw.sqrt()}[noise]
    return (share * levels).long().clamp(max=levels - 1)


def snr_weights(alphas: Tensor, gamma: float, prediction: str) -> Tensor:
    """min-SNR weights (Hang et al. 2023) `b 1 1 1 1` at these alphas_cumprod b; ones where gamma is 0."""
    weights = torch.ones_like(alphas)
    if gamma:
        snr = alphas / (1 - alphas).clamp(min=1e-8)
        clipped = snr.clamp(max=gamma)
        weights = clipped / (snr + 1) if prediction == "v_prediction" else clipped / snr.clamp(min=1e-8)
    return rearrange(weights, "b -> b 1 1 1 1")


def weighted_mean(errors: Tensor, batch: Batch) -> Tensor:
    """Mean of errors b c f h w; the person's cells count for more, the few of forearms and head most."""
    part = torch.maximum((ARMS - PERSON) * batch.arms, (HEAD - PERSON) * batch.head)
    weights = 1 + (PERSON - 1 + part) * batch.person
    return (errors * weights).mean() / weights.mean()


def control_residuals(
    pack: Pack, batch: Batch, x: Tensor, t: Tensor, text: Tensor, settings: Any, generator: torch.Generator
) -> list[Tensor] | None:
    """Residuals of the controls drawn for this batch: pose alone, depth alone, both, or (rarely) none.

    A ControlNet that another process runs is run here too, and counts for nothing.
    """
    drawn = draw_controls(pack, batch, settings, generator)
    if not settings.controls:
        return None
    every = []
    for kind, runs in zip(pack.controlnets, pack.any_of([k in drawn for k in pack.controlnets]), strict=True):
        if runs:
            net = pack.controlnets[kind]
            keys = [[(k, v, 1.0)] for k, v in net.text_keys(text)]
            embedded = net.embed_control(shown(pack, batch, kind))
            every.append(net(x, t, keys, embedded, float(kind in drawn), use_motion=settings.motion))
    return add_residuals(every) if every else None


def draw_controls(pack: Pack, batch: Batch, settings: Any, generator: torch.Generator) -> list[str]:
    """The kinds of control that a batch shows.

    A stage that trains nothing but ControlNets is never without: nothing could be learned from that.
    """
    draw = float(torch.rand((), generator=generator))
    known = [kind for kind in batch.controls if kind in pack.controlnets]
    others = any(not part.startswith("controlnet_") for part in settings.trains)
    if not settings.controls or (draw > 0.97 and others):
        return []
    drawn = ["pose"] if draw < 0.55 else ["depth"] if draw < 0.75 else ["pose", "depth"]
    return [kind for kind in drawn if kind in known] or known


def shown(pack: Pack, batch: Batch, kind: str) -> Tensor:
    """The batch's control of a kind, b 3 f h w; black if it has none."""
    if kind in batch.controls:
        return batch.controls[kind]
    rows, _, frames, height, width = batch.latents.shape
    factor = pack.config.pixel_factor
    return batch.latents.new_zeros(rows, 3, frames, height * factor, width * factor)
