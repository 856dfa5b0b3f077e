"""The view `train` from similarity, aesthetic and semantic scores, with the thresholds in the config, down to what the reader reads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.reports.status import run_status
from data.views.build import build_base_view, build_train_view
from embed.reading.reader import EmbeddingReader
from embed.scores.build import build_scores
from tests.conftest import make_config

FRACTION = 0.3  # of the pairs, or images, that each rule alone drops


def run_with(folder: Path, made: Run, **sections: Any) -> Run:
    """Dataset, cache and CLIP-free scores of `made` under another config; no view yet."""
    for name in ("dataset", "embeddings", "scores/basic", "scores/duplicates"):
        if not (folder / "t" / name).exists():
            shutil.copytree(made.folder / name, folder / "t" / name)
    if not (folder / "tiny-clip").exists():
        shutil.copytree(made.folder.parent / "tiny-clip", folder / "tiny-clip")
    return Run.open(make_config(folder, **sections))


def table_of(run: Run, folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / f"{i:05d}.parquet") for i in range(3)])


def semantic_copies(
    keys: list[str], splits: list[str], images: NDArray[np.float64], threshold: float
) -> dict[str, str | None]:
    """Whose copy each image is, one after the other in order of protection and key."""
    order = sorted(range(len(keys)), key=lambda i: (("test", "val", "train").index(splits[i]), keys[i]))
    kept: list[int] = []
    found: dict[str, str | None] = {}
    for i in order:
        cosines = images[kept] @ images[i] if kept else np.zeros(0)
        copy = len(kept) > 0 and cosines.max() >= threshold
        found[keys[i]] = keys[kept[int(cosines.argmax())]] if copy else None
        if not copy:
            kept.append(i)
    return found


@pytest.fixture
def facts(made_run: Run) -> dict[str, Any]:
    """The cache's pairs, and thresholds between two values that lie well apart."""
    reader = EmbeddingReader(made_run.embeddings)
    batch = reader.fetch(np.arange(len(reader)))
    image, text = batch.image_embedding.double().numpy(), batch.text_embedding.double().numpy()
    weight = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    keys, vectors = reader.images()
    cosines = np.sort((vectors @ vectors.T).double().numpy()[np.triu_indices(len(keys), 1)])
    return {
        "keys": batch.keys, "index": batch.caption_index.tolist(), "weight": weight,
        "splits": dict(zip(batch.keys, reader.column("split", range(len(reader))).to_pylist(), strict=True)),
        "images": dict(zip(batch.keys, image, strict=True)),
        "similarity": (image * text).sum(1), "aesthetic": image @ weight.astype(np.float64) + 5,
        "near": float((cosines[-12] + cosines[-13]) / 2),
    }  # fmt: skip


def between(values: NDArray[np.float64]) -> float:
    """A threshold that drops about FRACTION of the values and touches none."""
    ordered = np.unique(values)
    at = int(len(ordered) * FRACTION)
    return float((ordered[at - 1] + ordered[at]) / 2)


def test_train_keeps_what_similarity_aesthetic_and_semantic_rules_keep(
    made_run: Run, facts: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"weight": torch.from_numpy(facts["weight"])[None], "bias": torch.tensor([5.0])}, tmp_path / "head.pth")
    least = {name: between(facts[name]) for name in ("similarity", "aesthetic")}
    rules = [
        {"scores": "similarity", "column": "similarity", "min": least["similarity"], "name": "similarity_too_low"},
        {"scores": "aesthetic", "column": "aesthetic", "min": least["aesthetic"]},
        {"scores": "semantic", "column": "semantic_copy_of", "absent": True, "name": "semantic_copy"},
    ]
    scores = {"aesthetic": {"head": str(tmp_path / "head.pth")}, "semantic": {"threshold": facts["near"]}}
    run = run_with(tmp_path, made_run, embeddings=scores, views={"train": {"rules": rules}})
    base = table_of(run, build_base_view(run, InProcess()).folder)
    build_scores(run, InProcess())
    view = build_train_view(run, InProcess())

    in_base = {row["key"] for row in base.to_pylist() if row["keep"]}
    keys = sorted(in_base)
    of = semantic_copies(
        keys, [facts["splits"][k] for k in keys], np.stack([facts["images"][k] for k in keys]), facts["near"]
    )
    expected = base["reason"].to_pylist()
    for i, key in enumerate(facts["keys"]):
        assert (base["key"][i].as_py(), base["caption_index"][i].as_py()) == (key, facts["index"][i])
        for reason, dropped in (
            ("similarity_too_low", facts["similarity"][i] < least["similarity"]),
            ("aesthetic_out_of_range", facts["aesthetic"][i] < least["aesthetic"]),
            ("semantic_copy", of.get(key) is not None),
        ):
            expected[i] = expected[i] or (reason if dropped else None)
    table = table_of(run, view.folder)
    assert table["reason"].to_pylist() == expected
    assert {"similarity_too_low", "aesthetic_out_of_range", "semantic_copy", None} <= set(expected)
    counts = view.manifest()["counts"]
    assert counts["dropped_semantic_copy_pairs"] == expected.count("semantic_copy")
    for limit in (3000, 10**9):
        reader = EmbeddingReader(run.embeddings, view, memory_limit=limit)
        batch = reader.fetch(reader.order(0, 0))
        read = list(zip(batch.keys, batch.caption_index.tolist(), strict=True))
        kept = [(k, i) for k, i, why in zip(facts["keys"], facts["index"], expected, strict=True) if why is None]
        assert sorted(read) == sorted(kept)


def test_a_threshold_moves_without_scoring_again(made_run: Run, facts: dict[str, Any], tmp_path: Path) -> None:
    kept, stamps = [], []
    for least in (-1.0, between(facts["similarity"])):
        rules = [{"scores": "similarity", "column": "similarity", "min": least}]
        run = run_with(tmp_path, made_run, views={"train": {"rules": rules}})
        build_base_view(run, InProcess())
        build_scores(run, InProcess())
        kept.append(build_train_view(run, InProcess()).manifest()["counts"]["kept_pairs"])
        stamps.append((run.scores("similarity").folder / "00000.parquet").stat().st_mtime_ns)
        shutil.rmtree(run.folder / "views")
    assert kept[1] < kept[0] and stamps[0] == stamps[1]


def test_status_knows_every_score_that_the_config_asks_for(
    made_run: Run, facts: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"weight": torch.from_numpy(facts["weight"])[None], "bias": torch.tensor([5.0])}, tmp_path / "head.pth")
    scores = {"aesthetic": {"head": str(tmp_path / "head.pth")}, "semantic": {"threshold": facts["near"]}}
    plain = run_with(tmp_path, made_run)
    assert not {"clip", "scores/aesthetic", "scores/semantic"} & {s.name for s in run_status(plain)}

    def states(run: Run) -> dict[str, str]:
        return {s.name.removeprefix("scores/"): s.state for s in run_status(run)}

    run = run_with(tmp_path, made_run, embeddings=scores)
    build_base_view(run, InProcess())
    assert (states(run)["aesthetic"], states(run)["semantic"]) == ("missing", "missing")
    build_scores(run, InProcess())
    assert (states(run)["aesthetic"], states(run)["semantic"]) == ("complete", "complete")
    narrower = run_with(tmp_path, made_run, embeddings=scores, views={"base": {"min_caption_words": 9}})
    build_base_view(narrower, InProcess())  # its images are other ones to compare; what the head says of each stays
    assert (states(narrower)["aesthetic"], states(narrower)["semantic"]) == ("complete", "stale")
    build_scores(narrower, InProcess())
    assert states(narrower)["semantic"] == "complete"
