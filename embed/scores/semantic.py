"""`scores/semantic`: whose near copy an image is, by the cosine of image embeddings, over the whole cache.

Of near images the one in the most protected split is kept (test, then val, then train), and of those the smallest key. Images that
the view `base` leaves out are nobody's original and nobody's copy: else both of two copies could be dropped, each for the other's
sake. A view `train` drops copies by a rule that `semantic_copy_of` is absent, or by one on `similarity` for a higher threshold.
Its other rules do not move who is kept: a copy whose original they drop is dropped as well.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.dataset.splits import PROTECTED
from data.pipeline.artifacts import Artifact, Receipt, fingerprint, publish_json, read_json
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import is_current, run_stage
from data.pipeline.stage import ABSENT, Input, PartSpec, Stage
from embed.reading.reader import EmbeddingReader
from embed.scores.neighbours import BLOCK, NONE_BEFORE, Copies, ExactSearch, IndexSearch, Search, Vectors, find_copies
from embed.scores.parts import CachePart
from embed.settings import SemanticSettings

STAGE_VERSION = 1
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption_index", pa.int32()),
        # The kept image's key; null for kept ones and those left out by the view `base`.
        ("semantic_copy_of", pa.string()),
        ("similarity", pa.float32()),  # the largest cosine found to a kept image before it; -1 where there is none
    ]
)
COPIES_FILE, FACTS_FILE = "copies.parquet", "images.json"
LEARN_FROM = 65_536  # images from which an index learns its cells
RECALL_SAMPLE = 2_048  # kept images that are compared exactly to state an index's recall


@dataclass(frozen=True)
class Images:
    """Distinct images in order of rank: protected splits first, then by key. `rows` are rows of the reader."""

    reader: EmbeddingReader
    keys: NDArray[np.str_]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def vectors(self, ranks: NDArray[np.int64]) -> Vectors:
        """float32 (n, d) of unit length."""
        found: Vectors = self.reader.fetch(self.rows[ranks]).image_embedding.numpy()
        return found

    def blocks(self, ranks: NDArray[np.int64]) -> Iterator[Vectors]:
        for start in range(0, len(ranks), BLOCK):
            yield self.vectors(ranks[start : start + BLOCK])


@dataclass(frozen=True)
class SemanticWork:
    """The part of the cache whose pairs get a row, and what the comparison of all images found."""

    path: Path
    copies: Path


def build_semantic(run: Run, settings: SemanticSettings, cached: Sequence[CachePart], executor: Executor) -> Artifact:
    """Compare all images, when any embedding or the view `base` changed; columns `semantic_copy_of` and `similarity` by pair.

    Raises UserError when the view `base` is there and stale."""
    view = Lineage(run).require("views/base") if run.view("base").is_complete() else None
    inputs = [Input("embeddings", run.embeddings.digest()), Input("views/base", view.digest() if view else ABSENT)]
    shaping = settings.model_dump(mode="json") | {"seed": run.seed}
    found = run.scratch / f"semantic-{fingerprint([STAGE_VERSION, shaping, [one.digest for one in inputs]])[:16]}"
    parts = [PartSpec(p.name, tuple(inputs), SemanticWork(p.path, found / COPIES_FILE)) for p in cached]
    finish = partial(_keep_facts, found=found)
    stage = Stage(
        "scores-semantic", STAGE_VERSION, run.scores("semantic").folder, shaping, parts, semantic_part, finish,
        movable=True,
    )  # fmt: skip
    if not is_current(stage):
        compare_images(EmbeddingReader(run.embeddings, view, vectors=("image",)), settings, run.seed, found)
    artifact = run_stage(stage, executor, run.logs)
    shutil.rmtree(found, ignore_errors=True)
    return artifact


def _keep_facts(folder: Path, _: Sequence[Receipt], found: Path) -> list[str]:
    publish_json(folder / FACTS_FILE, read_json(found / FACTS_FILE, "what the comparison of images found"))
    return [FACTS_FILE]


def compare_images(reader: EmbeddingReader, settings: SemanticSettings, seed: int, folder: Path) -> None:
    """Write `copies.parquet` (key, semantic_copy_of, similarity; by key) and `images.json` (counts, method, recall) into `folder`,
    where they stand for as long as their inputs do."""
    if (folder / FACTS_FILE).is_file():
        return
    images = rank_images(reader)
    exact = len(images) <= settings.exact_up_to
    copies = find_copies(images.blocks(np.arange(len(images))), _search(images, settings, seed), settings.threshold)
    is_copy = copies.copy_of >= 0
    table = pa.table(
        {
            "key": pa.array(images.keys, pa.string()),
            "semantic_copy_of": pa.array(images.keys[copies.copy_of], pa.string(), mask=~is_copy),
            "similarity": pa.array(copies.similarity),
        }
    ).sort_by("key")
    facts: dict[str, Any] = {
        "images": len(images), "copies": int(is_copy.sum()), "threshold": settings.threshold,
        "method": "exact" if exact else "index",
    }  # fmt: skip
    facts |= {"recall": 1.0} if exact else index_recall(images, copies, settings.threshold, seed)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / COPIES_FILE)
    publish_json(folder / FACTS_FILE, facts)


def rank_images(reader: EmbeddingReader) -> Images:
    """Each image's first row, in order of rank."""
    keys, rows = np.unique(reader.keys, return_index=True)
    splits = reader.column("split", rows).to_pandas()
    order = np.lexsort((keys, splits.map({split: i for i, split in enumerate(PROTECTED)}).to_numpy()))
    return Images(reader, keys[order], rows[order])


def _search(images: Images, settings: SemanticSettings, seed: int) -> Search:
    if len(images) <= settings.exact_up_to:
        return ExactSearch(images.reader.dim)
    chosen = np.random.default_rng(seed).permutation(len(images))[:LEARN_FROM]
    return IndexSearch(images.reader.dim, images.vectors(np.sort(chosen)), len(images), settings.probes, seed)


def index_recall(images: Images, copies: Copies, threshold: float, seed: int) -> dict[str, Any]:
    """What share of the copies the index found. A sample of the images it kept is compared with every image that it kept before
    them: a near one there was missed. The recall is found / (found + missed), missed being scaled up from the sample."""
    kept = np.flatnonzero(copies.copy_of < 0)
    sample = np.sort(np.random.default_rng([seed, 1]).permutation(kept)[:RECALL_SAMPLE])
    vectors = images.vectors(sample)
    best = np.full(len(sample), NONE_BEFORE, np.float32)
    for start in range(0, len(kept), BLOCK):
        ranks = kept[start : start + BLOCK]
        cosines = np.where(ranks < sample[:, None], vectors @ images.vectors(ranks).T, np.float32(NONE_BEFORE))
        best = np.maximum(best, cosines.max(axis=1))
    found, missed = len(images) - len(kept), int((best >= threshold).sum())
    scaled = missed * len(kept) / len(sample)
    recall = 1.0 if found + scaled == 0 else round(found / (found + scaled), 4)
    return {"recall": recall, "recall_sample": len(sample), "missed_in_sample": missed}


def semantic_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    pairs = pq.read_table(spec.work.path, columns=["key", "caption_index"]).replace_schema_metadata(None)
    copies = pq.read_table(spec.work.copies)
    place = pd.Index(copies["key"].to_pandas()).get_indexer(pairs["key"].to_pandas())
    known = place >= 0
    at = pa.array(place, mask=~known)
    similarity = np.where(known, copies["similarity"].to_numpy()[place] if len(copies) else NONE_BEFORE, NONE_BEFORE)
    columns = [
        pairs["key"],
        pairs["caption_index"],
        copies["semantic_copy_of"].take(at),
        pa.array(similarity, pa.float32()),
    ]
    table = pa.Table.from_arrays([c.cast(t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
    pq.write_table(table, attempt / f"{spec.name}.parquet")
    return {"pairs": len(table), "copies": len(table) - table["semantic_copy_of"].null_count}
