"""`scores/similarity`: the cosine between a pair's image and caption embedding, from the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from data.pipeline.run import Run
from data.pipeline.stage import PartSpec, Stage
from embed.scores.parts import CachePart

STAGE_VERSION = 1


@dataclass(frozen=True)
class SimilarityWork:
    """The part of the cache to read."""

    path: Path


def similarity_stage(run: Run, cached: Sequence[CachePart]) -> Stage:
    """Column `similarity` by pair."""
    parts = [PartSpec(part.name, (part.input,), SimilarityWork(part.path)) for part in cached]
    return Stage("scores-similarity", STAGE_VERSION, run.scores("similarity").folder, {}, parts, similarity_part)


def similarity_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    table = pq.read_table(spec.work.path, columns=["key", "caption_index", "clip_score"])
    named = table.replace_schema_metadata(None).rename_columns(["key", "caption_index", "similarity"])
    pq.write_table(named, attempt / f"{spec.name}.parquet")
    return {"pairs": len(table)}
