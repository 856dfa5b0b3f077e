"""Exponential moving average of a network's weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """A float32 copy of the network that follows it: average += (1 - d) * (weights - average), in place.

    d grows as (1 + n) / (10 + n) up to `decay`, n being the updates so far, so that a short run is not an average of its start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(network).float().eval().requires_grad_(False)

    def decay_at(self, n: int) -> float:
        return min(self.decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def update(self, network: nn.Module, n: int) -> None:
        """Follow the network after its update number n (from 0). Buffers (batch statistics) are copied."""
        averages: list[Tensor] = list(self.module.parameters())
        weights = [p.detach().to(a) for a, p in zip(averages, network.parameters(), strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(n))
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()
