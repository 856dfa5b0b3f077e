"""The ledger: one row per candidate and attempt at it, stored or dropped with a typed reason.

Outcomes only; volatile facts (attempts, seconds, what a server said) live in `log/`. A retry's part holds rows of keys that an
earlier part dropped: the later row is the outcome.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact

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
    """The ledger of one part as it stands; or of all parts in order, one row a key, a retried row superseding the earlier one."""
    if name is not None:
        return pq.read_table(ledger_path(dataset.folder, name), columns=columns)
    wanted = columns if columns is None or "key" in columns else [*columns, "key"]
    names = [receipt.name for receipt in dataset.receipts()]
    table = pa.concat_tables([pq.read_table(ledger_path(dataset.folder, n), columns=wanted) for n in names])
    if has_retries(dataset.folder):
        table = table.take(pa.array(last_of_each(table["key"])))
    return table if columns is None else table.select(columns)


def stored_keys(dataset: Artifact, part: str) -> pa.ChunkedArray:
    """Keys of the samples that a part stored, in its order."""
    ledger = pq.read_table(ledger_path(dataset.folder, part), columns=["key", "reason"])
    return ledger["key"].filter(pc.is_null(ledger["reason"]))


def has_retries(folder: Path) -> bool:
    return (folder / "retries").is_dir()


def last_of_each(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """Positions, ascending, of the last row of every distinct key."""
    table = pa.table({"key": keys, "row": pa.array(np.arange(len(keys)))})
    last: NDArray[np.int64] = table.group_by("key").aggregate([("row", "max")])["row_max"].to_numpy()
    return np.sort(last)


def check_counts(counts: Mapping[str, int]) -> None:
    """Planned = stored + sum of dropped, for samples and for pairs."""
    for unit in ("samples", "pairs"):
        found = sum(n for name, n in counts.items() if name.endswith(f"_{unit}") and not name.startswith("planned"))
        assert counts[f"planned_{unit}"] == found, f"{unit} do not add up: {dict(counts)}"


def dropped_counts(counts: Mapping[str, int], unit: str) -> dict[str, int]:
    """reason -> how many `samples` or `pairs` were dropped for it, without reasons that retries have emptied."""
    return {
        name.removeprefix("dropped_").removesuffix(f"_{unit}"): n
        for name, n in counts.items()
        if name.startswith("dropped_") and name.endswith(f"_{unit}") and n
    }


def ledger_path(folder: Path, name: str) -> Path:
    return folder / "ledger" / f"{name}.parquet"
