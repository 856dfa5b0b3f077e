"""Planning a LAION-like Parquet list of 1 million rows: peak memory of ours, and of img2dataset's reader sharding the same file.

`ours` and `peer` are the peak resident memory (VmHWM, which counts Arrow's pool) of a fresh process that does nothing else. Ours also
merges repeated URLs, draws keys and splits, carries columns and digests input and shards; the reader cuts the rows as they are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, QUICK_ROWS = 1_000_000, 100_000
PER_SHARD = 10_000
BATCH = 10_000
REPEATED = 0.01
WORDS = (
    "vintage", "poster", "of", "a", "red", "wooden", "chair", "print", "wall", "art", "photo", "stock", "image", "free", "black",
    "white", "women", "men", "shirt", "large", "small", "new", "2019", "home", "garden", "kitchen", "car", "blue", "green", "the",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows instead of {ROWS:,}")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        who, table, folder = arguments.child
        print(json.dumps(measured(who, Path(table), Path(folder))))
        return
    rows = QUICK_ROWS if arguments.quick else ROWS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = folder / "laion.parquet"
        distinct = write_list(table, rows)
        size = table.stat().st_size / 1e6
        print(f"{rows:,} rows, {distinct:,} distinct URLs, {size:.0f} MB of Parquet; shards of {PER_SHARD:,}")
        ours, peer = (in_fresh_process(who, table, folder / who) for who in ("ours", "peer"))
    assert (ours["samples"], ours["pairs"]) == (distinct, rows), ours
    assert peer["samples"] == rows, peer
    for who, found in (("ours", ours), ("img2dataset", peer)):
        peak = f"{found['gb']:.2f} GB peak, {found['imports_gb']:.2f} of it imports"
        print(f"{who:12s} {peak}; {found['seconds']:.1f} s, {found['cpu']:.1f} CPU s")
    print(
        json.dumps(
            {
                "name": "plan", "unit": "GB peak", "ours": ours["gb"], "peer": peer["gb"], "ratio": round(peer["gb"] / ours["gb"], 3),
                "n": rows, "seconds": ours["seconds"], "cpu_seconds": ours["cpu"], "peer_seconds": peer["seconds"],
                "peer_cpu_seconds": peer["cpu"], "imports": ours["imports_gb"], "peer_imports": peer["imports_gb"],
                "limit": 1.0, "within_limit": ours["gb"] < 1.0,
            }
        )
    )  # fmt: skip


def write_list(path: Path, rows: int) -> int:
    """Write the list, a batch at a time; returns how many different URLs it holds. One row in a hundred repeats an earlier URL."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [
            ("SAMPLE_ID", pa.int64()), ("URL", pa.string()), ("TEXT", pa.string()), ("HEIGHT", pa.int32()), ("WIDTH", pa.int32()),
            ("LICENSE", pa.string()), ("NSFW", pa.string()), ("similarity", pa.float64()), ("pwatermark", pa.float32()),
        ]
    )  # fmt: skip
    distinct = 0
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            names = np.arange(start, start + n)
            repeats = rng.random(n) < REPEATED if start else np.zeros(n, bool)
            # Every repeat is of a row that is no repeat itself: the first batch has none.
            names[repeats] = rng.integers(0, BATCH, repeats.sum())
            distinct += n - int(repeats.sum())
            words = rng.integers(0, len(WORDS), (n, 12))
            lengths = rng.integers(3, 13, n)
            columns = {
                "SAMPLE_ID": names,
                "URL": [f"https://cdn{i % 9973}.example.com/img/{i * 2654435761 % 2**40:x}/{i}-large.jpg?w=640" for i in names.tolist()],
                "TEXT": [" ".join(WORDS[w] for w in row[:k]) for row, k in zip(words.tolist(), lengths.tolist(), strict=True)],
                "HEIGHT": rng.integers(64, 2000, n).astype(np.int32),
                "WIDTH": rng.integers(64, 2000, n).astype(np.int32),
                "LICENSE": ["?"] * n,
                "NSFW": np.array(["UNLIKELY", "UNSURE", "NSFW"])[rng.integers(0, 3, n)].tolist(),
                "similarity": rng.uniform(0.28, 0.45, n),
                "pwatermark": rng.random(n).astype(np.float32),
            }  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema))
    return distinct


def in_fresh_process(who: str, table: Path, folder: Path) -> dict[str, float]:
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.plan", "--child", who, str(table), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(who: str, table: Path, folder: Path) -> dict[str, float]:
    """Run one of the two in this process; its result with seconds, CPU seconds and peak GB."""
    if who == "ours":
        import data.sources.source  # noqa: F401  (imports are not timed, for either)
    else:
        import img2dataset.reader  # noqa: F401
    before, start, cpu = peak_gb(), time.perf_counter(), time.process_time()
    found = plan_ours(table, folder) if who == "ours" else shard_with_img2dataset(table, folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return found | {
        "seconds": round(seconds, 2),
        "cpu": round(cpu, 2),
        "gb": round(peak_gb(), 3),
        "imports_gb": round(before, 3),
    }


def plan_ours(table: Path, folder: Path) -> dict[str, float]:
    from data.dataset.plan import freeze_plan
    from data.dataset.settings import DatasetSettings
    from data.sources.settings import TableSettings
    from data.sources.source import open_source

    settings = DatasetSettings(table=TableSettings(path=str(table), preset="laion"), samples_per_shard=PER_SHARD)
    return dict(freeze_plan(folder, open_source(settings, 0), settings, 0).totals)


def shard_with_img2dataset(table: Path, folder: Path) -> dict[str, float]:
    from img2dataset.reader import Reader

    carried = ["NSFW", "LICENSE", "similarity", "pwatermark", "SAMPLE_ID", "HEIGHT", "WIDTH"]
    reader = Reader(str(table), "parquet", "URL", "TEXT", None, None, carried, PER_SHARD, set(), str(folder))
    rows = 0
    for _, path in reader:
        with pa.memory_map(path) as file:
            rows += pa.ipc.open_file(file).read_all().num_rows
    return {"samples": rows}


def peak_gb() -> float:
    """Peak resident memory of this process in GB; unlike `getrusage` it does not inherit the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main()
