"""What is trained on what: the protocol of all trainings."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Task(Protocol):
    """What is trained on what. `loss` calls `model` (the network, perhaps wrapped for several processes) on some of the
    `size` items and draws all its noise from `generator` (a CPU generator)."""

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def size(self) -> int: ...

    def order(self, epoch: int) -> NDArray[np.int64]:
        """A permutation of range(size), a pure function of the epoch."""
        ...

    def loss(
        self, model: nn.Module, items: NDArray[np.int64], generator: torch.Generator, device: torch.device
    ) -> Tensor: ...

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]: ...
