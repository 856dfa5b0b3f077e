"""Which device a worker encodes on: the CPU, or a GPU that it claims for itself."""

import fcntl
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from data.pipeline.errors import UserError
from data.pipeline.settings import ClusterSettings
from embed.settings import EmbeddingsSettings

_claimed: dict[str, int] = {}  # open descriptors of this process's GPU locks; they are freed when it ends


def gpus(device: str) -> list[str]:
    """The GPUs that this process may use for `device` (auto, cpu, cuda), by their unique names. Raises UserError where `cuda` is asked
    for and there is none."""
    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cuda" and not count:
        raise UserError(
            "embeddings.device = 'cuda', but this process sees no GPU (see nvidia-smi and CUDA_VISIBLE_DEVICES); "
            "install a torch built for it, or say device = 'cpu'"
        )
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]


def choose_device(name: str) -> torch.device:
    """A GPU where there is one, else the CPU. Dask's resource GPU says how many parts a machine may encode at once; which GPU a worker
    takes, it claims here."""
    names = gpus(name)
    if not names:
        return torch.device("cpu")
    return torch.device("cuda", claim(names, Path(tempfile.gettempdir()) / f"unclip-gpus-{os.getuid()}"))


def known_device(settings: EmbeddingsSettings, cluster: ClusterSettings) -> str:
    """cpu or cuda in place of `auto` where the workers are this machine's; a running scheduler's workers know their own."""
    if settings.device != "auto" or cluster.address is not None:
        return settings.device
    return "cuda" if gpus(settings.device) else "cpu"


def claim(names: Sequence[str], folder: Path) -> int:
    """The position of a GPU that no other process has claimed, kept until this one ends; one that is shared when all are."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for position, name in enumerate(names):
        if name in _claimed:
            return position
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _claimed[name] = descriptor
        return position
    warnings.warn(
        f"all {len(names)} GPUs are in use by other workers; cluster.workers = {len(names)} is faster", stacklevel=2
    )
    return os.getpid() % len(names)
