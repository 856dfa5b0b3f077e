"""Scores: columns about pairs, never decisions. Views compare them."""

from pathlib import Path

import pyarrow.parquet as pq

from data.artifacts import Artifact, PartSpec
from data.executors import InProcess
from data.run import Run
from data.runner import Stage, run_stage
from embed.encoder import NULL_PART

STAGE_VERSION = 1


def build_similarity(run: Run) -> Artifact:
    """`scores/similarity`: the cosine between a pair's image and caption embedding, from the cache."""
    embeddings = run.embeddings.require("make embeddings")
    parts = [
        PartSpec(
            r.name,
            {"embeddings": r.files[f"{r.name}.parquet"]["sha256"]},
            {"path": str(embeddings.folder / f"{r.name}.parquet")},
        )
        for r in embeddings.receipts()
        if r.name != NULL_PART
    ]
    stage = Stage("scores-similarity", STAGE_VERSION, run.scores("similarity").folder, {}, parts, similarity_part)
    return run_stage(stage, InProcess(), run.logs)


def similarity_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    table = pq.read_table(spec.payload["path"], columns=["key", "caption_index", "clip_score"]).replace_schema_metadata(
        None
    )
    pq.write_table(table.rename_columns(["key", "caption_index", "similarity"]), attempt / f"{spec.name}.parquet")
    return {"pairs": len(table)}
