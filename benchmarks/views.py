"""The view `base` over 1 million ledger rows: seconds of `python -m data view`, and of the row-by-row view it replaced.

The dataset is generated: 100 parts of 10,000 images in 5 % copies, one to three captions each, so that every rule finds something.
`ours` is the wall time of the whole command, start included; `peer` the same decisions by loops over rows, in this process, start
excluded. Ours also looks for copies by URL and for leaks. Both keep the same pairs, which is checked.
Beside them: comparing all images for `scores/duplicates`, and finding near pairs among as many perceptual hashes.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.ledger import LEDGER_SCHEMA, ledger_path
from data.dataset.plan import PLAN_SCHEMA, PlanWriter, plan_digest, read_plan
from data.images.phash import near_values
from data.pipeline.config import load_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.scores.basic import BASIC_SCHEMA
from data.scores.captions import caption_hash
from data.scores.duplicates import build_duplicates
from data.views.reading import VIEW_SCHEMA
from data.views.settings import BaseViewSettings, ViewsSettings

PARTS, QUICK_PARTS, PER_PART = 100, 10, 10_000
WORDS = (
    "red",
    "green",
    "house",
    "tree",
    "photo",
    "of",
    "a",
    "the",
    "small",
    "old",
    "road",
    "by",
    "sea",
    "two",
    "dogs",
    "at",
    "night",
)
COPIES = 0.05
SETTINGS = {"min_side": 200, "max_aspect": 3.0, "min_caption_words": 3, "max_caption_chars": 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PARTS * PER_PART:,} rows instead of {PARTS * PER_PART:,}"
    )
    parts = QUICK_PARTS if parser.parse_args().quick else PARTS
    with tempfile.TemporaryDirectory() as name:
        config = write_config(Path(name))
        run = Run.open(load_config(config))
        make_artifacts(run, parts)
        start = time.perf_counter()
        build_duplicates(run, InProcess())
        duplicates = time.perf_counter() - start
        ours, cpu = data_view(config)
        start = time.perf_counter()
        peer_view(run, Path(name) / "peer")
        peer = time.perf_counter() - start
        pairs, kept = compare(run, Path(name) / "peer")
    rows = parts * PER_PART
    phash = {distance: near_pairs_seconds(rows, distance) for distance in (3, 7)}
    print(f"{rows:,} ledger rows, {pairs:,} pairs in {parts} parts, {kept:,} kept by both")
    print(f"ours   {ours:.2f} s for `python -m data view` ({cpu:.2f} CPU s)")
    print(f"peer   {peer:.2f} s row by row")
    print(f"scores/duplicates {duplicates:.1f} s")
    times = ", ".join(f"{seconds:.1f} CPU s within {distance} bits" for distance, seconds in phash.items())
    print(f"near pairs among {rows:,} perceptual hashes: {times}")
    numbers = {
        "name": "views", "unit": "s", "ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(peer / ours, 2), "n": rows,
        "pairs": pairs, "cpu_seconds": round(cpu, 2), "duplicates_seconds": round(duplicates, 2), "phash_3_cpu_seconds": round(phash[3], 2),
        "phash_7_cpu_seconds": round(phash[7], 2),
    }  # fmt: skip
    print(json.dumps(numbers))


def write_config(folder: Path) -> Path:
    base = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    path = folder / "views.toml"
    path.write_text(
        f'[run]\nname = "views"\nfolder = "{folder}"\n[dataset.scenes]\nsamples = 1\n[views.base]\n{base}\n',
        encoding="utf-8",
    )
    return path


def make_artifacts(run: Run, parts: int) -> None:
    """A dataset without images and its `scores/basic`, as if they had been downloaded and scored."""
    folder = run.dataset.folder
    specs = []
    with PlanWriter(folder / "plan.parquet") as writer:
        for number in range(parts):
            table = plan_rows(number)
            writer.write(table)
            name = f"{number:05d}"
            specs.append(PartSpec(name, (Input(f"@source:{name}", plan_digest(table)),), folder))
    dataset = run_stage(Stage("dataset", 1, folder, {}, specs, ledger_part), InProcess())
    specs = [PartSpec(name, (Input(f"dataset:{name}", d),), folder) for name, d in dataset.part_digests().items()]
    stage = Stage("scores-basic", 1, run.scores("basic").folder, {}, specs, basic_part)
    run_stage(stage, InProcess())


def plan_rows(number: int) -> pa.Table:
    rng = np.random.default_rng([1, number])
    words = rng.integers(0, len(WORDS), (PER_PART, 3, 14)).tolist()
    lengths = rng.integers(1, 15, (PER_PART, 3)).tolist()
    captions = [
        [" ".join(WORDS[w] for w in row[:n]) for row, n in zip(of_image[:many], ns, strict=False)]
        for of_image, ns, many in zip(words, lengths, rng.choice([1, 2, 3], PER_PART, p=[0.8, 0.1, 0.1]), strict=True)
    ]
    keys = [f"{number * PER_PART + i:09d}" for i in range(PER_PART)]
    columns = {
        "key": keys, "shard": np.full(PER_PART, number, np.int32), "source_id": keys,
        "url": [f"https://example.org/{key}.jpg" for key in keys], "captions": captions,
        "split": np.where(rng.random(PER_PART) < 0.02, "test", "train"),
    }  # fmt: skip
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(PER_PART, f.type) for f in PLAN_SCHEMA
    ]
    return pa.table(arrays, schema=PLAN_SCHEMA)


def ledger_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """One image in twenty has the bytes of another, and one in ten was not stored."""
    plan, rng = read_plan(spec.work, int(spec.name)), np.random.default_rng([2, int(spec.name)])
    identity = np.arange(PER_PART) + int(spec.name) * PER_PART
    copied = rng.random(PER_PART) < COPIES
    identity[copied] = rng.integers(0, PER_PART, copied.sum())
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in identity.tolist()]
    columns = {
        "n_captions": pc.list_value_length(plan["captions"]),
        "reason": np.where(rng.random(PER_PART) < 0.1, "http_4xx", None),
        "original_width": rng.integers(100, 2000, PER_PART), "original_height": rng.integers(100, 2000, PER_PART),
        "original_sha256": digests, "stored_sha256": digests,
        **{name: plan[name] for name in ("key", "source_id", "url", "split")},
    }  # fmt: skip
    arrays = [
        (columns[f.name] if isinstance(columns[f.name], pa.ChunkedArray) else pa.array(columns[f.name], f.type)).cast(
            f.type
        )
        if f.name in columns
        else pa.nulls(PER_PART, f.type)
        for f in LEDGER_SCHEMA
    ]
    for name in ("ledger", "shards"):
        (attempt / name).mkdir()
    pq.write_table(
        pa.table(arrays, schema=LEDGER_SCHEMA), attempt / "ledger" / f"{spec.name}.parquet", compression="zstd"
    )
    (attempt / "shards" / f"{spec.name}.tar").touch()
    return {"planned_samples": PER_PART}


def basic_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    folder: Path = spec.work
    ledger = pq.read_table(ledger_path(folder, spec.name))
    stored = ledger.filter(pc.is_null(ledger["reason"]))
    plan = read_plan(folder, int(spec.name), ["key", "captions"])
    captions = plan.take(pc.index_in(stored["key"], plan["key"].combine_chunks()))["captions"].combine_chunks()
    of_image, text = pc.list_parent_indices(captions), captions.flatten()
    image = of_image.to_numpy()
    seeds = [int(digest[:16], 16) for digest in stored["stored_sha256"].to_pylist()]
    sides = np.stack([stored[n].to_numpy() for n in ("original_width", "original_height")])
    earlier: set[tuple[int, str]] = set()
    columns: dict[str, Any] = {
        "key": stored["key"].combine_chunks().take(of_image),
        "caption_index": np.arange(len(image)) - np.searchsorted(image, image),
        "caption_words": [len(t.split()) for t in text.to_pylist()], "caption_chars": pc.utf8_length(text),
        "caption_hash": caption_hash(text), "language": ["en"] * len(image), "boilerplate": np.zeros(len(image), bool),
        "repeated_caption": [p in earlier or earlier.add(p) is not None for p in zip(image.tolist(), text.to_pylist(), strict=True)],
        "min_side": sides.min(axis=0)[image], "max_side": sides.max(axis=0)[image],
        "aspect": (sides.max(axis=0) / sides.min(axis=0))[image], "pixel_std": np.full(len(image), 40.0),
        "phash": np.array(seeds, np.uint64)[image],
        "colours": [seed.to_bytes(8, "big") * 6 for seed in np.array(seeds, object)[image]],
    }  # fmt: skip
    arrays = [
        pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(len(image), f.type)
        for f in BASIC_SCHEMA
    ]
    pq.write_table(pa.table(arrays, schema=BASIC_SCHEMA), attempt / f"{spec.name}.parquet", compression="zstd")
    return {"pairs": len(image)}


def data_view(config: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the command in a fresh process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "data", "view", "--name", "base", "--config", str(config)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def near_pairs_seconds(n: int, distance: int) -> float:
    """CPU seconds to find every near pair among n random hashes, of which one in a hundred has a planted neighbour."""
    hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)
    hashes[: n // 100] = hashes[-(n // 100) :] ^ np.uint64((1 << distance) - 1)
    start = time.process_time()
    found = near_values(np.unique(hashes), distance)
    seconds = time.process_time() - start
    assert len(found) >= n // 100, len(found)
    return seconds


def compare(run: Run, peer: Path) -> tuple[int, int]:
    """(pairs, kept pairs), after asserting that both views hold the same pairs and keep the same."""
    names = [receipt.name for receipt in run.view("base").receipts()]
    ours, theirs = (
        pa.concat_tables(
            pq.read_table(folder / f"{name}.parquet", columns=["key", "caption_index", "keep"]) for name in names
        )
        for folder in (run.view("base").folder, peer)
    )
    assert ours.equals(theirs), "the two views differ"
    return len(ours), pc.sum(ours["keep"]).as_py()


# The peer: the view as it was before columns, one Python object a row. Kept as a yardstick only.


def peer_view(run: Run, folder: Path) -> None:
    settings, dataset = run.config[ViewsSettings].base, run.dataset
    folder.mkdir()
    views: dict[str, list[dict[str, Any]]] = {}
    best: dict[str, tuple[int, str]] = {}
    samples: dict[str, str] = {}
    leaking: set[str] = set()
    for receipt in dataset.receipts():
        for sample in pq.read_table(ledger_path(dataset.folder, receipt.name)).to_pylist():
            if sample["reason"] is None and sample["split"] != "train":
                leaking.add(sample["stored_sha256"])
    for receipt in dataset.receipts():
        captions = {
            row["key"]: row["captions"]
            for row in read_plan(dataset.folder, int(receipt.name), ["key", "captions"]).to_pylist()
        }
        views[receipt.name] = []
        for sample in pq.read_table(ledger_path(dataset.folder, receipt.name)).to_pylist():
            if sample["reason"] is None:
                found = peer_sample(sample, captions[sample["key"]], leaking, settings)
                views[receipt.name] += found
                if any(row["keep"] for row in found):
                    digest, rank = sample["stored_sha256"], ("test", "val", "train").index(sample["split"])
                    samples[sample["key"]] = digest
                    best[digest] = min(best.get(digest, (rank, sample["key"])), (rank, sample["key"]))
    for name, rows in views.items():
        for row in rows:
            if row["keep"] and best[samples[row["key"]]][1] != row["key"]:
                row["keep"], row["reason"] = False, "duplicate_image"
        pq.write_table(pa.Table.from_pylist(rows, VIEW_SCHEMA), folder / f"{name}.parquet", compression="zstd")


def peer_sample(
    sample: dict[str, Any], captions: list[str], leaking: set[str], settings: BaseViewSettings
) -> list[dict[str, Any]]:
    low, high = sorted((sample["original_width"], sample["original_height"]))
    of_image = None
    if sample["split"] == "train" and sample["stored_sha256"] in leaking:
        of_image = "copy_of_evaluation_image"
    elif low < settings.min_side:
        of_image = "image_too_small"
    elif high > settings.max_aspect * low:
        of_image = "aspect_too_large"
    rows, seen = [], set()
    for index, caption in enumerate(captions):
        reason = of_image
        if reason is None and len(caption.split()) < settings.min_caption_words:
            reason = "caption_too_short"
        if reason is None and len(caption) > settings.max_caption_chars:
            reason = "caption_too_long"
        if reason is None and caption in seen:
            reason = "repeated_caption"
        seen.add(caption)
        rows.append({"key": sample["key"], "caption_index": index, "keep": reason is None, "reason": reason})
    return rows


if __name__ == "__main__":
    main()
