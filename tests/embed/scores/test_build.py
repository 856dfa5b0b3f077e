"""Scores by pair: what a config asks for is made, part by part, and stands until its inputs change."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fake_cache import write_cache
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.scores.build import build_scores
from tests.conftest import make_config, tree_bytes

IMAGES: list[range] = [range(20), range(20, 20), range(20, 33)]


def make_run(folder: Path, dim: int = 8, **embeddings: Any) -> Run:
    run = Run.open(make_config(folder, embeddings=embeddings))
    write_cache(run.embeddings.folder, IMAGES, dim, 2, 7, 12)
    return run


def score_table(run: Run, name: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(run.scores(name).folder / f"{i:05d}.parquet") for i in range(len(IMAGES))])


def test_similarity_alone_by_default(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    built = build_scores(run, InProcess())
    assert [artifact.folder for artifact in built] == [run.scores("similarity").folder]
    found, cache = score_table(run, "similarity"), pq.read_table(run.embeddings.folder / "00002.parquet")
    assert found.column_names == ["key", "caption_index", "similarity"] and built[0].manifest()["counts"] == {
        "pairs": 66
    }
    assert found["key"].to_pylist() == [f"{i:09d}" for i in range(33) for _ in range(2)]
    assert found["similarity"].to_pylist()[40:] == cache["clip_score"].to_pylist()


def test_workers_and_other_runs_give_the_same_bytes(tmp_path: Path, executor: Any) -> None:
    trees = []
    for name, chosen in (("a", InProcess()), ("b", executor)):
        run = make_run(tmp_path / name, semantic={"threshold": 0.9})
        trees.append([tree_bytes(artifact.folder) for artifact in build_scores(run, chosen)])
    assert trees[0] == trees[1] and len(trees[0]) == 2


def test_another_threshold_makes_the_scores_again_and_leaves_the_cache_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, semantic={"threshold": 0.9})
    build_scores(run, InProcess())
    before = tree_bytes(run.embeddings.folder)
    other = Run.open(make_config(tmp_path, embeddings={"semantic": {"threshold": 0.8}}))
    _, semantic = build_scores(other, InProcess())
    assert semantic.settings()["threshold"] == 0.8 and semantic.verify() == []
    assert tree_bytes(run.embeddings.folder) == before


def test_a_cache_that_grew_is_scored_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, semantic={"threshold": 0.999})
    build_scores(run, InProcess())
    write_cache(run.embeddings.folder, [*IMAGES, range(33, 40)], 8, 2, 7, 12)
    similarity, semantic = build_scores(run, InProcess())
    assert similarity.manifest()["counts"]["pairs"] == semantic.manifest()["counts"]["pairs"] == 80
    log = (run.logs / "scores-similarity.jsonl").read_text()
    assert log.count('"part": "00000"') == 1 and log.count('"part": "00003"') == 1
    assert np.isfinite(pq.read_table(semantic.folder / "00003.parquet")["similarity"].to_numpy()).all()


def test_a_part_that_is_missing_or_cut_is_told_as_readers_tell_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run.embeddings.folder / "00002.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00002.parquet has \d+ bytes, the manifest records \d+: it was cut"):
        build_scores(run, InProcess())
    path.unlink()
    with pytest.raises(UserError, match="00002.parquet is missing although the manifest lists it"):
        build_scores(run, InProcess())
