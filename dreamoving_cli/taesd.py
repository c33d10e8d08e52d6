"""TAESD: a small autoencoder for Stable Diffusion's latents, for previews and for decoding in little time.

pack = with_taesd(open_pack(source))      # decodes by it from now on
"""

from dataclasses import replace

from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor

from dreamoving_cli.models.checkpoints.assemble import STATISTICS, prefixed
from dreamoving_cli.models.checkpoints.files import Part, read_tensors
from dreamoving_cli.models.config import VaeConfig
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.weights import weight_paths

TAESD = "preview.taesd"  # in models.lock
CONFIG = VaeConfig.model_validate({"class": "AutoencoderTiny"})


def read_taesd() -> tuple[dict[str, Tensor], str]:
    """Its weights in our names, without statistics of latents, and the file's name."""
    file = weight_paths([TAESD])[TAESD]
    return prefixed("vae", read_tensors(Part(file))), str(file)


def with_taesd(pack: Pack) -> Pack:
    """The same pack, whose latents TAESD decodes; its networks are still empty."""
    assert pack.weights is not None, "this pack was made here"
    with init_empty_weights(include_buffers=False):
        vae = VAE(CONFIG)
    known, own = {name: vae.get_buffer(name) for name in STATISTICS}, pack.weights.read

    def read(name: str) -> tuple[dict[str, Tensor], str]:
        if name != "vae":
            return own(name)  # type: ignore[return-value]
        state, source = read_taesd()
        return state | known, source

    return replace(pack, vae=vae, weights=replace(pack.weights, read=read))
