"""The processes of a launcher (`torchrun`, `accelerate launch`), as it tells them in the environment."""

import os

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def rank_and_ranks() -> tuple[int, int]:
    """This process's number among all of a launcher's, and how many there are; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def of_all_ranks(rows: Tensor) -> Tensor:
    """The rows of all processes, one's after the other's, and through them gradients to where they came from; every process brings
    equally many. Without a launcher just `rows`."""
    return rows if rank_and_ranks()[1] == 1 else torch.cat(all_gather(rows))
