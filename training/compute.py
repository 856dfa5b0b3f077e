"""How computations run: precision, attention kernel, and seeds derived from seeds."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast to the precision; on the CPU with the plain attention kernel, whose backward is three times faster there."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
