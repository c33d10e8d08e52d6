"""A captioner in our own form: a folder with config.json, tokenizer.model and model.safetensors."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from dreamoving_cli.models.minigpt.config import CaptionerConfig
from dreamoving_cli.models.minigpt.home import Home, settle
from dreamoving_cli.models.minigpt.model import Captioner, fast_init
from dreamoving_cli.models.minigpt.tokenizer import read_tokenizer, write_tokenizer
from dreamoving_cli.models.strict import load_exactly, read_weights
from dreamoving_cli.whole import whole_file

HERE = Home()
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.model", "model.safetensors"


def load_captioner(folder: Path, home: Home = HERE) -> Captioner:
    """The captioner in this folder, ready to describe."""
    config = CaptionerConfig.load(folder / CONFIG)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    with fast_init():
        model = Captioner(config, tokenizer)
    load_exactly(model, read_weights(folder / WEIGHTS), source=str(folder / WEIGHTS))
    return settle(model, home)


def save_captioner(model: Captioner, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the captioner; the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / CONFIG) as part:
        part.write_text(model.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    with whole_file(folder / TOKENIZER) as part:
        part.write_bytes(write_tokenizer(model.tokenizer))
    weights = {
        name: value.detach().to(dtype).contiguous().clone() for name, value in model.state_dict().items()
    }
    with whole_file(folder / WEIGHTS) as part:
        save_file(weights, part)
