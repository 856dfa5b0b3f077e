"""One limit per host over all workers: how many requests at a time, how many a second, and not before when.

Threads and processes that open the same file share the limits; nothing has to be started or cleared away. A place at a host is a
locked byte of the file. The kernel drops a process's locks when it dies, so a killed worker's places are free at once. Hosts are
hashed to slots; two hosts in one slot share their limits, which makes them slower and never ruder. A slot's 16 bytes hold, in
seconds of the wall clock, when its next request may start and until when the host asked to be left alone (Retry-After).

The locks are open-file-description locks (Linux), which also keep apart two openings of the file in one process; elsewhere they are
POSIX locks, where a process must open the file only once. They reach over machines that share the folder with POSIX locks.
"""

import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOTS = 1 << 16
SLOT = struct.Struct("<dd")  # next start, held until
MAX_PLACES = 256
# Byte ranges that are locked and never written: one byte a slot guards its two times, MAX_PLACES a slot are its places.
GUARDS = 1 << 32
PLACES = 1 << 33
LONGEST_HOLD = 86_400.0  # seconds; also what protects against a clock that was set back
FIRST_POLL, LONGEST_POLL = 0.002, 0.05  # seconds between two looks for a place that another process may have freed
KEPT_SECONDS = 0.5  # a process passes a place on among its own threads for so long
LEFT_SECONDS = 0.02  # and then leaves it to other processes for so long


class HostHeld(Exception):
    """The host asked to be left alone for longer than the caller will wait."""


class HostLimits:
    """`concurrency` requests at a time (1 to 256) and `rate` requests a second (None: no limit) for each host."""

    def __init__(self, path: Path, concurrency: int, rate: float | None = None) -> None:
        if not 1 <= concurrency <= MAX_PLACES:
            raise ValueError(f"between 1 and {MAX_PLACES} requests at a time are allowed for a host, got {concurrency}")
        if rate is not None and rate <= 0:
            raise ValueError(f"a rate in requests a second must be above 0, got {rate}")
        self.path, self.concurrency, self.rate = path, concurrency, rate
        self._opening = threading.Lock()
        self._opened: _OpenFile | None = None

    @contextmanager
    def place(self, host: str, max_wait: float) -> Iterator[float]:
        """Keep one of the host's places; waits until one is free and the next request is due. Gives the seconds waited for holds.

        Raises HostHeld at once when the host is held for more than `max_wait` seconds; several holds count together.
        """
        slot = zlib.crc32(host.encode()) % SLOTS
        file = self._file()
        number = file.take(slot, self.concurrency)
        try:
            waited = 0.0
            while True:
                waited += self._wait_while_held(file, slot, host, max_wait - waited)
                if self.rate is None:
                    break
                early = file.reserve(slot, self.rate, self.concurrency) - time.time()
                if early > 0:
                    time.sleep(early)
                if file.held_for(slot) <= 0:  # a hold that came meanwhile is waited for, and a new start reserved
                    break
            yield waited
        finally:
            file.release(slot, number)

    def hold(self, host: str, seconds: float) -> None:
        """No request to the host, from any worker, may start within the next `seconds` (at most a day)."""
        self._file().hold(zlib.crc32(host.encode()) % SLOTS, seconds)

    @staticmethod
    def _wait_while_held(file: "_OpenFile", slot: int, host: str, max_wait: float) -> float:
        waited = 0.0
        while (held := file.held_for(slot)) > 0:
            if waited + held > max_wait:
                raise HostHeld(
                    f"{host} asked to be left alone for {held:.0f} s more; {max_wait:.0f} s are waited at most"
                )
            time.sleep(held)
            waited += held
        return waited

    def _file(self) -> "_OpenFile":
        """The open file of this process: a forked child must not share its parent's locks."""
        if self._opened is None or self._opened.process != os.getpid():
            with self._opening:
                if self._opened is None or self._opened.process != os.getpid():
                    self._opened = _OpenFile(self.path)
        return self._opened


class _SlotPlaces:
    """What this process knows of one slot: places it has locked, since when, and threads that wait for one."""

    def __init__(self, lock: threading.Lock) -> None:
        self.taken: dict[int, float] = {}
        self.left: dict[int, float] = {}  # places left to the other processes, and when that was
        self.waiting = 0
        self.handed: list[int] = []
        self.freed = threading.Condition(lock)


class _OpenFile:
    """The file as one process has it open; the kernel keeps its places from other openings, the tables of places from its own threads."""

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        # Always the same size, so whoever comes first changes nothing for the others.
        os.ftruncate(self._fd, SLOTS * SLOT.size)
        self._lock = threading.Lock()
        self._places: dict[int, _SlotPlaces] = {}

    def __del__(self) -> None:
        os.close(self._fd)

    def take(self, slot: int, concurrency: int) -> int:
        """The number of a place that is this thread's own from now on; waits for one."""
        with self._lock:
            places = self._places.get(slot) or self._places.setdefault(slot, _SlotPlaces(self._lock))
            number = self._lock_one(places, slot, concurrency)
            pause = FIRST_POLL
            places.waiting += 1
            while number is None:
                places.freed.wait(pause)
                number = places.handed.pop() if places.handed else self._lock_one(places, slot, concurrency)
                pause = min(2 * pause, LONGEST_POLL)
            places.waiting -= 1
            return number

    def release(self, slot: int, number: int) -> None:
        """Hand the place to a thread that waits, or give it back: after a while in any case, for the other processes' sake."""
        with self._lock:
            places = self._places[slot]
            if places.waiting > len(places.handed):
                if time.monotonic() - places.taken[number] < KEPT_SECONDS:
                    places.handed.append(number)
                    places.freed.notify()
                    return
                places.left[number] = time.monotonic()
            _unlock(self._fd, PLACES + slot * MAX_PLACES + number)
            del places.taken[number]
            if not places.taken and not places.waiting:
                del self._places[slot]

    def _lock_one(self, places: _SlotPlaces, slot: int, concurrency: int) -> int | None:
        now = time.monotonic()
        for number in range(concurrency):
            if number in places.taken or now < places.left.get(number, 0.0) + LEFT_SECONDS:
                continue
            if _try_lock(self._fd, PLACES + slot * MAX_PLACES + number):
                places.taken[number] = now
                return number
        return None

    def held_for(self, slot: int) -> float:
        """Seconds that the host is still to be left alone; not above 0 when it is free."""
        seconds = SLOT.unpack(os.pread(self._fd, SLOT.size, slot * SLOT.size))[1] - time.time()
        return seconds if seconds <= LONGEST_HOLD else 0.0

    def hold(self, slot: int, seconds: float) -> None:
        with self._guarded(slot):
            start, _ = self._read(slot)
            until = time.time() + max(min(seconds, LONGEST_HOLD), self.held_for(slot))
            self._write(slot, start, until)

    def reserve(self, slot: int, rate: float, concurrency: int) -> float:
        """When this request may start, in wall-clock seconds; the next one starts 1 / rate later."""
        with self._guarded(slot):
            start, until = self._read(slot)
            now = time.time()
            # Not more than the holders of places, and of those of killed workers, can have reserved: else it is an old clock's.
            if not now < start < now + (2 * concurrency + 1) / rate:
                start = now
            self._write(slot, start + 1 / rate, until)
            return start

    @contextmanager
    def _guarded(self, slot: int) -> Iterator[None]:
        with self._lock:
            _lock(self._fd, GUARDS + slot)
            try:
                yield
            finally:
                _unlock(self._fd, GUARDS + slot)

    def _read(self, slot: int) -> tuple[float, float]:
        start, until = SLOT.unpack(os.pread(self._fd, SLOT.size, slot * SLOT.size))
        return start, until

    def _write(self, slot: int, start: float, until: float) -> None:
        os.pwrite(self._fd, SLOT.pack(start, until), slot * SLOT.size)


if hasattr(fcntl, "F_OFD_SETLK"):
    _FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid (0)

    def _try_lock(fd: int, offset: int) -> bool:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _lock(fd: int, offset: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))

    def _unlock(fd: int, offset: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))

else:

    def _try_lock(fd: int, offset: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _lock(fd: int, offset: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, offset)

    def _unlock(fd: int, offset: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, offset)
