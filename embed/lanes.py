"""Where encoding runs inside one worker: the device it claims, and threads that encode batches side by side.

A batch is always encoded on one thread, because the last bits of a matrix product depend on how many share it. Two batches
at once use two cores and give the bytes that one lane gives (measured: 15 % less CPU time than one batch on two threads).
On a GPU each lane has its own stream, so that the copies of one batch overlap with the matrix products of another.
"""

import contextlib
import fcntl
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from data.errors import UserError
from data.settings import ClusterSettings
from embed.settings import EmbeddingsSettings

T = TypeVar("T")
AUTO_LANES = 2  # each holds the activations of a batch: 600 MB for ViT-L-14 at batch 64
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


def lane_count(settings: EmbeddingsSettings, cluster: ClusterSettings, device: torch.device) -> int:
    """`embeddings.threads`, or the machine's cores shared among the workers (a remote worker is taken to have one)."""
    if settings.threads:
        return settings.threads
    if device.type == "cuda":
        return AUTO_LANES
    if cluster.address is not None:
        return 1
    return min(AUTO_LANES, max(1, cores() // max(1, cluster.workers)))


def decode_thread_count(settings: EmbeddingsSettings, cluster: ClusterSettings, device: torch.device) -> int:
    """A CPU encodes a tenth as fast as one core decodes; a GPU waits for every core there is."""
    if settings.decode_threads:
        return settings.decode_threads
    if device.type == "cpu":
        return 1
    return min(16, max(2, cores() // max(1, cluster.workers)))


def cores() -> int:
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Lanes:
    """`width` threads, each with one torch thread and, on a GPU, its own stream. Closing waits for what runs."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self._local = threading.local()
        self._before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(width, "encode", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)  # a thread's setting becomes the default of threads that come later

    def submit(self, function: Callable[..., T], *args: Any) -> "Future[T]":
        return self._pool.submit(self._run, function, *args)

    def _run(self, function: Callable[..., T], *args: Any) -> T:
        with self._stream():
            return function(*args)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.device)
            self._local.stream.wait_stream(torch.cuda.default_stream(self.device))  # the weights' copies
        with torch.cuda.device(self.device), torch.cuda.stream(self._local.stream):
            yield
