"""How a render fits into its device: memory modes, what each needs by stage, and the choice between them.

    modes = ladder("auto", batches, "cuda", tiles=True, half=False)   # from the most to the least memory
    chosen = choose("auto", modes, sizes, free_bytes, "cuda")         # the first that fits, and all below it

Sizes are estimates from file headers and options; nothing is loaded. Not here: doing it (residency.py).

All modes hold the networks of the running stage only.
high: windows at once as asked, or as many as are faster and fit; decoded frames at once as asked.
low: one window, as many frames as fit; on CUDA, where the weights of U-Net and ControlNets do not fit in 16
    bits, they are kept in 8.
min: as low, but of U-Net and ControlNets one layer at a time; on the CPU what their files hold in 16 bits is
    kept so, or, where that is not enough, in 8.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dreamoving_cli.device import FITS, GIB
from dreamoving_cli.errors import DeviceMemoryError

NAMES = ("high", "low", "min")
STAGES = {  # in the order they run -> beginnings of the networks' names
    "text": ("text_encoder",),
    "pictures": ("image_encoder", "guider"),
    "denoise": ("unet", "controlnet_"),
    "decode": ("vae",),
}
LARGEST_LAYER = 30_000_000  # numbers in Stable Diffusion's widest convolution; a quarter of a small network
TILE = 256  # pixels a side that a tiled decoder works on
TILE_PIXELS = 2 * TILE**2  # that count for one tile: what it overlaps and the picture it goes into
BASE_BYTES = int(0.9 * GIB)  # the libraries themselves; measured


@dataclass(frozen=True)
class Mode:
    """One way to run a render: how much is on the device at once."""

    name: str  # one of NAMES
    window_batch: int
    decode_batch: int
    eight_bit: bool = False  # the denoisers' weights
    half: bool = False  # on the CPU: the denoisers' weights in 16 bits between uses; loses nothing
    tiled: bool = False  # pictures are decoded in tiles, which shifts their colors a little

    @property
    def keeps_deep(self) -> bool:
        """Whether what full steps leave for others stays on the device."""
        return self.name == "high"

    def __str__(self) -> str:
        windows = f"{self.window_batch} windows denoised, " if self.window_batch > 1 else ""
        batch = f"{windows}{self.decode_batch} frame{'s' if self.decode_batch > 1 else ''} decoded at once"
        more = [("8-bit weights", self.eight_bit), ("16-bit weights", self.half), ("in tiles", self.tiled)]
        return ", ".join([f"{self.name}: {batch}", *(text for text, on in more if on)])


@dataclass(frozen=True)
class Sizes:
    """What a render is made of, in bytes and numbers, known before anything is loaded."""

    weights: Mapping[str, int]  # numbers in each network
    itemsize: int  # bytes of one while computing
    latents: int  # bytes: of the whole clip
    window: int  # bytes while one window is denoised
    frame: int  # bytes while one frame is decoded
    frame_pixels: int
    on_cpu: bool  # the device is the CPU: all weights, and the libraries, are in its memory
    kept: Mapping[str, int] = field(default_factory=dict)  # bytes of each denoiser, kept as `Mode.half` says
    held: int = 0  # bytes that one batch of windows leaves for the next
    kernels: int = 0  # bytes of convolutions' weights while they are in another form
    deep: int = 0  # bytes that full steps leave for the steps after them

    @property
    def half_saves(self) -> bool:
        """Whether files hold some of what computes in 32 bits in 16."""
        return any(size < self.itemsize * self.weights[name] for name, size in self.kept.items())


def ladder(
    asked: str, batches: tuple[Sequence[int], int], device: str, *, tiles: bool, half: bool
) -> list[Mode]:
    """The modes that `--vram asked` may use, from the most to the least memory; those below come last.

    batches: numbers of windows at once to try in `high`, the most first, and frames at once. tiles: the
    decoder can work in tiles. half: some weights are stored in 16 bits and used in 32.
    """
    windows, frames = batches
    small = Mode("min", 1, 1, half=half and device == "cpu")
    modes = [replace(small, decode_batch=n) for n in halved(frames)] if asked == "min" else [small]
    if asked != "min":
        lows = [Mode("low", 1, n) for n in halved(frames)]
        modes = [*lows, *([Mode("low", 1, 1, eight_bit=True)] if device == "cuda" else []), *modes]
    if asked in ("auto", "high"):
        modes = [*(Mode("high", count, frames) for count in windows), *modes]
    if tiles:
        modes.append(replace(small, tiled=True))
    if device == "cpu":
        modes.append(replace(modes[-1], eight_bit=True, half=False))
    return modes


def choose(asked: str, modes: Sequence[Mode], sizes: Sizes, free: int, where: str) -> list[Mode]:
    """The first mode that fits into `free` bytes, and all below it to fall back on; refuses if none fits.

    A mode that was asked for by name is not exchanged for a lower one here.
    """
    allowed = [mode for mode in modes if asked in ("auto", mode.name)]
    for mode in allowed:
        if need(mode, sizes) <= free:
            return list(modes[modes.index(mode) :])
    least = f"{need(allowed[-1], sizes) / GIB:.1f} GiB"
    remedy = FITS if asked in ("auto", "min") else f"Leave out --vram {asked}, or give --vram min. {FITS}"
    way = "" if asked == "auto" else f" with --vram {asked}"
    raise DeviceMemoryError(
        f"this render needs about {least}{way}, {where} has {free / GIB:.1f} GiB free", remedy
    )


def need(mode: Mode, sizes: Sizes) -> int:
    """Bytes of the largest stage."""
    return max(stage_need(mode, sizes, stage) for stage in STAGES)


def stage_need(mode: Mode, sizes: Sizes, stage: str) -> int:
    """Bytes on the device while this stage runs."""
    denoising = sizes.window * mode.window_batch + sizes.held + sizes.kernels
    denoising += sizes.deep if mode.keeps_deep or sizes.on_cpu else 0
    work = {"denoise": denoising, "decode": _decoding(mode, sizes)}.get(stage, 0)
    base = BASE_BYTES if sizes.on_cpu else 0
    return base + sizes.latents + work + sum(_resident(mode, sizes, stage))


def network_stage(name: str) -> str:
    """The stage that a network works in, by its name in the pack."""
    return next(stage for stage, names in STAGES.items() if name.startswith(names))


def _resident(mode: Mode, sizes: Sizes, stage: str) -> Iterator[int]:
    """Bytes of each network's weights that are on the device in this stage."""
    denoises = stage == "denoise"
    streamed = mode.name == "min" and denoises and not sizes.on_cpu
    size = 1 if mode.eight_bit and denoises else sizes.itemsize
    for name, count in sizes.weights.items():
        if network_stage(name) != stage:
            continue
        if mode.half and name in sizes.kept:
            yield sizes.kept[name]
        else:
            yield size * (min(count // 4, LARGEST_LAYER) if streamed else count)


def _decoding(mode: Mode, sizes: Sizes) -> int:
    share = min(TILE_PIXELS / sizes.frame_pixels, 1.0) if mode.tiled else 1.0
    return int(sizes.frame * mode.decode_batch * share)


def halved(count: int) -> list[int]:
    """count, half of it, ... down to 1."""
    return [count, *halved(count // 2)] if count > 1 else [1]
