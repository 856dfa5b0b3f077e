"""Threads that encode batches side by side inside one worker, and how many there are.

A batch is always encoded on one thread, because the last bits of a matrix product depend on how many share it. Two batches
at once use two cores and give the bytes that one thread gives (measured: 15 % less CPU time than one batch on two threads).
On a GPU each thread has its own stream, so that the copies of one batch overlap with the matrix products of another.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from data.pipeline.settings import ClusterSettings
from embed.settings import EmbeddingsSettings

T = TypeVar("T")
AUTO_THREADS = 2  # each holds the activations of a batch: 600 MB for ViT-L-14 at batch 64


def encoding_thread_count(settings: EmbeddingsSettings, cluster: ClusterSettings, device: torch.device) -> int:
    """`embeddings.threads`, or the machine's cores shared among the workers (a remote worker is taken to have one)."""
    if settings.threads:
        return settings.threads
    if device.type == "cuda":
        return AUTO_THREADS
    if cluster.address is not None:
        return 1
    return min(AUTO_THREADS, max(1, cores() // max(1, cluster.workers)))


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


class EncodingThreads:
    """`count` threads, each with one torch thread and, on a GPU, its own stream. Closing waits for what runs."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = count, device
        self._local = threading.local()
        self._before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, "encode", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> "EncodingThreads":
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
