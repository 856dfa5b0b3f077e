"""`scores/semantic`: whose near copy an image is, by the cosine of image embeddings, over the whole cache.

Of near images the one in the most protected split is kept (test, then val, then train), and of those the smallest key. Images that
the view `base` leaves out are nobody's original and nobody's copy: else both of two copies could be dropped, each for the other's
sake. A view `train` drops copies by a rule that `semantic_copy_of` is absent, or by one on `similarity` for a higher threshold.
Its other rules do not move who is kept: a copy whose original they drop is dropped as well.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact, PartSpec, Receipt, fingerprint, publish_json, read_json
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import Stage, lost_file, run_stage
from data.scores.duplicates import PROTECTED
from embed.reading.reader import EmbeddingReader
from embed.scores.neighbours import BLOCK, NONE_BEFORE, Copies, ExactSearch, IndexSearch, Search, Vectors, find_copies
from embed.scores.similarity import cache_parts
from embed.settings import SemanticSettings

STAGE_VERSION = 1
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption_index", pa.int32()),
        (
            "semantic_copy_of",
            pa.string(),
        ),  # the kept image's key; null for kept ones and those left out by the view `base`
        ("similarity", pa.float32()),  # the largest cosine found to a kept image before it; -1 where there is none
    ]
)
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


def build_semantic(run: Run, executor: Executor, settings: SemanticSettings) -> Artifact:
    """Compare all images, when any embedding or the view `base` changed; columns `semantic_copy_of` and `similarity` by pair."""
    embeddings, base = run.embeddings.require("make embeddings"), run.view("base")
    view = base if base.is_complete() else None
    made_from = {"embeddings": embeddings.digest(), "base": view.digest() if view else "none"}
    shaping = settings.model_dump(mode="json") | {"seed": run.seed}
    work = run.scratch / f"semantic-{fingerprint([STAGE_VERSION, shaping, made_from])[:16]}"
    parts = [
        PartSpec(part.name, made_from, {**part.payload, "copies": str(work / "copies.parquet")})
        for part in cache_parts(embeddings)
    ]

    def finish(folder: Path, _: list[Receipt]) -> list[str]:
        publish_json(folder / "images.json", read_json(work / "images.json", "what the comparison of images found"))
        return ["images.json"]

    stage = Stage(
        "scores-semantic", STAGE_VERSION, run.scores("semantic").folder, shaping, parts, semantic_part, finish
    )
    if not _is_fresh(stage):
        compare_images(EmbeddingReader(embeddings, view, vectors=("image",)), settings, run.seed, work)
    artifact = run_stage(stage, executor, run.logs)
    shutil.rmtree(work, ignore_errors=True)
    return artifact


def _is_fresh(stage: Stage) -> bool:
    """Whether the artifact stands as the stage would make it: then the images need no comparing."""
    artifact, plan = Artifact(stage.folder), stage.plan

    def stands(part: PartSpec) -> bool:
        receipt = artifact.standing(part.name)
        if receipt is None or receipt.fingerprint != plan.fingerprint_of(part):
            return False
        return lost_file(stage.folder, receipt.files) is None

    if not artifact.is_complete() or lost_file(stage.folder, artifact.manifest()["files"]):
        return False
    return all(stands(part) for part in plan.parts)


def compare_images(reader: EmbeddingReader, settings: SemanticSettings, seed: int, work: Path) -> None:
    """Write `copies.parquet` (key, semantic_copy_of, similarity; by key) and `images.json` (counts, method, recall) into `work`,
    where they stand for as long as their inputs do."""
    if (work / "images.json").is_file():
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
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, work / "copies.parquet")
    publish_json(work / "images.json", facts)


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
    pairs = pq.read_table(spec.payload["path"], columns=["key", "caption_index"]).replace_schema_metadata(None)
    copies = pq.read_table(spec.payload["copies"])
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
