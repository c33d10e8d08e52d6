"""Weights into networks, strictly: every name and every shape, or one sentence. Imports no diffusers."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dreamoving_cli.errors import WeightsError

State = Mapping[str, Tensor]


def is_empty(network: nn.Module) -> bool:
    """Whether the network has no weights yet."""
    return any(weights.is_meta for weights in network.parameters())


def read_weights(path: Path, shapes: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped; shapes: empty ones on the meta device instead."""
    try:
        with safe_open(path, framework="pt") as file:
            if shapes:
                sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
                return {key: torch.empty(size, device="meta") for key, size in sizes.items()}
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing", "Fetch the pack again.") from error
    except Exception as error:
        raise WeightsError(f"{path} cannot be read: {error}", "Fetch the pack again.") from error


def check_fit(
    model: nn.Module, state: State, absent: Collection[str] = (), source: str = "the weights"
) -> None:
    """Refuse a `state` with other names or shapes; those under the prefixes in `absent` may be missing."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(tuple(absent))]
    extra = [key for key in state if key not in own]
    bent = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or bent:
        problem = (
            f"{source} do not fit: missing {missing[:3]}, unexpected {extra[:3]}, other shapes {bent[:3]}"
        )
        raise WeightsError(problem, "Is it the right file?")


def load_exactly(
    model: nn.Module, state: State, absent: Collection[str] = (), source: str = "the weights"
) -> None:
    """Load `state`; parameters under the prefixes in `absent` may be missing (fresh motion blocks)."""
    check_fit(model, state, absent, source)
    model.load_state_dict(dict(state), strict=False, assign=is_empty(model))
