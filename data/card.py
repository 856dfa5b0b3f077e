"""The dataset card: what is in a dataset, for people, generated from its receipts and ledger."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from data.artifacts import Receipt, publish_bytes, sum_counts
from data.ledger import ledger_path


def write_card(folder: Path, receipts: list[Receipt]) -> list[str]:
    """Write README.md; returns the whole-artifact files that the manifest shall list."""
    counts = sum_counts(receipts)
    licences: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for receipt in receipts:
        table = pq.read_table(ledger_path(folder, receipt.name), columns=["license", "split", "reason"]).to_pylist()
        licences.update(row["license"] or "not stated by the source" for row in table if row["reason"] is None)
        splits.update(row["split"] for row in table if row["reason"] is None)
    dropped = sorted(
        (k.removeprefix("dropped_").removesuffix("_samples"), v)
        for k, v in counts.items()
        if k.startswith("dropped_") and k.endswith("_samples")
    )
    lines = [
        "# Dataset card", "",
        "Generated from the ledger; `plan.json` holds the settings, `ledger/` one row per candidate, `manifest.json` every digest.", "",
        "| | samples | pairs |", "|---|---|---|",
        f"| planned | {counts['planned_samples']} | {counts['planned_pairs']} |",
        *(f"| dropped: {name} | {n} | {counts[f'dropped_{name}_pairs']} |" for name, n in dropped),
        f"| stored | {counts['stored_samples']} | {counts['stored_pairs']} |", "",
        "| split | stored samples |", "|---|---|", *(f"| {name} | {n} |" for name, n in sorted(splits.items())), "",
        "| licence | stored samples |", "|---|---|", *(f"| {name.replace('|', '/')} | {n} |" for name, n in sorted(licences.items())), "",
        "Images whose server sent an X-Robots-Tag that opts out of such use were not stored,",
        "unless `dataset.fetch.respect_robots_tag` says otherwise.", "",
    ]  # fmt: skip
    publish_bytes(folder / "README.md", "\n".join(lines).encode())
    return ["README.md", "plan.parquet"]
