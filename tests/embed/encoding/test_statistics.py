"""`statistics.json` against the same numbers taken from whole matrices, and its bounded sample of very large caches."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.pipeline.artifacts import read_json
from data.pipeline.run import Run
from embed.encoding import statistics as module
from embed.encoding.statistics import statistics
from embed.format import CacheFormat, as_matrix, fixed_binary, write_part
from tests.conftest import tree_bytes

DIM, IMAGES = 6, 40
FORM = CacheFormat(DIM, 4, 100, {"clip_identity": "0"})


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f2")


def of_hash(n: int) -> bytes:
    return np.random.default_rng(n).bytes(16)


def write(path: Path, images: list[int], captions: list[int]) -> Path:
    """Row i pairs image `images[i]` with caption `captions[i]`; vectors, norms and hashes follow from the numbers."""
    n = len(images)
    basis = np.array([4, 2, 1, 0.5, 0.2, 0.1])
    image = (
        unit(np.stack([np.random.default_rng(i).normal(0, basis) + 1 for i in images]))
        if n
        else np.zeros((0, DIM), "<f2")
    )
    text = (
        unit(np.stack([np.random.default_rng(1000 + c).normal(0, 1, DIM) for c in captions]))
        if n
        else np.zeros((0, DIM), "<f2")
    )
    columns: dict[str, Any] = {
        "key": [f"{i:09d}" for i in range(n)], "caption_index": [0] * n, "uid": ["u"] * n, "caption": [str(c) for c in captions],
        "caption_hash": [of_hash(1000 + c) for c in captions], "image_hash": [of_hash(i) for i in images],
        "image_embedding": fixed_binary(image), "image_norm": [1.0 + i for i in images],
        "text_embedding": fixed_binary(text), "text_norm": [2.0 + c for c in captions],
        "token_ids": fixed_binary(np.zeros((n, 4), "<u2")), "n_tokens": [2] * n,
        "clip_score": (image.astype(np.float32) * text.astype(np.float32)).sum(1), "width": [1] * n, "height": [1] * n, "split": ["s"] * n,
    }  # fmt: skip
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, FORM.schema.field(k).type) for k, c in columns.items()]
    write_part(str(path), pa.Table.from_arrays(arrays, schema=FORM.schema), 7)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """40 images, every fourth of which stands twice; two captions a row of 60, some said twice; an empty part."""
    images = [i % IMAGES for i in range(60)] + [i for i in range(IMAGES) if i % 4 == 0]
    captions = [i % 50 for i in range(70)]
    cuts = [0, 25, 25, 60, 70]
    return [
        write(tmp_path / f"{n}.parquet", images[a:b], captions[a:b])
        for n, (a, b) in enumerate(itertools.pairwise(cuts))
    ]


def distinct(paths: list[Path], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (float64) and norms of each distinct image or caption."""
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    hashes = table["image_hash" if side == "image" else "caption_hash"].to_pylist()
    _, first = np.unique(hashes, return_index=True)
    return as_matrix(table[f"{side}_embedding"], "<f2", DIM)[first].astype(np.float64), table[
        f"{side}_norm"
    ].to_numpy()[first]


def test_they_are_those_of_the_distinct_images_and_captions(parts: list[Path]) -> None:
    found = statistics(parts, DIM)
    assert found["counts"] == {"distinct_images": 40, "distinct_captions": 50} and found["estimated"] == []
    means = {}
    for side, n in (("image", 40), ("text", 50)):
        vectors, norms = distinct(parts, side)
        ours, means[side] = found[side], vectors.mean(axis=0)
        assert ours["n"] == len(vectors) == n
        eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))[::-1]
        assert np.allclose(ours["eigenvalues"], eigenvalues, rtol=1e-5, atol=1e-9)
        share = eigenvalues / eigenvalues.sum()
        effective = ours["effective_dimension"]
        assert effective["participation_ratio"] == pytest.approx(1 / (share**2).sum(), rel=1e-5)
        assert effective["entropy"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
        assert ours["mean_vector_norm"] == pytest.approx(np.linalg.norm(means[side]), rel=1e-5)
        assert ours["norm"]["mean"] == pytest.approx(norms.mean()) and ours["norm"]["std"] == pytest.approx(norms.std())
        assert ours["norm"]["quantiles"]["0.5"] == pytest.approx(np.median(norms))
    assert found["gap"] == pytest.approx(np.linalg.norm(means["image"] - means["text"]), rel=1e-5)
    # The image vectors lie near one axis, the captions' do not.
    assert found["image"]["effective_dimension"]["entropy"] < 3.5 < found["text"]["effective_dimension"]["entropy"]


def test_similarities_are_over_pairs_and_strangers(parts: list[Path]) -> None:
    found = statistics(parts, DIM)["similarity"]
    scores = np.concatenate([pq.read_table(path)["clip_score"].to_numpy() for path in parts]).astype(np.float64)
    assert found["pairs"]["n"] == 70 == sum(found["pairs"]["histogram"])
    assert found["pairs"]["mean"] == pytest.approx(scores.mean(), rel=1e-5)
    assert found["pairs"]["std"] == pytest.approx(scores.std(), rel=1e-4)
    assert (np.histogram(scores, found["bin_edges"])[0] == found["pairs"]["histogram"]).all()
    assert 30 <= found["shuffled"]["n"] <= 50 and sum(found["shuffled"]["histogram"]) == found["shuffled"]["n"]


def test_strangers_are_never_the_captions_own_image() -> None:
    """Image i is the unit vector i, and so is its caption: a pair has cosine 1, strangers 0."""
    for n in (2, 3, 8):
        vectors = np.eye(n, dtype=np.float16)
        rows = np.arange(n)
        assert (module._strangers(2 * rows, vectors, 2 * rows, vectors) == 0).all()  # two captions an image
    assert (
        len(
            module._strangers(
                np.arange(3), np.eye(3, dtype=np.float16), np.zeros(1, int), np.eye(3, dtype=np.float16)[:1]
            )
        )
        == 0
    )


def test_a_large_cache_is_sampled_by_hash_and_says_so(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 20)
    found = statistics(parts, DIM)
    assert found["estimated"] == ["image", "text"] and found["image"]["n"] == found["text"]["n"] == 20
    assert found["counts"]["distinct_images"] == pytest.approx(40, rel=0.5)
    assert found["similarity"]["pairs"]["n"] == 70  # all of them still
    hashes = sorted(range(IMAGES), key=lambda i: int.from_bytes(of_hash(i)[:8], "little"))[:20]
    assert found["image"]["norm"]["mean"] == pytest.approx(np.mean([1.0 + i for i in hashes]))
    # Parts in another order are another order of sums: the last digits are rounded away.
    again = statistics(parts[::-1], DIM)
    for name in ("counts", "image", "text", "gap"):
        assert again[name] == found[name]


def test_how_many_distinct_ones_there_are_is_told_within_a_few_percent() -> None:
    chosen = module._Smallest(2000)
    hashes = np.random.default_rng(0).integers(0, 2**64, 30_000, dtype=np.uint64)
    for part, some in enumerate(np.split(hashes, 10)):
        chosen.add(np.concatenate([some, some[:1000]]), part)
    chosen.merge()
    assert len(chosen.hash) == 2000 and chosen.full and abs(chosen.distinct() / 30_000 - 1) < 0.07
    assert (chosen.hash == np.sort(hashes)[:2000]).all()
    assert (hashes[chosen.part * 3000 + chosen.row] == chosen.hash).all()  # each at its first place


def test_nothing_at_all_has_statistics_too(tmp_path: Path) -> None:
    found = statistics([write(tmp_path / "0.parquet", [], [])], DIM)
    assert found["counts"] == {"distinct_images": 0, "distinct_captions": 0} and found["similarity"]["pairs"]["n"] == 0
    assert found["image"]["eigenvalues"] == [0.0] * DIM
    module.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_stage_records_them(made_run: Run) -> None:
    folder = made_run.embeddings.folder
    content = read_json(folder / "statistics.json", "statistics")
    names = ["00000.parquet", "00001.parquet", "00002.parquet"]
    expected = statistics([folder / name for name in names], 32)
    assert content["image"] == expected["image"] and content["similarity"] == expected["similarity"]
    assert content["counts"]["distinct_images"] == 30 and content["counts"]["pairs"] == 60
    assert "statistics.json" in made_run.embeddings.manifest()["files"] and "statistics.json" in tree_bytes(folder)
    assert (folder / "log/statistics.png").read_bytes().startswith(b"\x89PNG")
