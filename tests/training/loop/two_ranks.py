"""One of a launcher's processes: a contrastive gradient over all of them, then a training in which only the clocks differ."""

import sys
from pathlib import Path

import torch
from fake_task import SETTINGS, FakeTask
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from training.loop.ranks import rank_and_ranks
from training.loop.trainer import Trainer
from training.tasks.clip import contrastive


class Towers(nn.Module):
    """Two towers and a scale, from rows (n, 8) to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image, self.text = (nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return normalize(x[:, :4] @ self.image, dim=-1), normalize(x[:, 4:] @ self.text, dim=-1), self.scale


def gradients(model: nn.Module, rank: int, ranks: int) -> list[torch.Tensor]:
    rows = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    contrastive(*model(rows[rank::ranks])).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, (rank, ranks) = Path(sys.argv[1]), rank_and_ranks()
    # One process saves at every step, the other never, as if their clocks went apart.
    settings = SETTINGS.model_copy(update={"batch": 8})
    trainer = Trainer(FakeTask(), settings, 0, folder / "state", 1e9 if rank else 1e-9)
    trainer.run()
    torch.save(gradients(DistributedDataParallel(Towers()), rank, ranks), folder / f"gradients-{rank}.pt")
