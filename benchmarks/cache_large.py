"""A cache of many rows from a fake encoder: `python -m benchmarks.cache_large [--rows 10000000 | --quick]`.

Written and read in a process of its own, at a tenth of the rows and at all of them: what takes memory or start time by the row shows
as the difference. d = 64, parts of 10,000 rows, one caption an image. No peer: none resumes or starts from a manifest.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cache_read import BATCH, MIB, child, epoch, status_mib
from benchmarks.fake_cache import write_cache, write_view
from data.pipeline.artifacts import Artifact
from embed.reading.reader import EmbeddingReader

DIM, PART, LIMIT = 64, 10_000, 64 * MIB
ROW_BYTES = 600  # on disk


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Run in a child: write the parts, start stage and reader again, read two epochs; memory and seconds of each."""
    images = [range(i, min(i + PART, rows)) for i in range(0, rows, PART)]
    found: dict[str, Any] = {"rows": rows, "parts": len(images)}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[f"{name}_seconds"] = round(time.perf_counter() - start, 3)
        found[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 3)
        found[f"{name}_anonymous_mib"] = round(status_mib("RssAnon"))
        return result

    cache: Artifact = timed("write", lambda: write_cache(folder / "cache", images, DIM))
    timed("stage_again", lambda: write_cache(folder / "cache", images, DIM))
    timed("manifest", lambda: (cache.manifest(), cache.receipts(), cache.digest()))
    reader: EmbeddingReader = timed("reader_start", lambda: EmbeddingReader(cache, memory_limit=LIMIT))
    view = write_view(folder / "view", cache)
    narrowed = timed("reader_start_view_split", lambda: EmbeddingReader(cache, view, "train", memory_limit=LIMIT))
    assert len(reader) == rows
    wanted = np.random.default_rng(0).integers(0, rows, 256)
    place = timed("find_256_keys", lambda: reader.find([f"{i:09d}" for i in wanted]))
    assert (place == wanted).all()
    for name, chosen in (("view", narrowed), ("whole", reader)):
        peak = timed(f"read_{name}", lambda chosen=chosen: read(chosen))  # type: ignore[misc]
        found[f"read_{name}_rows_per_second"] = round(len(chosen) / found[f"read_{name}_seconds"])
        found[f"read_{name}_peak_anonymous_mib"] = round(peak)
    return found


def read(reader: EmbeddingReader) -> float:
    """An epoch in shuffled batches; returns the most anonymous memory seen, MiB."""
    peak, rows = 0.0, 0
    for i, batch in enumerate(epoch(reader)):
        rows += len(batch.keys)
        if i % 64 == 0:
            peak = max(peak, status_mib("RssAnon"))
    assert rows == len(reader) // BATCH * BATCH
    return peak


def compare(rows: int) -> dict[str, Any]:
    results = []
    for count in (rows // 10, rows):
        with tempfile.TemporaryDirectory() as temporary:
            free = shutil.disk_usage(temporary).free
            if free < 1.2 * count * ROW_BYTES:
                raise SystemExit(
                    f"{temporary}: {count:,} rows take {count * ROW_BYTES / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                    "set TMPDIR to a larger disk, or give fewer --rows"
                )
            results.append(child("cache_large", ["--measure", temporary, str(count)]))
    small, large = results
    print(f"{'':36s} {small['rows']:>14,} {large['rows']:>14,} rows")
    for name in large:
        if name != "rows":
            print(f"{name:36s} {small[name]:>14,} {large[name]:>14,}")
    return {
        "name": "cache_large", "unit": "seconds to start the reader", "ours": large["reader_start_seconds"], "peer": None,
        "ratio": None, "n": large["rows"], "tenth": small, "whole": large,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300,000 rows, within a minute")
    parser.add_argument(
        "--rows", type=int, default=10_000_000, metavar="N", help="rows in all (10,000,000: 6 GB of disk)"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        result = measure(Path(arguments.measure[0]), int(arguments.measure[1]))
    else:
        result = compare(300_000 if arguments.quick else arguments.rows)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
