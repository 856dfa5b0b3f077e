"""The metrics table: one row a number. `eval/metrics.parquet` is long, so that any tool can pivot it."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import canonical_json, publish_bytes
from data.pipeline.errors import UserError

METRICS_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("system", pa.string()),  # unclip, glide, "unclip - glide" (paired difference), real, chance
        ("settings_hash", pa.string()),  # of the samples artifact; "" where there is none
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
FAMILIES = {
    "fid": ("lower", "squared distance"),
    "fd": ("lower", "squared distance"),
    "clip_score": ("higher", "100 cos"),
    "clip_score_hessel": ("higher", "2.5 max(cos, 0)"),
    "r_precision": ("higher", "share"),
    "diversity": ("higher", "1 - cos"),
    "attribute_accuracy": ("higher", "share"),
    "classifier_accuracy": ("higher", "share"),
}


@dataclass(frozen=True)
class Row:
    """One number with its interval; columns as in METRICS_SCHEMA. `metric` is `family` or `family[what]`."""

    metric: str
    system: str
    value: float
    lo: float
    hi: float
    n: int
    images: int
    seed: int
    settings_hash: str = ""
    guidance: float | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def direction(self) -> str:
        return FAMILIES[self.metric.partition("[")[0]][0]

    @property
    def unit(self) -> str:
        return FAMILIES[self.metric.partition("[")[0]][1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"direction": self.direction, "unit": self.unit, "warnings": list(self.warnings)}


def publish_rows(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Write the table; `facts` (JSON types: what it was computed from) travel in its metadata."""
    schema = METRICS_SCHEMA.with_metadata({"facts": canonical_json(facts)})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.to_json() for row in rows], schema), buffer)
    publish_bytes(path, buffer.getvalue())


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts. Raises UserError when the table is missing or is not ours."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `python -m eval metrics` first")
    table = pq.read_table(path)
    if table.column_names != METRICS_SCHEMA.names or b"facts" not in (table.schema.metadata or {}):
        raise UserError(f"{path} is not a metrics table of this version; delete it and run `python -m eval metrics`")
    rows = []
    for row in table.to_pylist():
        del row["direction"], row["unit"]
        rows.append(Row(**row | {"warnings": tuple(row["warnings"])}))
    return rows, json.loads(table.schema.metadata[b"facts"])
