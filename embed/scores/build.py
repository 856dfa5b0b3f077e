"""Scores: columns about pairs, never decisions. Views compare them.

`scores/similarity` always; `scores/aesthetic` and `scores/semantic` where `[embeddings.aesthetic]` and `[embeddings.semantic]` stand
in the config. Parts like shards, rows by (key, caption_index), so that a view joins them by name and key.
"""

from data.pipeline.artifacts import Artifact
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stages
from embed.scores.aesthetic import aesthetic_stage
from embed.scores.parts import cache_parts
from embed.scores.semantic import build_semantic
from embed.scores.similarity import similarity_stage
from embed.settings import EmbeddingsSettings


def build_scores(run: Run, executor: Executor) -> list[Artifact]:
    """Every score that the config asks for. Raises UserError when the cache is not there or stale, or a head does not fit it."""
    settings = run.config[EmbeddingsSettings]
    cached = cache_parts(Lineage(run).require("embeddings"))
    stages = [similarity_stage(run, cached)]
    if settings.aesthetic is not None:  # before any score is made: a head that does not fit is told at once
        stages.append(aesthetic_stage(run, settings.aesthetic, cached))
    built = run_stages(stages, executor, run.logs)
    if settings.semantic is not None:
        built.append(build_semantic(run, settings.semantic, cached, executor))
    return built
