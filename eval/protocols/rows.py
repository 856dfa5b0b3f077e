"""From measured parts to the metrics table: systems scale by scale, their paired differences, real images, chance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Receipt
from eval.metrics.measure import difference
from eval.metrics.metric import Measured, Metric
from eval.protocols.part import read_measured
from eval.table import Row, Whose, chance_rows, rows_of, write_rows

FOLDER, FILE = "eval/metrics", "metrics.parquet"
Part = tuple[Whose, Mapping[Metric, Measured]]


def write_table(
    whose: Sequence[Whose], facts: Mapping[str, Any], folder: Path, receipts: Sequence[Receipt]
) -> list[str]:
    """Write the table from the parts in `folder`; `whose[i]` are the images of `receipts[i]`."""
    parts = [
        (one, read_measured(folder / f"{receipt.name}.parquet")) for one, receipt in zip(whose, receipts, strict=True)
    ]
    write_rows(folder / FILE, list(all_rows(parts, facts["seed"])), facts)
    return [FILE]


def all_rows(parts: Sequence[Part], seed: int) -> Iterator[Row]:
    """Every number of the table, in its order."""
    for whose, found in parts:
        if whose.kind == "system":
            yield from rows_of(found, whose, seed)
    scales = sorted({whose.guidance for whose, _ in parts if whose.guidance is not None})
    for scale in scales:
        systems = [part for part in parts if part[0].kind == "system" and part[0].guidance == scale]
        for (a, of_a), (b, of_b) in combinations(systems, 2):
            paired = Whose("difference", f"{a.system} - {b.system}", scale)
            yield from rows_of(difference(of_a, of_b), paired, seed)
    for whose, found in parts:
        if whose.kind == "real":
            yield from rows_of(found, whose, seed)
    yield from chance_rows(parts[0][1], seed)
