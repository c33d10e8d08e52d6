"""From prompts, pictures and controls to one function: Denoiser.predict_noise(x, t, windows).

Keys and values of all prompts are computed once per render; control embeddings once per block of frames where
they are small, else per window. Not here: which windows, which sampler, where the control pictures come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.caching import StepCache
from dreamoving_cli.controls import Control
from dreamoving_cli.guidance import Guidance, guide
from dreamoving_cli.models.anchors import Anchors, Widen
from dreamoving_cli.models.content_guider import needs_identity
from dreamoving_cli.models.controlnet import VideoControlNet, add_residuals
from dreamoving_cli.models.layers import Prompt
from dreamoving_cli.models.load import Pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.packed import Packed
from dreamoving_cli.prompts import FrameTexts
from dreamoving_cli.sharing import SharedFrames
from dreamoving_cli.windows import Window, Windows

EMBED_BLOCK = (
    16  # frames embedded at once, always the same ones together, so that bits do not depend on windows
)
PACKED_BYTES = 58 * 1024  # of control pictures a frame, where embeddings are not kept
CACHE_BYTES = 176 * 1024  # of control embeddings a frame that may be kept: with the latents 0.25 MiB at most

Enter = Callable[[str], None]  # told the stage of memory.STAGES whose networks are needed next
Layers = list[list[Prompt]]  # for each cross-attention, the prompts it sums


class Place(NamedTuple):
    """Where and in which precision networks compute, wherever and however their weights are kept."""

    device: torch.device
    dtype: torch.dtype


class Pass(NamedTuple):
    """Which prediction the networks are asked for."""

    guided: bool  # uncond beside cond
    controlled: bool = True
    use_motion: bool = True


@dataclass(frozen=True)
class ImagePrompts:
    """What the Content Guider is shown."""

    pictures: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)  # kind -> uint8 h w c each
    identity: np.ndarray | None = None  # n c: ArcFace's embeddings of the faces, where the model takes them


@dataclass(frozen=True)
class Prompts:
    """Keys and values of all that is attended to; b = (uncond, cond) with guidance, (cond,) without.

    The text comes first in a layer; where it changes with time, it has a cond of each.
    """

    unet: Layers
    controls: dict[str, Layers]  # by kind; text only
    guidance: Guidance
    frames: tuple[int, ...] = ()  # which text each frame has; none: all have the only one

    def for_windows(self, windows: Sequence[Window], guided: bool = True) -> tuple[Layers, dict[str, Layers]]:
        """The same for a batch of windows: b = (branch window); cond alone where not guided."""
        rows = slice(None) if guided else slice(-1, None)
        parts = self._parts(windows, guided) if self.frames else []

        def ready(layers: Layers) -> Layers:
            if not parts:
                return _for_rows(layers, rows, len(windows))
            pictures = _for_rows([layer[1:] for layer in layers], rows, len(windows))
            texts = [[(k[at], v[at], share.to(k)) for at, share in parts] for (k, v, _), *_ in layers]
            return [text + picture for text, picture in zip(texts, pictures, strict=True)]

        return ready(self.unet), {kind: ready(layers) for kind, layers in self.controls.items()}

    def _parts(self, windows: Sequence[Window], guided: bool) -> list[tuple[list[int], Tensor]]:
        """Of each text of these windows: its rows, and how much each frame hears of it: b 1 f 1, sum 1."""
        first = self.guidance.branches - 1
        parts: list[tuple[list[int], Tensor]] = []
        for text in sorted({self.frames[frame] for window in windows for frame in window}):
            rows = [first + text] * len(windows)
            share = torch.tensor([[float(self.frames[f] == text) for f in window] for window in windows])
            if guided and first:
                rows = [0] * len(windows) + rows
                share = torch.cat([torch.full_like(share, float(not parts)), share])
            parts.append((rows, rearrange(share, "b f -> b 1 f 1")))
        return parts


@torch.inference_mode()
def encode_prompts(
    pack: Pack,
    options: RenderOptions,
    shown: ImagePrompts,
    enter: Enter = lambda stage: None,
    told: FrameTexts | None = None,
) -> Prompts:
    """Encode the text and the pictures; those of strength 0 are left out, several of a kind are averaged.

    told: the texts, where the prompt changes with time.
    """
    told = told or FrameTexts((options.prompt,))
    enter("text")
    text = pack.encode_text([options.negative_prompt] * (options.guidance_scale > 1) + [*told.texts])
    if shown.pictures:
        enter("pictures")
    images = image_layers(pack, options, shown)
    enter("denoise")
    layers: Layers = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(text)]
    for image in images:
        for layer, prompt in zip(layers, image, strict=True):
            layer.append(prompt)
    controls: dict[str, Layers] = {
        kind: [[(k, v, 1.0)] for k, v in net.text_keys(text)] for kind, net in pack.controlnets.items()
    }
    return Prompts(layers, controls, Guidance.of(options), told.frames)


def image_layers(pack: Pack, options: RenderOptions, shown: ImagePrompts) -> list[list[Prompt]]:
    """For each kind of picture that counts, its prompt for every cross-attention."""
    guided, images = options.guidance_scale > 1, []
    for kind, pictures in shown.pictures.items():
        strength = getattr(options, f"{kind}_strength")
        if not strength:
            continue
        known = shown.identity if needs_identity(pack.config, kind) else None
        tokens = pack.image_tokens(kind, pictures, None if known is None else torch.from_numpy(known))
        if guided:
            tokens = torch.cat([pack.image_tokens(kind, None), tokens])
        images.append([(k, v, strength) for k, v in pack.guider.keys(kind, tokens)])
    return images


class Denoiser:
    """The whole model as a function of latents, time and windows, at `place` (None: where the pack is).

    windows: those it will be asked for, step by step; others may be asked too, and then nothing is shared.
    cache: what steps keep for the next ones; None: nothing, all are computed in full.
    """

    def __init__(
        self,
        pack: Pack,
        prompts: Prompts,
        controls: Sequence[Control],
        timesteps: Tensor,
        windows: Windows,
        place: Place | None = None,
        cache: StepCache | None = None,
    ) -> None:
        self.pack, self.prompts, self.cache = pack, prompts, cache or StepCache()
        self.place = place or place_of(pack.unet)
        self.steps = {float(t): step for step, t in enumerate(timesteps)}
        self.anchors: Anchors | None = None
        self.shared = SharedFrames(windows)
        self.embeddings: list[Embeddings] = []
        allowance = CACHE_BYTES
        for control in controls:
            net = pack.controlnets[control.kind]
            self.embeddings.append(Embeddings(control, net, windows.num_frames, allowance, self.place))
            allowance -= self.embeddings[-1].kept_bytes

    @torch.inference_mode()
    def predict_noise(self, x: Tensor, t: Tensor, windows: Sequence[Window]) -> Tensor:
        """x: b c f h w, one window per row of b -> the same shape, fp32.

        A frame has the same latents in all windows of a step.
        """
        guidance = self.prompts.guidance
        scale, driver_scale = guidance.at(self.steps[float(t)], len(self.steps))
        noise, free = self._pass(x, t, windows, Pass(guided=scale > 1)), None
        if driver_scale > 1 and self._acting(t):
            free = self._pass(x, t, windows, Pass(guided=False, controlled=False)).float()
        return guide(noise.float(), scale, guidance.rescale, free, driver_scale)

    @torch.inference_mode()
    def look(self, x: Tensor, t: Tensor, frames: Window) -> None:
        """Show the anchor frames of this step, 1 c f h w: all windows see them until the next look.

        Without motion: they are far apart.
        """
        self.anchors = Anchors(len(frames))
        scale, _ = self.prompts.guidance.at(self.steps[float(t)], len(self.steps))
        looked = Pass(guided=scale > 1, use_motion=False)
        self._pass(x, t, [frames], looked, self.anchors.collect)

    def _pass(
        self, x: Tensor, t: Tensor, windows: Sequence[Window], asked: Pass, widen: Widen | None = None
    ) -> Tensor:
        """The networks' prediction, (g b) c f h w; widen: in place of the anchor frames."""
        if widen is None and self.anchors:
            widen = self.anchors.shown(2 if asked.guided else 1)
        unet_prompts, _ = self.prompts.for_windows(windows, asked.guided)
        with self.cache.of(self.steps[float(t)], windows, asked, self.place.device) as deep:
            branch = deep.branch if deep is not None and deep.kept is not None else None
            added = self._residuals(x, t, windows, asked, branch) if asked.controlled else None
            x, at = put(x, self.place), t.to(self.place.device)
            noise: Tensor = self.pack.unet(x, at, unet_prompts, added, asked.use_motion, widen, deep)
        return noise

    def _acting(self, t: Tensor) -> "list[Embeddings]":
        """The controls that act at this step."""
        step = self.steps[float(t)]
        return [e for e in self.embeddings if e.control.acts_at(step, len(self.steps))]

    def _residuals(
        self, x: Tensor, t: Tensor, windows: Sequence[Window], asked: Pass, branch: int | None
    ) -> list[Tensor] | None:
        """What the ControlNets that act add to the U-Net, (g b f) c h w each; None where none acts.

        branch: the last skip connection that needs it; None: all do.
        """
        step, at, use_motion = self.steps[float(t)], t.to(self.place.device), asked.use_motion

        def summed(acting: Sequence[Embeddings], x: Tensor, windows: Sequence[Window]) -> list[Tensor]:
            _, prompts = self.prompts.for_windows(windows, asked.guided)
            x = put(x, self.place)

            def given(e: Embeddings) -> list[Tensor]:
                told, scale = prompts[e.control.kind], e.control.control_scale
                return e.net(x, at, told, e.rows(windows), scale, use_motion, branch)

            return add_residuals([given(e) for e in acting])

        acting = self._acting(t)
        alike = [e for e in acting if use_motion and e.net.frame_by_frame]  # whatever the window
        moving = [e for e in acting if not (use_motion and e.net.frame_by_frame)]
        found = [summed(moving, x, windows)] if moving else []
        if alike:
            found.append(self.shared.residuals(x, step, windows, partial(summed, alike)))
        return add_residuals(found) if found else None


def place_of(network: nn.Module) -> Place:
    """Where a network's weights are, and in which precision."""
    weight = next(network.parameters())
    return Place(weight.device, weight.dtype)


def put(x: Tensor, place: Place) -> Tensor:
    """x at the place; precision first, for not every device has those of the CPU."""
    return x.to(place.dtype).to(place.device)


@dataclass
class Embeddings:
    """What one ControlNet's hint encoder makes of the control pictures, frame by frame."""

    control: Control
    net: VideoControlNet
    num_frames: int
    allowance: int  # bytes a frame that may be kept
    place: Place | None = None  # None: where the network is
    kept_bytes: int = 0  # a frame; 0 = embeddings are made anew for every window
    kept: Tensor = field(init=False)  # num_frames c h w, one piece, so that memory is not cut into holes
    ready: set[int] = field(default_factory=set)  # the blocks of it that are made

    def __post_init__(self) -> None:
        with torch.inference_mode():
            first = self._embed([0])
            size_bytes = first.nbytes
            self.kept_bytes = size_bytes if size_bytes <= self.allowance else 0
            if not self.kept_bytes:
                self.control = replace(self.control, source=Packed(self.control.source, PACKED_BYTES))
            self.kept = first.new_empty(self.num_frames if self.kept_bytes else 0, *first.shape[1:])

    def rows(self, windows: Sequence[Window]) -> Tensor:
        """Embeddings of the windows' frames: (window frame) c h w."""
        frames = [frame for window in windows for frame in window]
        return self._kept(frames) if self.kept_bytes else self._made(frames)

    def _kept(self, frames: Sequence[int]) -> Tensor:
        for index in {f // EMBED_BLOCK for f in frames} - self.ready:
            block = range(index * EMBED_BLOCK, min((index + 1) * EMBED_BLOCK, self.num_frames))
            self.kept[block.start : block.stop] = self._embed(block)
            self.ready.add(index)
        return self.kept[list(frames)]

    def _made(self, frames: Sequence[int]) -> Tensor:
        parts = [frames[k : k + EMBED_BLOCK] for k in range(0, len(frames), EMBED_BLOCK)]
        return torch.cat([self._embed(part) for part in parts])

    def _embed(self, frames: Sequence[int]) -> Tensor:
        place = self.place or place_of(self.net)
        pictures = torch.from_numpy(self.control.source.read(frames)).to(place.device)
        return self.net.embed_control(rearrange(pictures, "f h w c -> 1 c f h w").to(place.dtype) / 255)


def _for_rows(layers: Layers, rows: slice, count: int) -> Layers:
    """Keys and values of these rows (b = branch), for `count` windows in each."""
    if count == 1 and rows == slice(None):
        return layers

    def repeated(x: Tensor) -> Tensor:
        return x[rows].repeat_interleave(count, 0)

    return [[(repeated(k), repeated(v), strength) for k, v, strength in layer] for layer in layers]
