"""The ledger: one row per candidate, stored or dropped with a typed reason. Volatile facts live in `log/` instead."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts import Artifact

LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source_id", pa.string()),
        ("url", pa.string()),
        ("n_captions", pa.int32()),
        ("split", pa.string()),
        ("reason", pa.string()),  # null: stored; otherwise a data.fetch.reasons.Reason
        ("http_status", pa.int32()),
        ("original_bytes", pa.int64()),
        ("original_sha256", pa.string()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("stored_bytes", pa.int64()),
        ("stored_sha256", pa.string()),
        ("license", pa.string()),
    ]
)
LOG_SCHEMA = pa.schema([("key", pa.string()), ("attempts", pa.int32()), ("detail", pa.string())])


def read_ledger(dataset: Artifact, name: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """The ledger of one part, or of all parts in order."""
    names = [name] if name else [receipt.name for receipt in dataset.receipts()]
    return pa.concat_tables([pq.read_table(ledger_path(dataset.folder, n), columns=columns) for n in names])


def ledger_path(folder: Path, name: str) -> Path:
    return folder / "ledger" / f"{name}.parquet"
