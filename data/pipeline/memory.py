"""Freed memory stays with the process, up to a bound: the next image or tensor goes where the last one was.

Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, under which the C library gives the pages of every decoded image and every
large tensor back to the kernel and gets them anew, zeroed, for the next one. That took a fifth of the time of downloading
photographs, and made drawing images with torch 2.4 times slower. So every process that makes parts asks for this first.
"""

import ctypes
from contextlib import suppress
from functools import cache

# glibc's malloc.h; the threshold for mapping is at most 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 1 << 27, 1 << 25


@cache
def keep_freed_memory() -> None:
    """Once a process: keep up to 128 MiB of freed memory, and take pieces of up to 32 MiB from it. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, MAPPED)
