"""What each kind of stage minimizes."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.controlnet import add_residuals
from dreamoving_cli.models.load import Pack
from dreamoving_cli.train.data import Batch

HEAD_PIXEL = 4.0  # how much a pixel of the head counts beside any other, for the autoencoder
LATENT_NOISE = 0.05  # the decoder must forgive small errors of the denoiser
DROP_ALL = 0.1  # chance that a sample sees no prompt at all (classifier-free guidance)
ABSENT = {"face": 0.15, "cloth": 0.15, "style": 0.0}  # chance that a kind is not attended to in a sample
UNUSED = {"face": 0.0, "cloth": 0.0, "style": 0.8}  # the same for a whole batch
PERSON, HEAD = 3.0, 10.0  # how much a cell of the person, or of the head, counts beside one of the background
SHARED_NOISE = 0.5  # variance share of the noise that all frames of a clip have in common


def reconstruction_loss(
    pack: Pack, pictures: Tensor, head: Tensor, generator: torch.Generator, sharpness: float = 0.0
) -> Tensor:
    """Autoencoder: absolute error of pixels and of their gradients; latents kept small.

    pictures: n 3 h w; head: n 1 h w, 0..1: eyes and mouths are a few pixels, and a person is turned by them.
    """
    raw = pack.vae.encode_raw(pictures)
    noise = torch.randn(raw.shape, generator=generator) * LATENT_NOISE
    out = pack.vae.decode_raw(raw + noise)
    weights = 1 + (HEAD_PIXEL - 1) * head
    error = out - pictures
    across, down = error.diff(dim=-1).abs() * weights[..., 1:], error.diff(dim=-2).abs() * weights[..., 1:, :]
    edges = across.mean() + down.mean()
    loss = (error.abs() * weights).mean() + 0.5 * (error.square() * weights).mean() + edges
    loss = loss + 1e-3 * raw.square().mean()
    return loss + sharpness * sharpness_loss(out, pictures) if sharpness else loss


def sharpness_loss(out: Tensor, pictures: Tensor) -> Tensor:
    """How far the local contrast of `out` is from that of `pictures`, n c h w: blur costs, wherever it is."""
    return (_contrast(out).log() - _contrast(pictures).log()).abs().mean()


def _contrast(pictures: Tensor) -> Tensor:
    """Mean squared gradient of 8x8 cells, never zero."""
    across, down = pictures.diff(dim=-1)[..., :-1, :], pictures.diff(dim=-2)[..., :-1]
    return F.avg_pool2d(across.square() + down.square(), 8, stride=4).mean(1) + 1e-3


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

    def forward(self, kind: str, tokens: Tensor, facts: dict[str, Tensor]) -> Tensor:
        """tokens: b l d."""
        total = tokens.new_zeros(())
        for name, size in self.SIZES[kind].items():
            told = self.heads[name](rearrange(tokens, "b l d -> b (l d)"))
            truth = facts[name]
            total = total + (
                F.l1_loss(torch.sigmoid(told), truth) * 3 if size == 3 else 0.2 * F.cross_entropy(told, truth)
            )
        return total


def snr_schedule(pack: Pack) -> Tensor:
    """The pack's alphas_cumprod, n."""
    from diffusers import DDIMScheduler

    wanted = pack.config.scheduler.model_dump(exclude={"clip_sample", "steps_offset"})
    scheduler: Any = DDIMScheduler(clip_sample=False, **wanted)
    return scheduler.alphas_cumprod


def clip_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Unit noise b c f h w, partly common to all frames (mixed noise, Ge et al. 2023)."""
    own = torch.randn(shape, generator=generator)
    if shape[2] == 1:
        return own
    common = torch.randn((*shape[:2], 1, *shape[3:]), generator=generator)
    return SHARED_NOISE**0.5 * common + (1 - SHARED_NOISE) ** 0.5 * own


def image_prompts(
    pack: Pack, batch: Batch, dropped: Tensor, facts: Facts | None, generator: torch.Generator
) -> tuple[list[list[Any]], Tensor]:
    """Keys of face, cloth and style for every cross-attention, strengths b 1 1 1, and the loss of `facts`."""
    kinds, extra = [], torch.zeros(())
    for kind, pixels in batch.pictures.items():
        if float(torch.rand((), generator=generator)) < UNUSED[kind]:
            continue
        present = (torch.rand(len(pixels), generator=generator) >= ABSENT[kind]).float()
        kept = pixels * rearrange(1 - dropped, "b -> b 1 1 1")  # all zero means "no picture"
        tokens = pack.guider.tokens(kind, pack.image_features(kept))
        if facts is not None and kind in Facts.SIZES:
            extra = extra + facts(
                kind, tokens[dropped == 0], {k: v[dropped == 0] for k, v in batch.facts.items()}
            )
        strength = rearrange(torch.maximum(present, dropped), "b -> b 1 1 1")
        kinds.append([(k, v, strength) for k, v in pack.guider.keys(kind, tokens)])
    return kinds, extra


def noise_loss(
    pack: Pack, batch: Batch, generator: torch.Generator, settings: Any, facts: Facts | None, alphas: Tensor
) -> Tensor:
    """Denoising loss of a batch under the stage's settings: prompts dropped, controls chosen."""
    count = len(batch.latents)
    t = noise_levels(count, len(alphas), generator)
    noise = clip_noise(tuple(batch.latents.shape), generator)
    a, s = (rearrange(x, "b -> b 1 1 1 1") for x in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
    x = a * batch.latents + s * noise
    dropped = (torch.rand(count, generator=generator) < DROP_ALL).float()
    text = pack.encode_text(["" if d else c for d, c in zip(dropped.tolist(), batch.captions, strict=True)])
    prompts = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(text)]
    extra = torch.zeros(())
    if settings.images:
        images, extra = image_prompts(pack, batch, dropped, facts, generator)
        prompts = [list(p) + [keys[i] for keys in images] for i, p in enumerate(prompts)]
    residuals = control_residuals(pack, batch, x, t, text, settings, generator)
    guess = pack.unet(x, t, prompts, residuals, use_motion=settings.motion)
    wanted = (
        a * noise - s * batch.latents if pack.config.scheduler.prediction_type == "v_prediction" else noise
    )
    return weighted_mean((guess - wanted).square(), batch) + 0.3 * extra


def noise_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Steps b, drawn in proportion to their number: poses and colors are decided where noise is high."""
    return (torch.rand(count, generator=generator).sqrt() * levels).long().clamp(max=levels - 1)


def weighted_mean(errors: Tensor, batch: Batch) -> Tensor:
    """Mean of errors b c f h w; cells of the person and, small as it is, of the head count for more."""
    weights = 1 + (PERSON - 1) * batch.person + (HEAD - PERSON) * batch.head * batch.person
    return (errors * weights).mean() / weights.mean()


def control_residuals(
    pack: Pack, batch: Batch, x: Tensor, t: Tensor, text: Tensor, settings: Any, generator: torch.Generator
) -> list[Tensor] | None:
    """Residuals of the controls drawn for this batch: pose alone, depth alone, both, or (rarely) none."""
    draw = float(torch.rand((), generator=generator))
    if not settings.controls or draw > 0.97:
        return None
    used = ["pose"] if draw < 0.55 else ["depth"] if draw < 0.75 else ["pose", "depth"]
    every = []
    for kind in used:
        net = pack.controlnets[kind]
        keys = [[(k, v, 1.0)] for k, v in net.text_keys(text)]
        every.append(net(x, t, keys, net.embed_control(batch.controls[kind]), use_motion=settings.motion))
    return add_residuals(every)
