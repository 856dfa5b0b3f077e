"""What a run has cost: wall time, processor time and memory of every command, kept in its logs, outside every digest."""

import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import publish_json

LOG, SUMMARY = "cost.jsonl", "cost.json"


@dataclass(frozen=True)
class Cost:
    """One command, from `start` to `end` (seconds since the epoch); processor seconds of it and of its worker processes; the memory
    (MB) of the largest of these processes."""

    name: str
    start: float
    end: float
    cpu_s: float
    peak_rss_mb: float


@contextmanager
def measured(logs: Path, name: str) -> Iterator[None]:
    """Log what the block costs, also when it fails; nothing where the run has no logs yet."""
    start, before = time.time(), _cpu_seconds()
    try:
        yield
    finally:
        if logs.is_dir():
            kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
            with suppress(OSError):  # a full disk, or a run that is kept read-only: no reason to fail
                _append(logs, Cost(name, start, time.time(), round(_cpu_seconds() - before, 2), round(peak, 1)))


def read_costs(logs: Path) -> list[Cost]:
    """Every command that was logged, in the order in which they ended. A line that a kill cut short is left out."""
    path = logs / LOG
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Cost(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def summary(costs: Sequence[Cost]) -> dict[str, Any]:
    """Commands by name in order of their first start (repeats added up), and in all. Wall time in all counts what ran side by side
    once, and no pause between commands."""
    stages: dict[str, dict[str, Any]] = {}
    for cost in sorted(costs, key=lambda c: c.start):
        row = stages.setdefault(cost.name, {"name": cost.name, "wall_s": 0.0, "cpu_s": 0.0, "peak_rss_mb": 0.0})
        row["wall_s"] = round(row["wall_s"] + cost.end - cost.start, 2)
        row["cpu_s"] = round(row["cpu_s"] + cost.cpu_s, 2)
        row["peak_rss_mb"] = max(row["peak_rss_mb"], cost.peak_rss_mb)
    return {
        "stages": list(stages.values()), "wall_s": round(_covered(costs), 2),
        "cpu_s": round(sum(c.cpu_s for c in costs), 2), "peak_rss_mb": max((c.peak_rss_mb for c in costs), default=0.0),
    }  # fmt: skip


def cost_text(costs: Sequence[Cost]) -> str:
    """A table for the terminal."""
    told = summary(costs)
    rows = [(s["name"], s["wall_s"], s["cpu_s"], s["peak_rss_mb"]) for s in told["stages"]]
    rows.append(("in all", told["wall_s"], told["cpu_s"], told["peak_rss_mb"]))
    width = max(len(row[0]) for row in rows) + 2
    lines = [f"{'command':<{width}}{'wall':>10}{'CPU':>10}{'largest process':>18}"]
    lines += [f"{name:<{width}}{wall:>8,.0f} s{cpu:>8,.0f} s{peak:>15,.0f} MB" for name, wall, cpu, peak in rows]
    return "\n".join(lines)


def _covered(costs: Sequence[Cost]) -> float:
    """Seconds in which at least one command ran."""
    total, until = 0.0, float("-inf")
    for cost in sorted(costs, key=lambda c: c.start):
        total += max(0.0, cost.end - max(cost.start, until))
        until = max(until, cost.end)
    return total


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _append(logs: Path, cost: Cost) -> None:
    with (logs / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(cost)) + "\n")
    publish_json(logs / SUMMARY, summary(read_costs(logs)))
