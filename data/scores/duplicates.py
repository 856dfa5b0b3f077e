"""`scores/duplicates`: which images are copies of each other, and how many images carry a caption. Over the whole dataset, in the
driver.

Facts, no decisions: a group of copies is named by the key of its first image, in the most protected split (test, then val, then
train) and there with the smallest key. Which image of a group is kept, a view decides (`data.views.copies`).
"""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import feather

from data.dataset.ledger import ledger_path
from data.dataset.splits import EVALUATION, PROTECTED
from data.pipeline.artifacts import Artifact
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import is_current, run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.scores.near import Looks, first_linked, near_any_of, near_groups
from data.scores.settings import DuplicatesSettings

STAGE_VERSION = 2

DUPLICATES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption_index", pa.int32()),
        ("split", pa.string()),
        # The group's first key, null for images without a copy:
        ("url_group", pa.string()),  # equal URL but for http or https and the fragment
        ("bytes_group", pa.string()),  # equal original or stored bytes, through any chain of such images
        ("near_group", pa.string()),  # near each other, through any chain of near images, see data.scores.near
        # Of training images: the val or test image with equal bytes, else the first near one.
        ("eval_copy_of", pa.string()),
        # Images that carry this caption (by data.scores.captions.caption_hash), itself included.
        ("caption_copies", pa.int32()),
    ]
)
GROUPS = ("url", "bytes", "near")
LEDGER_COLUMNS = ["key", "split", "reason", "url", "original_sha256", "stored_sha256"]
BASIC_COLUMNS = ["key", "caption_index", "caption_hash", "pixel_std", "phash", "colours"]


@dataclass(frozen=True)
class DuplicatesWork:
    """Where the answers of the whole comparison lie, a file for each part."""

    answers: Path


def build_duplicates(run: Run, executor: Executor) -> Artifact:
    """Compare all stored images and captions, when any of them changed. Every part depends on all of them."""
    settings: DuplicatesSettings = run.config.at("views.duplicates")
    dataset, basic = run.dataset.require("make dataset"), Lineage(run).require("scores/basic")
    inputs = (Input("dataset", dataset.digest()), Input("scores/basic", basic.digest()))
    shaping = settings.model_dump(mode="json")
    answers = run.scratch / f"duplicates-{uuid.uuid4().hex}"
    parts = [PartSpec(receipt.name, inputs, DuplicatesWork(answers)) for receipt in basic.receipts()]
    folder = run.scores("duplicates").folder
    stage = Stage("scores-duplicates", STAGE_VERSION, folder, shaping, parts, duplicates_part, movable=True)
    try:
        if not is_current(stage):
            compare_all(dataset, basic, settings, answers)
        return run_stage(stage, executor, run.logs)
    finally:
        shutil.rmtree(answers, ignore_errors=True)


def compare_all(dataset: Artifact, basic: Artifact, settings: DuplicatesSettings, folder: Path) -> None:
    """Write DUPLICATES_SCHEMA for every part of `scores/basic` into `folder`."""
    names = [receipt.name for receipt in basic.receipts()]
    pairs = [pq.read_table(basic.folder / f"{name}.parquet", columns=BASIC_COLUMNS) for name in names]
    table = _answers(stored_images(dataset), pa.concat_tables(pairs), settings)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, own in zip(names, pairs, strict=True):
        feather.write_feather(table.slice(start, len(own)), str(folder / f"{name}.arrow"), compression="uncompressed")
        start += len(own)


def duplicates_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: one part's rows of the answers, and how many of its images are copies."""
    work: DuplicatesWork = spec.work
    table = feather.read_table(str(work.answers / f"{spec.name}.arrow")).combine_chunks()
    pq.write_table(table, attempt / f"{spec.name}.parquet", compression="zstd")
    first = table.filter(pc.equal(table["caption_index"], 0))
    copies = {f"{k}_copies": pc.sum(pc.not_equal(first[f"{k}_group"], first["key"])).as_py() or 0 for k in GROUPS}
    copies["eval_copies"] = len(first) - first["eval_copy_of"].null_count
    return {"pairs": len(table), "samples": len(first), **copies}


def stored_images(dataset: Artifact) -> pa.Table:
    """The ledger's rows of stored images, the kept one of equals first: by protection of the split, then by key."""
    ledger = pa.concat_tables(
        pq.read_table(ledger_path(dataset.folder, r.name), columns=LEDGER_COLUMNS) for r in dataset.receipts()
    )
    stored = ledger.filter(pc.is_null(ledger["reason"])).drop_columns("reason")
    rank = pc.index_in(stored["split"], pa.array(PROTECTED))
    return stored.append_column("rank", rank).sort_by([("rank", "ascending"), ("key", "ascending")])


def looks_of(images: pa.Table, pairs: pa.Table) -> Looks:
    """What each of `images` looks like, from the rows of `scores/basic`."""
    rows = pairs.take(pc.index_in(images["key"], pairs["key"].combine_chunks()))
    colours = b"".join(rows["colours"].to_pylist())
    return Looks(
        rows["phash"].to_numpy(),
        np.frombuffer(colours, np.uint8).reshape(len(rows), -1) if len(rows) else np.empty((0, 48), np.uint8),
        rows["pixel_std"].to_numpy(),
    )


def first_equal(images: pa.Table, columns: list[str]) -> NDArray[np.int64]:
    """For every image the first row that has the same (not empty) value in one of the columns, through any chain of such rows."""
    n = len(images)
    rows = np.arange(n)
    links = [np.empty((0, 2), np.int64)]
    for column in columns:
        codes = pc.fill_null(images[column], "").combine_chunks().dictionary_encode()
        kind = codes.indices.to_numpy()
        first = np.full(len(codes.dictionary), n)
        np.minimum.at(first, kind, rows)
        same = pc.greater(pc.utf8_length(codes.dictionary), 0).to_numpy(zero_copy_only=False)[kind]
        links.append(np.stack([first[kind][same], rows[same]], axis=1))
    return first_linked(np.concatenate(links), n)


def _answers(images: pa.Table, pairs: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """DUPLICATES_SCHEMA for every row of `pairs`, in their order."""
    address = pc.replace_substring_regex(pc.replace_substring_regex(images["url"], r"^https?://", ""), "#.*$", "")
    same_bytes = first_equal(images, ["original_sha256", "stored_sha256"])
    looks = looks_of(images, pairs)
    found = {
        "url_group": _of_several(first_equal(pa.table({"url": address}), ["url"])),
        "bytes_group": _of_several(same_bytes),
        "near_group": _of_several(near_groups(looks, settings)),
        "eval_copy_of": _evaluation_copies(images, same_bytes, looks, settings),
    }
    image_of = pc.index_in(pairs["key"], images["key"].combine_chunks())
    keys = images["key"].combine_chunks()
    columns = {name: keys.take(_optional(rows)).take(image_of.combine_chunks()) for name, rows in found.items()}
    columns["split"] = images["split"].take(image_of)
    columns |= {name: pairs[name] for name in ("key", "caption_index")}
    columns["caption_copies"] = _caption_copies(pairs)
    return pa.table({field.name: columns[field.name] for field in DUPLICATES_SCHEMA}, schema=DUPLICATES_SCHEMA)


def _evaluation_copies(
    images: pa.Table, same_bytes: NDArray[np.int64], looks: Looks, settings: DuplicatesSettings
) -> NDArray[np.int64]:
    """For training images the evaluation image of which they are a copy; -1 for others. Evaluation images come first in `images`."""
    rank = images["rank"].to_numpy()
    evaluation = int((rank < len(EVALUATION)).sum())
    found = np.full(len(images), -1)
    found[evaluation:] = near_any_of(looks[np.arange(evaluation, len(images))], looks[np.arange(evaluation)], settings)
    by_bytes = np.flatnonzero(same_bytes < evaluation)
    by_bytes = by_bytes[by_bytes >= evaluation]
    found[by_bytes] = same_bytes[by_bytes]
    return found


def _of_several(first: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each row's group; -1 for rows that are alone in theirs."""
    return np.where(np.bincount(first, minlength=len(first))[first] > 1, first, -1)


def _caption_copies(pairs: pa.Table) -> pa.Array:
    """Of every pair, the number of distinct images that carry its caption."""
    counts = pairs.group_by("caption_hash").aggregate([("key", "count_distinct")])
    where = pc.index_in(pairs["caption_hash"], counts["caption_hash"].combine_chunks())
    return counts["key_count_distinct"].take(where).cast(pa.int32())


def _optional(rows: NDArray[np.int64]) -> pa.Array:
    """Row numbers with null for -1."""
    return pa.array(rows, mask=rows < 0)
