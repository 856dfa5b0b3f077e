"""The metrics table: one row a number. `eval/metrics/metrics.parquet` is long, so that any tool can pivot it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import canonical_json
from data.pipeline.errors import Code, UserError
from eval.metrics.families import stored_metric
from eval.metrics.metric import Measured, Metric

Kind = Literal["system", "difference", "real", "chance"]
METRICS_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),  # how it is shown: family[what or space]
        ("family", pa.string()),
        ("space", pa.string()),  # whose features or judgement: "clip:1234abcd", "attributes", "inception"
        ("what", pa.string()),  # the attribute; null for other families
        ("scope", pa.string()),  # "one object", "two objects"; null for other families
        ("kind", pa.string()),  # system, difference (paired, "a - b"), real (images), chance (a guesser)
        ("system", pa.string()),  # a row of [systems], "a - b", real, chance
        ("settings_hash", pa.string()),  # of the folder of generated images; null where there is none
        ("guidance", pa.float64()),  # of the decoder; null for real images and chance
        ("value", pa.float64()),
        ("lo", pa.float64()),  # 95 % interval
        ("hi", pa.float64()),
        ("n", pa.int64()),  # captions that were resampled (images for a distance between sets of real images)
        ("images", pa.int64()),
        ("seed", pa.int64()),
        ("direction", pa.string()),  # which is better: higher, lower
        ("unit", pa.string()),
        ("warnings", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Whose:
    """Whose images a set holds, as the columns of the metrics table say it."""

    kind: Kind
    system: str
    guidance: float | None = None
    settings_hash: str | None = None


@dataclass(frozen=True)
class Row:
    """One number with its interval; columns as in METRICS_SCHEMA."""

    metric: Metric
    kind: Kind
    system: str
    value: float
    lo: float
    hi: float
    n: int
    images: int
    seed: int
    settings_hash: str | None = None
    guidance: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row's columns, and where its metric is defined."""
        columns = {**asdict(self), **asdict(self.metric)}
        return columns | {"metric": self.metric.name, "warnings": list(self.warnings)}


def rows_of(found: Mapping[Metric, Measured], whose: Whose, seed: int) -> list[Row]:
    """One row for each measurement."""
    return [
        Row(
            metric, whose.kind, whose.system, m.estimate.value, m.estimate.lo, m.estimate.hi, m.n, m.images, seed,
            whose.settings_hash, whose.guidance, (*m.warnings, *m.own_warnings),
        )
        for metric, m in found.items()
    ]  # fmt: skip


def chance_rows(found: Mapping[Metric, Measured], seed: int) -> list[Row]:
    """What a guesser would reach, where that is known."""
    return [
        Row(metric, "chance", "chance", m.chance, m.chance, m.chance, m.n, m.images, seed)
        for metric, m in found.items()
        if m.chance is not None
    ]


def write_rows(path: Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> None:
    """Write the table; `facts` (JSON types: what it was computed from) travel in its metadata."""
    schema = METRICS_SCHEMA.with_metadata({"facts": canonical_json(facts)})
    content = [{name: value for name, value in row.to_json().items() if name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(content, schema), path)


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts. Raises UserError when the table is missing, is not ours, or holds numbers of an unknown family."""
    table, facts = _read(path)
    return _rows(path, table.to_pylist()), facts


def read_facts(path: Path) -> dict[str, Any]:
    """What a table was computed from. Raises UserError when it is missing or is not ours."""
    return _read(path)[1]


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `python -m eval metrics` first", Code.MISSING)
    table = pq.read_table(path)
    if table.column_names != METRICS_SCHEMA.names or b"facts" not in (table.schema.metadata or {}):
        raise UserError(
            f"{path} is not a metrics table of this version; delete {path.parent} and run `python -m eval metrics`",
            Code.OTHER_VERSION,
        )
    return table, json.loads(table.schema.metadata[b"facts"])


def _rows(path: Path, content: Sequence[Mapping[str, Any]]) -> list[Row]:
    derived = ("metric", "family", "space", "what", "scope", "direction", "unit", "warnings")
    return [
        Row(
            metric=stored_metric(path, row),
            warnings=tuple(row["warnings"]),
            **{name: value for name, value in row.items() if name not in derived},
        )
        for row in content
    ]
