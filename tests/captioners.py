"""Captioners with random weights, for tests."""

import torch

from dreamoving_cli.models.minigpt.config import CaptionerConfig, VisionConfig
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.models.minigpt.tokenizer import learn_tokenizer

SENTENCES = ["a woman is dancing before a plain red background", "describe this frame in a detailed manner"]
WHOLE = ("<p>", "</p>", "[grounding]", "{", "}", *(f"<{number}>" for number in range(0, 101, 20)))


def random_captioner(seed: int = 0) -> Captioner:
    """A captioner of 28 pixels that says something in ten tokens."""
    tokenizer = learn_tokenizer(SENTENCES, WHOLE, 420)
    llama = {
        "vocab_size": len(tokenizer.pieces), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = VisionConfig(side=28, width=32, depth=2, heads=2)
    config = CaptionerConfig(name="random", vision=vision, llama=llama, max_new_tokens=10, max_length=128)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model = Captioner(config, tokenizer)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model.eval().requires_grad_(False)
