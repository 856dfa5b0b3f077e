"""A training task of a few lines, and a program that trains it (for tests that kill it)."""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.loop.trainer import Trainer
from training.seeds import seeded
from training.tables import OptimiserSettings


class FakeTask:
    """Regress a noisy linear map with a network that has dropout, batch statistics and a parameter without gradient."""

    name = "fake"

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(9))
        with seeded("fake"):
            self.network: nn.Module = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)
            )
        self.network.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(epoch).permutation(self.size)

    def fetch(self, items: NDArray[np.int64]) -> Tensor:
        return self.x[items]

    def loss(self, model: nn.Module, batch: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
        x = batch
        y = x.sum(1, keepdim=True) + 0.01 * torch.randn(len(x), 1, generator=generator)
        return (model(x) - y).square().mean()

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        torch.randn(3)  # a validation that uses the global generator must not change the training
        return {"error": (network(self.x) - self.x.sum(1, keepdim=True)).square().mean().item()}


SETTINGS = OptimiserSettings(
    steps=12, batch=4, accumulation=2, lr=0.02, warmup=3, log_every=5, validate_every=4, precision="fp32"
)


def trainer(folder: Path, steps: int = 12, checkpoint_seconds: float = 1e9) -> Trainer[Tensor]:
    settings = SETTINGS.model_copy(update={"steps": steps})
    return Trainer(FakeTask(), settings, 0, folder, checkpoint_seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests that compare with it
    trainer(Path(sys.argv[1]), checkpoint_seconds=1e-9).run()
