"""What a render is made of, in bytes: weights by the headers of their files, work by the options.

Nothing is loaded. Not here: what a memory mode makes of it (memory.py).
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreamoving_cli.caching import entering
from dreamoving_cli.conditioning import Place
from dreamoving_cli.memory import Sizes, network_stage
from dreamoving_cli.models.checkpoints.assemble import control_moves, count_values
from dreamoving_cli.models.checkpoints.files import Part, Recipe, read_shapes
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.convolution import most_kernel_bytes
from dreamoving_cli.models.vae import stable_dtype
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.sharing import STEPS_SEEN, most_held
from dreamoving_cli.windows import Windows

ACTIVATIONS = 30  # tensors of the U-Net's first width alive at once; measured
DECODER_WIDTH = {"AutoencoderTiny": 256, "AutoencoderKL": 768}  # values alive for each decoded pixel
LATENT_COPIES = 4  # latents, their sum over windows, a sampler's history, one more while stepping
STORED_BYTES = 2  # of a weight on disk


def measure(
    source: Path | Recipe, config: PackConfig, options: RenderOptions, windows: Windows, place: Place
) -> Sizes:
    """What the render is made of, from headers and options."""
    assert options.height_width is not None
    itemsize = torch.finfo(place.dtype).bits // 8
    height, width = options.height_width
    anchors = windows.anchor_frames
    activations = ACTIVATIONS + (2 * (1 + anchors) if anchors else 0)  # keys and values, with the anchors'
    weights = count_weights(source, [c.kind for c in options.all_controls if c.control_scale])
    kept = kept_bytes(source) if itemsize == 4 and not options.loras else {}
    return Sizes(
        weights=weights,
        itemsize=itemsize,
        latents=windows.num_frames * config.latent_channels * cells(config, options) * 4 * LATENT_COPIES,
        window=window_rows(config, options, windows) * widths(config)[0] * itemsize * activations,
        frame=height * width * stable_dtype(place.dtype).itemsize * DECODER_WIDTH[config.vae.kind],
        frame_pixels=height * width,
        on_cpu=place.device.type == "cpu",
        kept={name: size for name, size in kept.items() if name in weights},
        kernels=kernels(config) if itemsize == 4 and place.device.type == "cpu" else 0,
        held=held_values(source, config, options, windows) * itemsize,
        deep=deep_values(config, options, windows) * itemsize,
    )


def window_rows(config: PackConfig, options: RenderOptions, windows: Windows) -> int:
    """Latent cells of all frames of one window, in all branches of guidance."""
    return min(windows.context_frames, windows.num_frames) * cells(config, options) * branches(options)


def held_values(source: Path | Recipe, config: PackConfig, options: RenderOptions, windows: Windows) -> int:
    """Numbers in the ControlNets' residuals that wait for a later window, at most; see sharing.py."""
    kinds = [control.kind for control in options.all_controls if control.control_scale]
    if config.resnet_norm != "frame" or all(has_motion(source, config, kind) for kind in kinds):
        return 0
    area, ways = cells(config, options), branches(options)
    frame = ways * sum(area // 4**level * values for level, values in enumerate(residual_widths(config)))
    frame -= (ways - 1) * area * widths(config)[0]  # what enters the first level has not seen the text
    return most_held(windows, options.steps) * frame


def kernels(config: PackConfig) -> int:
    """Bytes of the widest convolution's transformed weights: on the way up, where a skip comes in."""
    return most_kernel_bytes(2 * max(widths(config)), max(widths(config)))


def has_motion(source: Path | Recipe, config: PackConfig, kind: str) -> bool:
    """Whether this ControlNet's residuals of a frame depend on other frames."""
    return control_moves(source, config, kind) if isinstance(source, Recipe) else config.controlnet_motion


def deep_values(config: PackConfig, options: RenderOptions, windows: Windows) -> int:
    """Numbers that full steps leave for the steps after them, at most on one device; see caching.py."""
    if not windows.full_steps:
        return 0
    channels, level = entering(config, options.cache_branch_id)
    shares = [share for step in windows.full_steps[:STEPS_SEEN] for share in windows.shared_out(step)]
    frames = max(sum(len(window) for window, _ in share) for share in shares) + windows.anchor_frames
    passes = branches(options) + (options.driver_guidance_scale > 1)
    return frames * passes * channels * (cells(config, options) // 4**level)


def residual_widths(config: PackConfig) -> list[int]:
    """Channels of a frame's residuals, level by level: of what enters a level, its layers, and the middle."""
    levels, layers = widths(config), config.unet.get("layers_per_block", 2)
    found = [first + layers * own for first, own in zip([levels[0], *levels], levels, strict=False)]
    return [*found[:-1], found[-1] + levels[-1]]


def widths(config: PackConfig) -> Sequence[int]:
    """Channels of the U-Net's levels."""
    return config.unet.get("block_out_channels", (320, 640, 1280, 1280))


def cells(config: PackConfig, options: RenderOptions) -> int:
    """Latent cells of a frame."""
    assert options.height_width is not None
    height, width = options.height_width
    return height * width // config.pixel_factor**2


def branches(options: RenderOptions) -> int:
    """Of guidance."""
    return 2 if options.guidance_scale > 1 else 1


def count_weights(source: Path | Recipe, controls: Collection[str]) -> dict[str, int]:
    """Numbers in the weights of every network that a render uses."""
    if isinstance(source, Recipe):
        return count_values(source)
    counts = {file.stem: file.stat().st_size // STORED_BYTES for file in source.glob("*.safetensors")}
    used = [f"controlnet_{kind}" for kind in controls]
    return {name: n for name, n in counts.items() if name in used or not name.startswith("controlnet_")}


def kept_bytes(source: Path | Recipe) -> dict[str, int]:
    """Bytes of U-Net and ControlNets, where what their files hold in fp16 is kept so and the rest in fp32."""
    if isinstance(source, Recipe):
        sizes = count_values(source, bytes_in_half)
    else:
        files = [*source.glob("unet.safetensors"), *source.glob("controlnet_*.safetensors")]
        sizes = {file.stem: sum(map(bytes_in_half, read_shapes(Part(file)).values())) for file in files}
    return {name: size for name, size in sizes.items() if network_stage(name) == "denoise"}


def bytes_in_half(weights: Tensor) -> int:
    """Bytes of these weights in fp16 if their file holds them so, else in fp32."""
    return weights.numel() * (2 if weights.dtype == torch.float16 else 4)
