"""Semantic near duplicates: planted ones are found, exactly and by an index whose recall is stated; who is kept is no accident."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fake_cache import PERIOD, unit_vectors, write_cache, write_view
from data.pipeline.artifacts import read_json
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.views.settings import ViewsSettings
from embed.scores.build import build_scores
from embed.scores.neighbours import Copies, ExactSearch, IndexSearch, Vectors, find_copies
from tests.conftest import make_config, tree_bytes

DIM, THRESHOLD = 32, 0.95


def planted(n: int, copies: int, noise: float = 0.02, seed: int = 0) -> tuple[Vectors, np.ndarray]:
    """n unit vectors float32, of which some are noisy copies of earlier ones; and whose copy each is (-1: nobody's)."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, DIM), dtype=np.float32)
    original = np.full(n, -1)
    chosen = rng.permutation(np.arange(n // 2, n))[:copies]
    original[chosen] = rng.integers(0, n // 2, copies)
    vectors[chosen] = vectors[original[chosen]] + noise * rng.standard_normal((copies, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), original


def blocks(vectors: Vectors, size: int = 100) -> Iterator[Vectors]:
    for start in range(0, len(vectors), size):
        yield vectors[start : start + size].copy()


def check_promises(vectors: Vectors, found: Copies) -> None:
    """No two kept images are near; each copy is near the kept image before it that it names, and that is the nearest."""
    cosines = vectors @ vectors.T
    kept = np.flatnonzero(found.copy_of < 0)
    among = cosines[np.ix_(kept, kept)] - np.eye(len(kept))
    assert among.max(initial=-1) < THRESHOLD + 1e-5
    for i, (of, similarity) in enumerate(zip(found.copy_of, found.similarity, strict=True)):
        before = kept[kept < i]
        nearest = cosines[i, before].max(initial=-1)
        assert similarity == pytest.approx(nearest, abs=1e-5)
        if of >= 0:
            assert of in before and similarity >= THRESHOLD and cosines[i, of] == pytest.approx(nearest, abs=1e-5)
        else:
            assert nearest < THRESHOLD + 1e-5


def test_planted_copies_are_found_exactly() -> None:
    vectors, original = planted(1200, 150)
    found = find_copies(blocks(vectors), ExactSearch(DIM), THRESHOLD)
    assert (found.copy_of == original).all()
    check_promises(vectors, found)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_chains_and_crowds_keep_the_promises_whatever_the_block(size: int) -> None:
    rng = np.random.default_rng(1)
    angles = np.cumsum(rng.uniform(0, 0.12, 300))  # a chain: each near the next, its ends far apart
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    crowd = np.repeat(chain[:1], 100, axis=0)  # a hundred equal images
    vectors = np.concatenate([chain, crowd])[rng.permutation(400)]
    found = find_copies(blocks(vectors, size), ExactSearch(2), THRESHOLD)
    check_promises(vectors, found)
    alone = find_copies(blocks(vectors, 400), ExactSearch(2), THRESHOLD)
    assert ((found.copy_of < 0) == (alone.copy_of < 0)).all()


def test_an_index_finds_planted_copies_and_gives_equal_output_again() -> None:
    vectors, original = planted(6000, 600)
    found = []
    for _ in range(2):
        index = IndexSearch(DIM, vectors[::2], len(vectors), probes=16, seed=0)
        found.append(find_copies(blocks(vectors, 1000), index, THRESHOLD))
    assert (found[0].copy_of == found[1].copy_of).all() and (found[0].similarity == found[1].similarity).all()
    caught = found[0].copy_of[original >= 0] == original[original >= 0]
    assert caught.mean() > 0.98
    assert (found[0].copy_of[original < 0] == -1).all()


def make_run(folder: Path, images: list[list[int]], seed: int = 3, **semantic: Any) -> Run:
    config = make_config(
        folder, embeddings={"semantic": semantic}, run={"name": "t", "folder": str(folder), "seed": seed}
    )
    run = Run.open(config)
    write_cache(run.embeddings.folder, images, DIM, 2, 64, 12)
    return run


def scores(run: Run, part: int) -> dict[str, list[tuple[str | None, float]]]:
    rows = pq.read_table(run.scores("semantic").folder / f"{part:05d}.parquet").to_pylist()
    found: dict[str, list[tuple[str | None, float]]] = {}
    for row in rows:
        found.setdefault(row["key"], []).append((row["semantic_copy_of"], row["similarity"]))
    return found


# Of equal vectors: 1 and its twin 100004 (val), 2 and 100005 (train both), 4 (test) and 100007 (train).
TWINS = [[0, 1, 2, 3, 4], [PERIOD + 1, PERIOD + 2, PERIOD + 4, PERIOD + 9]]


def test_protected_splits_stay_and_every_pair_of_an_image_says_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWINS, threshold=0.999)
    build_scores(run, InProcess())
    first, second = scores(run, 0), scores(run, 1)
    assert all(len(set(rows)) == 1 and len(rows) == 2 for part in (first, second) for rows in part.values())
    of = {key: rows[0][0] for part in (first, second) for key, rows in part.items()}
    name = "{:09d}".format
    assert {k: v for k, v in of.items() if v} == {
        name(1): name(PERIOD + 1),  # 100004 % 5 == 4: test
        name(PERIOD + 2): name(2),  # both train: the smaller key
        name(PERIOD + 4): name(4),
    }
    assert all((rows[0][1] >= 0.999) == (rows[0][0] is not None) for part in (first, second) for rows in part.values())
    artifact = run.scores("semantic")
    assert artifact.manifest()["counts"] == {"copies": 6, "pairs": 18} and artifact.verify() == []
    facts = read_json(artifact.folder / "images.json", "facts")
    assert facts == {"copies": 3, "images": 9, "method": "exact", "recall": 1.0, "threshold": 0.999}


def write_base(run: Run) -> None:
    """A base view that keeps every other image."""
    write_view(run.view("base").folder, run.embeddings, 2, run.config[ViewsSettings].base.model_dump(mode="json"))


def test_what_base_leaves_out_is_nobodys_original(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWINS, threshold=0.999)
    write_base(run)  # keeps even numbers: 0, 2, 4, 100004, 100012
    build_scores(run, InProcess())
    rows = scores(run, 0) | scores(run, 1)
    assert all(found[0] == (None, -1.0) for key, found in rows.items() if int(key) % 2)
    assert all(found[0][0] is None for found in rows.values())
    assert read_json(run.scores("semantic").folder / "images.json", "facts")["images"] == 5


def test_an_index_states_its_recall_in_the_manifest(tmp_path: Path) -> None:
    numbers = list(range(0, 3000))
    twins = [PERIOD + i for i in range(0, 3000, 10)]
    run = make_run(tmp_path, [numbers, twins], threshold=0.999, exact_up_to=100, probes=8)
    build_scores(run, InProcess())
    artifact = run.scores("semantic")
    facts = read_json(artifact.folder / "images.json", "facts")
    assert facts["method"] == "index" and facts["images"] == 3300 and "images.json" in artifact.manifest()["files"]
    exact = make_run(tmp_path / "exact", [numbers, twins], threshold=0.999)
    build_scores(exact, InProcess())
    truth = read_json(exact.scores("semantic").folder / "images.json", "facts")["copies"]
    assert truth >= 300
    assert facts["recall"] == pytest.approx(facts["copies"] / truth, abs=0.02)
    assert facts["recall"] > 0.95


def test_equal_inputs_are_not_compared_again_and_another_view_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, TWINS, threshold=0.999)
    build_scores(run, InProcess())
    assert not list(run.scratch.glob("semantic-*"))  # nothing is left of what the comparison found but the scores
    monkeypatch.setattr("embed.scores.semantic.find_copies", lambda *_: pytest.fail("compared again"))
    build_scores(run, InProcess())
    write_base(run)
    with pytest.raises(BaseException, match="compared again"):
        build_scores(run, InProcess())


def test_an_index_without_faiss_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    run = make_run(tmp_path, TWINS, exact_up_to=3)
    with pytest.raises(UserError, match=r"need faiss: pip install 'unclip-toolkit\[scale\]'"):
        build_scores(run, InProcess())
    assert unit_vectors(np.array([5]), DIM).tobytes() == unit_vectors(np.array([PERIOD + 5]), DIM).tobytes()


@pytest.mark.parametrize("name", ["images.json", "00001.parquet"])
def test_a_file_that_is_lost_or_cut_is_made_again(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, TWINS, threshold=0.999)
    build_scores(run, InProcess())
    folder = run.scores("semantic").folder
    before = tree_bytes(folder)
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        damage(folder / name)
        build_scores(run, InProcess())
        assert tree_bytes(folder) == before and not list(run.scratch.glob("semantic-*"))
