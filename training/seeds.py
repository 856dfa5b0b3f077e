"""Seeds derived from seeds."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch

CPU = torch.device("cpu")


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the run's seed, a purpose, a step ...: unrelated for unequal parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(*parts: int | str, device: torch.device = CPU) -> Iterator[None]:
    """The global generators of the CPU and of `device` seeded inside the block (weight initialisation, dropout), put back after it."""
    seed = derived_seed(*parts)
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # Not torch.manual_seed: where CUDA is unused that queues a stack trace at every call, without end.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.manual_seed(seed)
        yield
