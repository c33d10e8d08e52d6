"""One layer at a time: folding time, attention over several prompts, and the walk through 2D blocks.

Hidden states are `(b f) c h w` in channels-last memory from the first convolution to the last, so that
tokens `(b f) (h w) c` are a view of them. Nothing here holds weights: functions call diffusers' modules.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamoving_cli.models.anchors import Widen
from dreamoving_cli.models.config import Span

Prompt = tuple[Tensor, Tensor, float | Tensor]  # keys b h l d, values b h l d, strength
Run = Callable[..., Tensor]  # run(region, block, *tensors): how blocks that repeat are computed
INDEX_LIMIT = 2**31  # elements beyond which channels-last upsampling overflows on CUDA


def plainly(region: Callable[..., Tensor], *given: Any) -> Tensor:
    """The way of a network that nobody has compiled."""
    return region(*given)


@dataclass
class Deep:
    """What the U-Net computes deeper than one of its skip connections, kept for other passes.

    Between two steps it changes little (DeepCache, Ma et al. 2023). branch counts from the outside: 0 is the
    skip connection from the first convolution to the last layer.
    """

    branch: int
    kept: Tensor | None = None  # (b f) c h w: enters the layer that takes this skip; None: not known yet


@dataclass
class Pass:
    """What every layer needs to know of one forward pass."""

    time: Tensor  # b c: time embedding
    num_frames: int
    prompts: Iterator[Sequence[Prompt]]  # next() at every cross-attention, in walk order
    resnet_norm: Span = "frame"
    recompute: bool = False  # keep no activations inside a layer: the backward pass computes them again
    rows: int = 0  # (b f) once the text has entered; more than before where guidance has several branches
    widen: Widen | None = None  # what frames see in self-attention beside themselves; None: nothing
    run: Run = plainly


def fold(x: Tensor) -> Tensor:
    """Frames as a batch: b c f h w -> (b f) c h w, channels last in memory."""
    return rearrange(x, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)


def unfold(x: Tensor, num_frames: int) -> Tensor:
    """Frames as a dimension: (b f) c h w -> b c f h w."""
    return rearrange(x, "(b f) c h w -> b c f h w", f=num_frames)


def with_rows(x: Tensor, rows: int) -> Tensor:
    """x repeated up to this many rows: until the text enters, all branches of guidance are one."""
    return x if len(x) >= rows else torch.cat([x] * (rows // len(x)))


def add(x: Tensor, y: Tensor) -> Tensor:
    """The sum, with the branches of guidance if one of them has them; (b f) ... each."""
    rows = max(len(x), len(y))
    return with_rows(x, rows) + with_rows(y, rows)


def count_rows(batch: int, prompts: Sequence[Sequence[Prompt]]) -> int:
    """Rows of a batch once the text has entered: the prompts' if these are more, as with guidance."""
    return max([batch, *(len(k) for layer in prompts[:1] for k, _, _ in layer)])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """b l (h d) -> b h l d."""
    return rearrange(x, "b l (h d) -> b h l d", h=heads)


def attend(q: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Attention to text, face and cloth, summed with their strengths (DreaMoving, eq. 1).

    q: b h n d. prompts: keys and values b h l d (b may be 1) and a strength, a number or `b 1 1 1`; a prompt
    of strength 0 is not computed.
    """
    total: Tensor | None = None
    for k, v, strength in weighed(prompts):
        k, v = (x.expand(q.shape[0], -1, -1, -1) for x in (k, v))
        part = F.scaled_dot_product_attention(q, k, v)
        part = part if isinstance(strength, (int, float)) else part * strength
        total = part if total is None else total + part
    return torch.zeros_like(q) if total is None else total


def weighed(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that count; strengths that are numbers are in the values, far fewer than results are."""
    found: list[Prompt] = []
    for k, v, strength in prompts:
        if isinstance(strength, Tensor):
            found.append((k, v, strength))
        elif strength:
            found.append((k, v if strength == 1 else v * strength, 1.0))
    return found


def own_projections(attention: Any, x: Tensor) -> Sequence[Tensor]:
    """Queries, keys and values of the same x: b n c -> three of b n d."""
    layers = attention.to_q, attention.to_k, attention.to_v
    return projected_at_once(layers, x) if pays_at_once(layers, x) else [layer(x) for layer in layers]


def pays_at_once(layers: Sequence[nn.Linear], x: Tensor) -> bool:
    """Whether joining the weights costs less than reading x three times: on a GPU, with more rows than that.

    Weights that are elsewhere or packed come to x only through their layers.
    """
    if x.device.type != "cuda" or torch.is_grad_enabled() or any(layer.bias is not None for layer in layers):
        return False
    here = all(layer.weight.device == x.device and layer.weight.dtype == x.dtype for layer in layers)
    return here and x.shape[0] * x.shape[1] > sum(layer.out_features for layer in layers)


def projected_at_once(layers: Sequence[nn.Linear], x: Tensor) -> Sequence[Tensor]:
    """What layers without bias make of x, in one product."""
    joined = F.linear(x, torch.cat([layer.weight for layer in layers]))
    return joined.split([layer.out_features for layer in layers], dim=-1)


def self_attend(attention: Any, x: Tensor, widen: Widen | None = None) -> Tensor:
    """Attention of every cell to all cells of its frame, and what `widen` adds; x: (b f) n c."""
    q, k, v = (split_heads(part, attention.heads) for part in own_projections(attention, x))
    k, v = (k, v) if widen is None else widen(k, v)
    out = F.scaled_dot_product_attention(q, k, v)
    return attention.to_out[0](rearrange(out, "b h n d -> b n (h d)"))


def prompt_keys(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a prompt for one cross-attention; tokens: b l d -> two of b h l d, in that order."""
    keys, values = (split_heads(of(tokens), attention.heads) for of in (attention.to_k, attention.to_v))
    return keys.contiguous(), values.contiguous()


def cross_attend(attention: Any, x: Tensor, prompts: Sequence[Prompt], num_frames: int) -> Tensor:
    """Attention of all cells of all frames to the prompts; x: (b f) n c.

    Frames are merged into the queries, so keys and values are never repeated per frame. Here a strength may
    also be `b 1 f 1`: one of each frame.
    """
    q = rearrange(attention.to_q(x), "(b f) n (h d) -> b h (f n) d", f=num_frames, h=attention.heads)
    told = [(k, v, of_cells(strength, x.shape[1])) for k, v, strength in prompts]
    out = rearrange(attend(q, told), "b h (f n) d -> (b f) n (h d)", f=num_frames)
    return attention.to_out[0](out)


def of_cells(strength: float | Tensor, cells: int) -> float | Tensor:
    """A strength of each frame for all its cells, b 1 f 1 -> b 1 (f n) 1; others as they are."""
    by_frame = isinstance(strength, Tensor) and strength.shape[2] > 1
    return strength.repeat_interleave(cells, 2) if by_frame else strength  # type: ignore[union-attr]


def feed_forward(ff: Any, x: Tensor) -> Tensor:
    """A gated feed-forward: value times gelu(gate), projected back; x: ... c.

    On a CPU in two products, one for each half: none of them is copied, nothing is held twice.
    """
    gated, *rest = ff.net
    if not isinstance(gated, GEGLU) or x.device.type != "cpu" or torch.is_grad_enabled():
        return ff(x)
    weight, bias = (w.to(x.dtype).chunk(2) for w in (gated.proj.weight, gated.proj.bias))  # kept in less
    value, gate = (F.linear(x, *half) for half in zip(weight, bias, strict=True))
    x = value.mul_(torch.ops.aten.gelu_(gate))
    for part in rest:
        x = part(x)
    return x


def transformer_block(
    block: Any, x: Tensor, prompts: Sequence[Prompt] | None, frames: tuple[int, int], widen: Widen | None
) -> Tensor:
    """Self-attention, cross-attention, feed-forward; x: (b f) n c. frames: f, rows once the text is in."""
    x = x + self_attend(block.attn1, block.norm1(x), widen)
    if prompts is not None:
        x = with_rows(x, frames[1])
        x = x + cross_attend(block.attn2, block.norm2(x), prompts, frames[0])
    return x + feed_forward(block.ff, block.norm3(x))


def transform(transformer: Any, x: Tensor, step: Pass) -> Tensor:
    """A spatial transformer; x: (b f) c h w.

    Where the text enters, rows may grow, and anchors come from outside: neither is left to `step.run`.
    """
    heard = [b.attn2 is not None for b in transformer.transformer_blocks]
    told = [weighed(next(step.prompts)) if hears else None for hears in heard]
    x = rearrange(x, "(b f) c h w -> b f c h w", f=step.num_frames)
    if step.widen is not None or x.shape[0] * x.shape[1] < step.rows:
        return spatial_block(transformer, x, told, step.rows, step.widen)
    return step.run(spatial_block, transformer, x, told)


def spatial_block(
    transformer: Any,
    x: Tensor,
    prompts: Sequence[Sequence[Prompt] | None],
    rows: int = 0,
    widen: Widen | None = None,
) -> Tensor:
    """A spatial transformer around its blocks, b f c h w -> (b f) c h w; prompts: of each block."""
    frames, height = x.shape[1], x.shape[-2]
    residual = x = rearrange(x, "b f c h w -> (b f) c h w")
    x = transformer.norm(x)
    if transformer.use_linear_projection:
        x = transformer.proj_in(rearrange(x, "b c h w -> b (h w) c"))
    else:
        x = rearrange(transformer.proj_in(x), "b c h w -> b (h w) c")
    for block, told in zip(transformer.transformer_blocks, prompts, strict=True):
        x = transformer_block(block, x, told, (frames, rows), widen)
    if transformer.use_linear_projection:
        x = rearrange(transformer.proj_out(x), "b (h w) c -> b c h w", h=height)
    else:
        x = transformer.proj_out(rearrange(x, "b (h w) c -> b c h w", h=height))
    return add(x, residual)


def group_norm(norm: nn.GroupNorm, x: Tensor, num_frames: int, span: Span) -> Tensor:
    """GroupNorm with statistics of each frame or of the whole clip; x: (b f) c h w.

    On a CPU, torch 2.11 writes the gradient of an x that needs none to address 0 where channels come last.
    """
    learns = torch.is_grad_enabled() and norm.weight.requires_grad
    if x.device.type == "cpu" and learns and not x.requires_grad:
        x = x.contiguous()
    return norm(x) if span == "frame" else fold(norm(unfold(x, num_frames)))


def resnet(block: Any, x: Tensor, step: Pass) -> Tensor:
    """A residual block; the time embedding is projected once a clip, not once a frame. x: (b f) c h w."""
    time = block.time_emb_proj(block.nonlinearity(step.time)).repeat_interleave(step.num_frames, dim=0)
    frames = 1 if step.resnet_norm == "frame" else step.num_frames  # a number that changes compiles anew
    return step.run(residual_block, block, x, with_rows(time, len(x)), frames, step.resnet_norm)


def residual_block(block: Any, x: Tensor, time: Tensor, num_frames: int, span: Span) -> Tensor:
    """Two convolutions, each after norm and nonlinearity; x: (b f) c h w, time: (b f) c.

    num_frames counts only where the norm spans the clip.
    """
    residual = x if block.conv_shortcut is None else block.conv_shortcut(x)
    x = block.conv1(block.nonlinearity(group_norm(block.norm1, x, num_frames, span)))
    x = x + rearrange(time, "b c -> b c 1 1")
    x = block.nonlinearity(group_norm(block.norm2, x, num_frames, span))
    x = residual + block.conv2(block.dropout(x))
    return x if block.output_scale_factor == 1 else x / block.output_scale_factor


def upsample(block: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbor to `size` (height, width), then the block's convolution; x: (b f) c h w."""
    if x.numel() * 4 > INDEX_LIMIT:
        x = x.contiguous()
    return block.conv(F.interpolate(x, size=size, mode="nearest"))


def in_order(block: Any, motions: Iterable[Any] = ()) -> list[tuple[Any, Any, Any]]:
    """(resnet, attention or None, motion block or None) of a down or up block, in the order they run."""
    count = len(block.resnets)
    attentions = list(getattr(block, "attentions", None) or [None] * count)
    return list(zip(block.resnets, attentions, [*motions] or [None] * count, strict=True))


def layer(parts: tuple[Any, Any, Any], x: Tensor, step: Pass) -> Tensor:
    """A resnet, then attention, then motion, as far as they are there; x: (b f) c h w."""
    if not (step.recompute and torch.is_grad_enabled()):
        return _layer(parts, x, step)
    blocks = getattr(parts[1], "transformer_blocks", ())
    prompts = [next(step.prompts) for block in blocks if block.attn2 is not None]

    def again(x: Tensor, time: Tensor) -> Tensor:  # runs twice: each time with all its prompts before it
        return _layer(parts, x, replace(step, time=time, prompts=iter(prompts), recompute=False))

    return checkpoint(again, x, step.time, use_reentrant=False)


def _layer(parts: tuple[Any, Any, Any], x: Tensor, step: Pass) -> Tensor:
    block, attention, motion = parts
    x = resnet(block, x, step)
    x = x if attention is None else transform(attention, x, step)
    return x if motion is None else motion(x, step.num_frames, step.run)


def down_layers(model: Any, motion: Any = None) -> Iterator[Any]:
    """The way down: layers (resnet, attention, motion) and single downsamplers, in the order they run."""
    for level, block in enumerate(model.down_blocks):
        yield from in_order(block, motion.at("down", level) if motion is not None else ())
        yield from block.downsamplers or ()


def down_walk(model: Any, motion: Any, x: Tensor, step: Pass, branch: int | None = None) -> list[Tensor]:
    """All outputs of the down blocks, the input first: what up blocks and ControlNets take.

    branch: the last of them that is computed; None: all.
    """
    outputs = [x]
    for part in islice(down_layers(model, motion), branch):
        x = layer(part, x, step) if isinstance(part, tuple) else part(x)
        outputs.append(x)
    return outputs


def mid_walk(block: Any, motion: Any, x: Tensor, step: Pass) -> Tensor:
    """The middle: resnet, then attention, motion, resnet; x: (b f) c h w."""
    motions = list(motion.at("mid", 0)) if motion is not None else []
    attentions = list(block.attentions)
    x = resnet(block.resnets[0], x, step)
    for i, (attention, after) in enumerate(zip(attentions, block.resnets[1:], strict=True)):
        x = x if attention is None else transform(attention, x, step)
        x = motions[i](x, step.num_frames, step.run) if motions else x
        x = resnet(after, x, step)
    return x


def up_layers(model: Any, motion: Any = None) -> Iterator[tuple[Any, Any]]:
    """The way up: for each layer, the upsamplers before it and (resnet, attention, motion)."""
    upsamplers: Any = ()
    for level, block in enumerate(getattr(model, "up_blocks", ())):
        for parts in in_order(block, motion.at("up", level) if motion is not None else ()):
            yield upsamplers, parts
            upsamplers = ()
        upsamplers = block.upsamplers or ()


def up_walk(
    model: Any, motion: Any, x: Tensor, skips: list[Tensor], step: Pass, deep: Deep | None = None
) -> Tensor:
    """The last up layers, as many as `skips`, which they take from the end; x: (b f) c h w."""
    for upsamplers, parts in list(up_layers(model, motion))[-len(skips) :]:
        if deep is not None and deep.branch == len(skips) - 1:
            deep.kept = x
        for upsampler in upsamplers:
            x = upsample(upsampler, x, (skips[-1].shape[-2], skips[-1].shape[-1]))
        x = layer(parts, torch.cat([x, with_rows(skips.pop(), len(x))], dim=1), step)
    return x


def cross_attentions(model: Any) -> list[Any]:
    """Every cross-attention of a U-Net or ControlNet in walk order: down, mid, up."""
    blocks = [*model.down_blocks, model.mid_block, *getattr(model, "up_blocks", ())]
    return [a for block in blocks for t in getattr(block, "attentions", None) or () for a in _told(t)]


def _told(transformer: Any) -> list[Any]:
    """The cross-attentions of one spatial transformer, which may be None."""
    blocks = getattr(transformer, "transformer_blocks", ())
    return [block.attn2 for block in blocks if block.attn2 is not None]


def in_walk(
    model: Any, prompts: Sequence[Sequence[Prompt]], branch: int | None = None
) -> Iterator[Sequence[Prompt]]:
    """The prompts of one cross-attention after the other; there must be as many as the model has.

    branch: of a walk that leaves out what is deeper than this skip connection.
    """
    if len(prompts) != (count := len(cross_attentions(model))):
        raise ValueError(f"prompts for {len(prompts)} cross-attentions, the model has {count}")
    if branch is None:
        return iter(prompts)
    down = [part for part in islice(down_layers(model), branch) if isinstance(part, tuple)]
    up = [parts for _, parts in up_layers(model)][-branch - 1 :]
    first, last = (sum(len(_told(attention)) for _, attention, _ in parts) for parts in (down, up))
    return iter([*prompts[:first], *prompts[count - last :]])


def embed_time(model: Any, t: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """The time embedding, b c; t: 0-d or (b,)."""
    return model.time_embedding(model.time_proj(t.expand(batch)).to(dtype))
