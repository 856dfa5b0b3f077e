"""Reading the embedding cache: `python -m benchmarks.cache_read [--quick]`.

Beside embedding-reader (sequential float32) and a map-style DataLoader over a memory-mapped npy file (shuffled batches), on the same
vectors, from the page cache. Then once under a limit that the cache exceeds, its files dropped from the page cache before: RLIMIT_AS
bounds all that the process can map, private memory and mapped files alike, so its resident memory cannot be more. The
kernel's own page cache is outside that limit. Ten million rows: `benchmarks.cache_large`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.fake_cache import write_cache
from data.pipeline.artifacts import Artifact
from embed.reading.reader import EmbeddingReader, PairBatch
from training.loop.feed import Feed

BATCH, PART = 1024, 10_000
MIB = 2**20
TIMES = 5


class NpyPairs(Dataset[tuple[int, NDArray[np.float16]]]):
    """The usual way: item i is row i of a memory-mapped npy file. The cast comes after collating, which is quicker than before."""

    def __init__(self, path: Path) -> None:
        self.vectors = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, i: int) -> tuple[int, NDArray[np.float16]]:
        return i, self.vectors[i]


def data_loader(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for index, half in DataLoader(NpyPairs(path), batch_size=BATCH, shuffle=True, generator=generator):
        yield index, half.float()


def epoch(reader: EmbeddingReader, batch: int = BATCH) -> Iterator[PairBatch]:
    """The whole batches of an epoch, as the trainers read them."""
    steps = len(reader) // batch
    with Feed(partial(reader.order, 0), len(reader), reader.fetch, batch, steps=steps) as feed:
        for step in range(steps):
            yield feed.take(step)[0]


def embedding_reader(folder: Path, kind: str) -> Iterator[Tensor]:
    from embedding_reader import EmbeddingReader as Peer

    for vectors, _ in Peer(str(folder), file_format=kind)(batch_size=8192, show_progress=False):
        yield torch.from_numpy(vectors)


def rate(make: Callable[[], Iterator[Any]], rows: int) -> tuple[float, float]:
    """(rows a second, CPU microseconds a row) of walking through `make()`."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in make():
        pass
    return rows / (time.perf_counter() - wall), (time.process_time() - cpu) / rows * 1e6


def best_of(
    candidates: dict[str, Callable[[], Iterator[Any]]], rows: int, times: int
) -> dict[str, tuple[float, float]]:
    """Each candidate's best rate; they take turns, so that what else the machine does hits all of them."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(times):
        for name, make in candidates.items():
            found[name].append(rate(make, rows))
    return {name: (max(r for r, _ in runs), min(c for _, c in runs)) for name, runs in found.items()}


def write_peers(cache: Artifact, folder: Path) -> tuple[Path, Path, Path]:
    """The same vectors as a folder of npy files, as one npy file, and as Parquet float lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = EmbeddingReader(cache, vectors=("image",), memory_limit=0)
    whole = np.concatenate([v.numpy().astype(np.float16) for v in reader.scan(unit=False)])
    npy, lists, one = folder / "npy", folder / "lists", folder / "whole.npy"
    npy.mkdir()
    lists.mkdir()
    np.save(one, whole)
    for i, start in enumerate(range(0, len(whole), PART)):
        part = whole[start : start + PART]
        np.save(npy / f"{i:05d}.npy", part)
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.astype(np.float32).reshape(-1)), whole.shape[1])
        pq.write_table(pa.table({"embedding": column}), lists / f"{i:05d}.parquet")
    return npy, one, lists


def sequential(cache: Artifact, npy: Path, lists: Path, rows: int, times: int) -> dict[str, float]:
    reader = EmbeddingReader(cache, vectors=("image",), memory_limit=0)
    ours = torch.cat(list(reader.scan(unit=False)))
    theirs = torch.cat(list(embedding_reader(npy, "npy")))
    assert torch.equal(ours, theirs), "the two readers disagree"
    assert torch.equal(torch.cat(list(embedding_reader(lists, "parquet"))), theirs)
    del ours, theirs
    found = best_of(
        {
            "ours": lambda: reader.scan(unit=False),
            "ours, unit length": lambda: reader.scan(),
            "embedding-reader npy": lambda: embedding_reader(npy, "npy"),
        },
        rows, times,
    )  # fmt: skip
    found |= best_of({"embedding-reader parquet": lambda: embedding_reader(lists, "parquet")}, rows, 1)
    print(f"sequential float32 torch, {rows:,} rows of {reader.dim}:")
    show(found)
    ours_rate, peer_rate = found["ours"], found["embedding-reader npy"]
    return {
        "ours": ours_rate[0], "peer": peer_rate[0], "ratio": ours_rate[0] / peer_rate[0], "cpu_ratio": peer_rate[1] / ours_rate[1],
        "unit_length": found["ours, unit length"][0], "peer_parquet": found["embedding-reader parquet"][0],
    }  # fmt: skip


def training(cache: Artifact, one: Path, rows: int, times: int) -> dict[str, float]:
    start = time.perf_counter()
    held = EmbeddingReader(cache, vectors=("image",))
    opened = time.perf_counter() - start
    windowed = EmbeddingReader(cache, vectors=("image",), memory_limit=rows * held.parts.row_bytes // 4)
    whole = torch.from_numpy(np.load(one)).float()
    for batch in epoch(held):
        assert (batch.image_embedding - whole[torch.from_numpy(np.array(batch.keys, np.int64))]).abs().max() < 1e-3
    for index, vectors in data_loader(one):
        assert torch.equal(vectors, whole[index])
    del whole
    found = best_of(
        {"ours": lambda: epoch(held), "ours, windows": lambda: epoch(windowed)},
        rows // BATCH * BATCH,
        times,
    )
    found |= best_of({"DataLoader over npy": lambda: data_loader(one)}, rows, max(1, times // 2))
    print(f"shuffled batches of {BATCH} with keys and tokens (the peer's: vectors and row numbers alone):")
    show(found)
    print(f"  opening and holding the cache took {opened:.2f} s")
    ours, peer = found["ours"], found["DataLoader over npy"]
    return {
        "training_ours": ours[0], "training_peer": peer[0], "training_ratio": ours[0] / peer[0],
        "training_cpu_ratio": peer[1] / ours[1], "training_windowed": found["ours, windows"][0], "open_seconds": opened,
    }  # fmt: skip


def show(found: dict[str, tuple[float, float]]) -> None:
    for name, (rows_a_second, cpu) in found.items():
        print(f"  {name:28s} {rows_a_second / 1e3:9,.0f} thousand rows/s   {cpu:6.2f} us CPU a row")


def status_mib(field: str) -> float:
    """A line of /proc/self/status: RssAnon (memory that is not a file's), VmRSS (with mapped files), VmSize (what RLIMIT_AS limits)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.rglob("*.parquet"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def limited(folder: Path, limit: int) -> dict[str, Any]:
    """Run in a child: read an epoch with at most `limit` bytes more of address space than an idle process with torch loaded."""
    small = EmbeddingReader(Artifact(folder), memory_limit=0)
    for _, _ in zip(epoch(small, 64), range(4), strict=False):
        pass  # allocators and thread stacks are set up before the limit is measured
    del small
    allowed = int(status_mib("VmSize") * MIB) + limit
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    before = status_mib("VmRSS")
    try:
        EmbeddingReader(Artifact(folder))
        refused = False
    except MemoryError:
        refused = True
    except RuntimeError as error:
        refused = "memory" in str(error)
    reader = EmbeddingReader(Artifact(folder), memory_limit=limit // 4)
    drop_from_page_cache(folder)
    resident, rows, start = [], 0, time.perf_counter()
    for i, batch in enumerate(epoch(reader)):
        rows += len(batch.keys)
        if i % 8 == 0:
            resident.append(status_mib("VmRSS"))
    seconds, half = time.perf_counter() - start, len(resident) // 2
    assert rows == len(reader) // BATCH * BATCH
    return {
        "rows": rows, "rows_per_second": round(rows / seconds), "cache_mib": len(reader) * reader.parts.row_bytes / MIB,
        "limit_mib": limit / MIB, "holding_refused": refused, "windows": len(reader.shuffle.windows(0, 0)), "rss_before_mib": before,
        "rss_first_half_mib": max(resident[:half]), "rss_second_half_mib": max(resident[half:]),
    }  # fmt: skip


def child(module: str, arguments: list[str]) -> dict[str, Any]:
    """The JSON line that a benchmark of ours prints last, run in a process of its own. One malloc arena: each further one reserves
    64 MiB of address space that nothing uses."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(rows: int, times: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = write_cache(folder / "cache", [range(i, i + PART) for i in range(0, rows, PART)], 768)
        npy, one, lists = write_peers(cache, folder)
        found = sequential(cache, npy, lists, rows, times) | training(cache, one, rows, times)
        under = child(
            "cache_read", ["--limited", str(cache.folder), str(max(160 * MIB, int(found_bytes(cache) * 0.4)))]
        )
    print(
        f"under a limit: a cache of {under['cache_mib']:.0f} MiB in {under['limit_mib']:.0f} MiB of address space "
        f"(RLIMIT_AS; holding it whole {'fails' if under['holding_refused'] else 'FITS'}), from the disk: {under['windows']} windows, "
        f"{under['rows_per_second'] / 1e3:,.0f} thousand rows/s with both vectors; resident {under['rss_before_mib']:.0f} MiB before, at "
        f"most {under['rss_first_half_mib']:.0f} MiB in the first half, {under['rss_second_half_mib']:.0f} MiB in the second"
    )
    return {"name": "cache_read", "unit": "rows/s", **found, "n": rows, "limited": under}


def found_bytes(cache: Artifact) -> int:
    reader = EmbeddingReader(cache, memory_limit=0)
    return len(reader) * reader.parts.row_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, within a minute")
    parser.add_argument("--limited", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # One core for ours and for torch's part of the peers': with two, what is measured is how busy the machine's other core is.
    torch.set_num_threads(1)
    if arguments.limited:
        result = limited(Path(arguments.limited[0]), int(arguments.limited[1]))
    else:
        result = compare(60_000 if arguments.quick else 200_000, 3 if arguments.quick else TIMES)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
