"""A view as its readers see it: which pairs it keeps."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.pairs import PAIR
from data.pipeline.artifacts import Artifact

VIEW_SCHEMA = pa.schema(
    [("key", pa.string()), ("caption_index", pa.int32()), ("keep", pa.bool_()), ("reason", pa.string())]
)


def view_counts(view: pa.Table) -> dict[str, int]:
    """Pairs and samples in all and kept (a sample is kept when one of its pairs is), and pairs dropped by reason."""
    kept = view.filter(view["keep"])
    counts = {
        "pairs": len(view), "kept_pairs": len(kept),
        "samples": pc.count_distinct(view["key"]).as_py(), "kept_samples": pc.count_distinct(kept["key"]).as_py(),
    }  # fmt: skip
    for entry in pc.value_counts(view["reason"].drop_null()).to_pylist():
        counts[f"dropped_{entry['values']}_pairs"] = entry["counts"]
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped_"))
    assert counts["pairs"] == counts["kept_pairs"] + dropped, f"pairs do not add up: {counts}"
    return counts


def kept_pairs(view: Artifact) -> pa.Table:
    """(key, caption_index) of every pair the view keeps, in order."""
    tables = [pq.read_table(view.folder / f"{receipt.name}.parquet") for receipt in view.receipts()]
    table = pa.concat_tables(tables)
    return table.filter(pc.field("keep")).select(PAIR)
