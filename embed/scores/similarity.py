"""Scores: columns about pairs, never decisions. Views compare them.

`scores/similarity` always; `scores/aesthetic` and `scores/semantic` where `[embeddings.aesthetic]` and `[embeddings.semantic]` stand
in the config. Parts like shards, rows by (key, caption_index), so that a view joins them by name and key.
"""

from pathlib import Path

import pyarrow.parquet as pq

from data.pipeline.artifacts import Artifact, PartSpec
from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor, InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from data.views.settings import ViewsSettings
from embed.format import NULL_PART
from embed.reading.parts import CacheParts
from embed.settings import EmbeddingsSettings

STAGE_VERSION = 1
# Scores that are made when their table stands in the config, and what that table says.
OPTIONAL = {
    "aesthetic": "with `head`, the file of a linear head",
    "semantic": "with `threshold`, the cosine from which an image is a copy",
}


def build_scores(run: Run, executor: Executor) -> list[Artifact]:
    """Every score that the config asks for. Raises UserError when a rule of the view `train` reads one that it does not ask for."""
    from embed.scores.aesthetic import aesthetic_stage
    from embed.scores.semantic import build_semantic

    require_asked_for(run.config)
    settings = run.config[EmbeddingsSettings]
    # Before any score is made: a head that does not fit is told at once.
    aesthetic = aesthetic_stage(run, settings.aesthetic) if settings.aesthetic is not None else None
    built = [build_similarity(run, executor)]
    if aesthetic is not None:
        built.append(run_stage(aesthetic, executor, run.logs))
    if settings.semantic is not None:
        built.append(build_semantic(run, executor, settings.semantic))
    return built


def require_asked_for(config: Config) -> None:
    """Raise UserError when a rule of the view `train` reads optional scores that the config does not ask for."""
    settings = config[EmbeddingsSettings]
    for rule in config[ViewsSettings].train.rules:
        if rule.scores in OPTIONAL and getattr(settings, rule.scores) is None:
            raise UserError(
                f"a rule of [views.train] reads scores/{rule.scores}, which nothing makes: add a table [embeddings.{rule.scores}] "
                f"to the config ({OPTIONAL[rule.scores]}), or take the rule out"
            )


def cache_parts(embeddings: Artifact) -> list[PartSpec]:
    """A part for each of the cache's, made from that part's bytes alone. Raises UserError where one is missing or cut."""
    CacheParts(embeddings, None, None, None)  # readers refuse it
    return [
        PartSpec(
            receipt.name,
            {"embeddings": receipt.files[f"{receipt.name}.parquet"]["sha256"]},
            {"path": str(embeddings.folder / f"{receipt.name}.parquet")},
        )
        for receipt in embeddings.receipts()
        if receipt.name != NULL_PART
    ]


def build_similarity(run: Run, executor: Executor | None = None) -> Artifact:
    """`scores/similarity`: the cosine between a pair's image and caption embedding, from the cache."""
    parts = cache_parts(run.embeddings.require("make embeddings"))
    stage = Stage("scores-similarity", STAGE_VERSION, run.scores("similarity").folder, {}, parts, similarity_part)
    return run_stage(stage, executor or InProcess(), run.logs)


def similarity_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    table = pq.read_table(spec.payload["path"], columns=["key", "caption_index", "clip_score"])
    named = table.replace_schema_metadata(None).rename_columns(["key", "caption_index", "similarity"])
    pq.write_table(named, attempt / f"{spec.name}.parquet")
    return {"pairs": len(table)}
