"""Fault injection: a process kills itself with SIGKILL at a named boundary, when a test asks for it.

`UNCLIP_FAULT=receipt` kills at every boundary called `receipt`; `UNCLIP_FAULT=receipt@00001` only for part 00001.
`UNCLIP_FAULT_ENOSPC=shards` makes the next write of that kind fail with a full disk instead.
"""

import errno
import os
import signal


def boundary(name: str, part: str = "") -> None:
    """Mark a point between two durable steps; tests kill here and expect a rerun to give the same bytes."""
    fault = os.environ.get("UNCLIP_FAULT")
    if fault and fault in (name, f"{name}@{part}"):
        os.kill(os.getpid(), signal.SIGKILL)
    full = os.environ.get("UNCLIP_FAULT_ENOSPC")
    if full and full in (name, f"{name}@{part}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
