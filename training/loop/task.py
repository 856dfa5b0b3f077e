"""What is trained on what: the protocol of all trainings, as the loop sees them."""

from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

B = TypeVar("B")


class Task(Protocol[B]):
    """A network and the `size` items that it is trained on. `B` is a batch in memory."""

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def size(self) -> int: ...

    def order(self, epoch: int) -> NDArray[np.int64]:
        """A permutation of range(size), a pure function of the epoch."""
        ...

    def fetch(self, items: NDArray[np.int64]) -> B:
        """The batch of the given items, in that order, on the CPU. A pure function of the items, called ahead of time and from
        another thread than `loss`: it draws nothing at random."""
        ...

    def loss(self, model: nn.Module, batch: B, generator: torch.Generator, device: torch.device) -> Tensor:
        """Mean loss of a batch. Calls `model` (the network, perhaps wrapped for several processes) and draws all its noise from
        `generator` (a CPU generator)."""
        ...

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Numbers of the averaged network on held-out items."""
        ...
