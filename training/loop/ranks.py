"""The processes of a launcher (`torchrun`, `accelerate launch`), as it tells them in the environment."""

import os


def rank_and_ranks() -> tuple[int, int]:
    """This process's number among all of a launcher's, and how many there are; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))
