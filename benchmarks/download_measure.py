"""What a command costs with all processes that it starts, without their start-up: CPU and wall seconds, peak memory."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil

EVERY = 0.05  # seconds between two looks at the processes


@dataclass
class Cost:
    """Of a process that downloads counts what it does once its download threads run; of the others (scheduler, logger) what they do
    once all processes download; both until the output is complete. What came before is `start_up`.

    `memory` is the largest sum of resident sizes seen, in bytes (shared pages count each time), start-up included.
    """

    cpu: float = 0.0
    wall: float = 0.0
    start_up: float = 0.0
    memory: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        start_up, memory = max(self.start_up, other.start_up), max(self.memory, other.memory)
        return Cost(self.cpu + other.cpu, self.wall + other.wall, start_up, memory)


@dataclass
class _Processes:
    """CPU seconds of a tree's processes, by process id: now, and when they began to work."""

    processes: int
    threads: int
    now: dict[int, float] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    downloading: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)
    memory: int = 0

    def look(self, root: psutil.Process) -> None:
        memory = 0
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                pid, self.now[process.pid] = process.pid, times.user + times.system
                memory += process.memory_info().rss
                if pid not in self.downloading | self.others:
                    self.begun[pid] = self.now[pid]
                    if process.num_threads() >= self.threads:
                        self.downloading.add(pid)
        self.memory = max(self.memory, memory)
        if not self.others and len(self.downloading) >= self.processes:
            # Whoever comes later replaces a process that downloaded, and starts up until it downloads itself.
            self.others = self.now.keys() - self.downloading


def cost_of(command: Sequence[str], log: Path, processes: int, threads: int, finished: Callable[[], bool]) -> Cost:
    """Run to the end, output into `log`. A process with so many threads downloads, and as many processes do; `finished` says whether the
    output is complete."""
    cost, start = Cost(), 0.0
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
        tree, root = _Processes(processes, threads), psutil.Process(process.pid)
        while process.poll() is None:
            if not cost.wall:
                done = finished()
                with suppress(psutil.NoSuchProcess):
                    tree.look(root)
                start = start or (time.perf_counter() if tree.downloading else 0.0)
                if done:
                    cost.wall = time.perf_counter() - start
            time.sleep(EVERY)
    if process.returncode or not cost.wall:
        raise SystemExit(
            f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}"
        )
    cost.start_up = sum(tree.begun.values())
    cost.cpu, cost.memory = sum(tree.now.values()) - cost.start_up, tree.memory
    return cost


class Server:
    """The address of a running server, how many files it served, and what it cost so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._process = psutil.Process(process.pid)

    def served(self) -> int:
        with urlopen(f"{self.address}/-/served", timeout=10) as response:
            return int(response.read())

    def cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "benchmarks.download_server", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
