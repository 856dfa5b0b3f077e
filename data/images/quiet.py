"""Silence for C libraries that write to stderr and offer no switch: libtiff says up to hundreds of lines about one damaged file."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2
_one_at_a_time = threading.Lock()


@contextmanager
def silent_stderr() -> Iterator[None]:
    """The process's stderr leads nowhere while the block runs, for all its threads: keep the block short."""
    with _one_at_a_time:
        kept = os.dup(STDERR)
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, STDERR)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
