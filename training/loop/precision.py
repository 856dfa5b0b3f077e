"""How computations run: precision, attention kernel, device."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_lock = threading.Lock()
_chosen = contextlib.ExitStack()  # holds torch's choice of the kernel while anybody is inside
_inside = 0


@contextlib.contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """On the CPU the plain attention kernel, whose backward is three times faster there; elsewhere what torch chooses.

    The last bits depend on the kernel, and torch's choice is one for all threads of the process. So whole trainings and whole drawings
    are run inside, threads that read ahead included; the first to enter chooses, and the last to leave gives the choice back."""
    global _inside
    if device.type != "cpu":
        yield
        return
    with _lock:
        if not _inside:
            _chosen.enter_context(sdpa_kernel(SDPBackend.MATH))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _chosen.close()


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast to the precision, in this thread."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
