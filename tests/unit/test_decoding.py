"""Laws of taking turns: every frame once and in order, however many devices and whatever memory is left."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamoving_cli.decoding import decode_turns, decoded
from dreamoving_cli.errors import UsageError
from dreamoving_cli.ranks import Ranks
from dreamoving_cli.residency import Residency


class Decoder:
    """As a residency whose memory runs short: after `calls` batches it decodes one frame at a time."""

    def __init__(self, decode_batch: int, calls: int = 99) -> None:
        self.mode = SimpleNamespace(decode_batch=decode_batch)
        self.place = SimpleNamespace(dtype=torch.float32)
        self.calls = calls

    def retried(self, stage: str, attempt: Callable[[], np.ndarray]) -> np.ndarray:
        self.calls -= 1
        if self.calls < 0:
            self.mode.decode_batch = 1
        return attempt()

    def decode(self, latents: Tensor) -> Tensor:
        """Frame number n becomes the value n of 255."""
        assert latents.shape[2] <= self.mode.decode_batch
        return latents / 127.5 - 1


def residency(decode_batch: int, calls: int = 99) -> Residency:
    return cast(Residency, Decoder(decode_batch, calls))


def clip(num_frames: int) -> Tensor:
    """1 c f h w whose values are the frames' numbers."""
    return torch.arange(num_frames).float().reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)


@given(st.integers(1, 60), st.integers(1, 9), st.lists(st.integers(0, 5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_frames_come_in_order_from_whoever_decodes_them(num_frames: int, turn: int, calls: list[int]) -> None:
    """calls: of each device, how many batches before its memory runs short."""
    count, given_by = len(calls), dict[int, list[np.ndarray]]()
    for rank in range(1, count):
        given_by[rank] = []
        others = Ranks(rank, count, give=given_by[rank].append)
        decode_turns(residency(turn, calls[rank]), clip(num_frames), others, turn)
    first = Ranks(0, count, take=lambda rank: given_by[rank].pop(0))
    seen: list[Any] = []
    batches = decoded(
        residency(turn, calls[0]), clip(num_frames), first, turn, lambda *told: seen.append(told)
    )
    frames = np.concatenate(list(batches))
    assert frames[:, 0, 0, 0].tolist() == list(range(num_frames))
    assert not any(given_by.values())
    assert seen[-1] == ("decode", num_frames, num_frames)


def test_an_error_of_the_decoder_comes_out() -> None:
    latents = clip(3).clone()
    latents[0, 0, 1] = torch.inf
    with pytest.raises(UsageError, match="--dtype fp32"):
        list(decoded(residency(2), latents, Ranks(), 2, lambda *told: None))
