"""The reader: every row by number and by key, and an order of the rows that seed and epoch decide (feeding it: tests/training/loop/test_feed.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.fake_cache import TEXT_PHASE, unit_vectors, write_cache, write_view
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError
from embed.reading.parts import Unit
from embed.reading.reader import EmbeddingReader, PairBatch
from embed.reading.rows import Rows

DIM, IMAGES, CAPTIONS = 16, 60, 3
PAIRS = IMAGES * CAPTIONS
SMALL = 4000  # bytes: eleven rows a window, two row groups of five


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """60 images of 3 captions in parts of 30, 0, 20 and 10 images, row groups of 5 rows."""
    images = [range(30), range(30, 30), range(30, 50), range(50, 60)]
    return write_cache(tmp_path_factory.mktemp("cache") / "e", images, DIM, CAPTIONS, 5, 12)


@pytest.fixture(scope="module")
def held(cache: Artifact) -> EmbeddingReader:
    return EmbeddingReader(cache)


@pytest.fixture(scope="module")
def windowed(cache: Artifact) -> EmbeddingReader:
    reader = EmbeddingReader(cache, memory_limit=SMALL)
    assert not reader.in_memory and 2 <= len(reader.shuffle.windows(0, 0)) < len(reader.parts.units)
    return reader


@pytest.fixture(params=["held", "windowed"])
def reader(request: pytest.FixtureRequest) -> EmbeddingReader:
    found: EmbeddingReader = request.getfixturevalue(request.param)
    return found


def batches(reader: EmbeddingReader, batch: int, seed: int, epoch: int = 0) -> Iterator[PairBatch]:
    """The rows of an epoch in its order."""
    rows = reader.order(seed, epoch)
    return (reader.fetch(rows[at : at + batch]) for at in range(0, len(rows), batch))


def pairs(found: Iterator[PairBatch]) -> list[tuple[str, int]]:
    return [pair for b in found for pair in zip(b.keys, b.caption_index.tolist(), strict=True)]


def same(a: PairBatch, b: PairBatch) -> bool:
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y)):
            return False
    return True


def test_every_row_is_what_its_key_says(reader: EmbeddingReader) -> None:
    rows = np.random.default_rng(0).permutation(PAIRS)
    batch = reader.fetch(rows)
    numbers, index = np.array(batch.keys, np.int64), batch.caption_index.astype(np.int64)
    assert len(set(zip(numbers.tolist(), index.tolist(), strict=True))) == PAIRS
    assert reader.keys[rows].tolist() == batch.keys and (reader.caption_index[rows] == index).all()
    for found, stored in (
        (batch.image_embedding, unit_vectors(numbers, DIM)),
        (batch.text_embedding, unit_vectors(7 * numbers + index, DIM, TEXT_PHASE)),
    ):
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.from_numpy(stored.astype(np.float32)), atol=1e-3)
        assert torch.allclose(found.double().norm(dim=1), torch.ones(PAIRS).double(), atol=1e-6)
    assert torch.equal(batch.n_tokens, (batch.token_ids != 0).sum(dim=1)) and batch.token_ids.dtype == torch.int64
    assert (batch.token_ids[:, 0].numpy() == numbers + index + 1).all()
    assert reader.captions(rows[:7]) == [
        f"caption {k} of image {i}" for i, k in zip(numbers[:7], index[:7], strict=True)
    ]


def test_an_epoch_is_every_row_once_in_an_order_of_seed_and_epoch_alone(reader: EmbeddingReader) -> None:
    orders = {place: pairs(batches(reader, 7, *place)) for place in ((0, 0), (0, 1), (1, 0))}
    assert len({tuple(o) for o in orders.values()}) == 3
    for (seed, epoch), found in orders.items():
        assert len(found) == PAIRS == len(set(found))
        assert found == pairs(batches(reader, 31, seed, epoch))
        rows = reader.order(seed, epoch)
        assert found == list(zip(reader.keys[rows].tolist(), reader.caption_index[rows].tolist(), strict=True))


def test_a_window_mixes_its_row_groups_and_windows_mix_the_cache(windowed: EmbeddingReader) -> None:
    order = windowed.order(0, 0)
    assert (np.abs(np.diff(order)) > 1).mean() > 0.7
    first = order[: len(order) // 4]
    assert first.min() < PAIRS / 4 and first.max() > 3 * PAIRS / 4


def test_row_groups_of_a_cache_on_disk_stay_within_the_limit(
    cache: Artifact, windowed: EmbeddingReader, held: EmbeddingReader
) -> None:
    """Also where rows are asked for against every order: then they are loaded again."""
    reader = EmbeddingReader(cache, memory_limit=SMALL)
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(PAIRS), rng.integers(0, PAIRS, 400), [0], range(PAIRS)):
        keys, numbers = reader.keys[rows].tolist(), reader.caption_index[rows].tolist()
        assert same(reader.fetch(rows), held.fetch(held.find(keys, numbers)))
        assert sum(buffer.rows for _, buffer in reader._recent._held.values()) * reader.parts.row_bytes <= SMALL


def test_threads_may_fetch_at_once(reader: EmbeddingReader) -> None:
    expected = reader.fetch(range(PAIRS))
    orders = [np.random.default_rng(i).permutation(PAIRS) for i in range(4)]
    found: dict[int, PairBatch] = {}

    def fetch(i: int) -> None:
        for _ in range(5):
            found[i] = reader.fetch(orders[i])

    threads = [Thread(target=fetch, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, batch in found.items():
        assert torch.equal(batch.image_embedding, expected.image_embedding[orders[i]])
        assert batch.keys == [expected.keys[row] for row in orders[i]]


def test_cut_otherwise_permuted_and_retried_the_held_rows_are_the_same(
    cache: Artifact, held: EmbeddingReader, tmp_path: Path
) -> None:
    cuts: dict[str, list[Sequence[int]]] = {
        "whole": [range(60)],
        "reversed": [range(40, 60), range(40)],
        # A retry part holds keys between the others'.
        "retried": [[i for i in range(60) if i % 7], [i for i in range(60) if i % 7 == 0]],
    }
    for name, images in cuts.items():
        other = EmbeddingReader(write_cache(tmp_path / name, images, DIM, CAPTIONS, 64, 12))
        assert (other.keys == held.keys).all()
        assert all(same(a, b) for a, b in zip(batches(other, 32, 1), batches(held, 32, 1), strict=True))
        assert other.captions(range(0, PAIRS, 11)) == held.captions(range(0, PAIRS, 11))
        large = EmbeddingReader(Artifact(tmp_path / name), memory_limit=SMALL)
        keys, index = held.keys[::5].tolist(), held.caption_index[::5].tolist()
        assert same(large.fetch(large.find(keys, index)), held.fetch(held.find(keys, index)))
        assert torch.equal(large.images()[1], held.images()[1]) and (large.images()[0] == held.images()[0]).all()


def test_rows_are_found_by_key_or_refused(reader: EmbeddingReader) -> None:
    rows = reader.find(["000000031", "000000002", "000000031"], [2, 0, 0])
    batch = reader.fetch(rows)
    assert batch.keys == ["000000031", "000000002", "000000031"] and batch.caption_index.tolist() == [2, 0, 0]
    assert reader.fetch(reader.find(["000000059"])).caption_index.tolist() == [0]
    for key, index in (("000000060", [0]), ("000000001", [3]), ("1", [0])):
        with pytest.raises(UserError, match=f"'{key}', {index[0]}.* is not among the 180 pairs read"):
            reader.find([key], index)
    with pytest.raises(UserError, match="'nosuch' is not among"):
        reader.find(["000000001", "nosuch"])


def test_images_scan_and_columns(reader: EmbeddingReader) -> None:
    keys, vectors = reader.images()
    assert keys.tolist() == [f"{i:09d}" for i in range(IMAGES)]
    assert torch.equal(vectors, reader.fetch(reader.find(keys.tolist())).image_embedding)
    for kind in ("image", "text"):
        expected = getattr(reader.fetch(np.arange(PAIRS)), f"{kind}_embedding")
        assert torch.allclose(torch.cat(list(reader.scan(kind, 4))), expected, atol=1e-6)
        raw = torch.cat(list(reader.scan(kind, 4, unit=False)))
        assert torch.equal(raw, raw.half().float()) and torch.allclose(raw, expected, atol=1e-3)
    assert reader.column("width", [3, 1]).to_pylist() == [256, 256] and len(reader.column("uid", [])) == 0
    assert reader.fetch([]).keys == [] and reader.fetch([]).image_embedding.shape == (0, DIM)


def test_vectors_not_asked_for_are_empty_and_change_no_order(cache: Artifact, held: EmbeddingReader) -> None:
    for limit in (SMALL, 10**9):
        one = EmbeddingReader(cache, vectors=("image",), memory_limit=limit)
        both = EmbeddingReader(cache, memory_limit=limit)
        for a, b in zip(batches(one, 50, 3), batches(both, 50, 3), strict=True):
            assert a.text_embedding.shape == (len(a.keys), 0) and torch.equal(a.image_embedding, b.image_embedding)


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_views_and_splits(cache: Artifact, tmp_path: Path, limit: int) -> None:
    view = write_view(tmp_path / "view", cache, 2)
    for name, split, numbers in (
        ("", None, range(0, 60, 2)),
        ("", "val", range(8, 60, 10)),
        ("none", "train", [i for i in range(60) if i % 5 < 3]),
    ):
        reader = EmbeddingReader(cache, None if name else view, split, memory_limit=limit)
        expected = [(f"{i:09d}", k) for i in numbers for k in range(CAPTIONS)]
        assert len(reader) == len(expected) and sorted(pairs(batches(reader, 10, 0))) == expected
        assert sorted(set(reader.images()[0])) == sorted({key for key, _ in expected})
        assert set(reader.column("split", range(len(reader))).to_pylist()) == (
            {split} if split else {"train", "val", "test"}
        )
        with pytest.raises(UserError, match="is not among"):
            reader.find(["000000003", "000000001"] if not name else ["000000003"])


def test_pages_that_cannot_be_mapped_are_decoded_to_the_same_values(
    cache: Artifact, held: EmbeddingReader, tmp_path: Path
) -> None:
    from embed.reading.mapped import OpenPart

    path, dtype = tmp_path / "p.parquet", np.dtype("<f2")
    table = pq.read_table(cache.folder / "00000.parquet")
    options: dict[str, dict[str, Any]] = {
        "pages": {"data_page_size": 1, "write_batch_size": 2, "use_dictionary": False, "compression": "none"},
        "compressed": {"compression": "zstd", "use_dictionary": False},
        "dictionary": {"compression": "none"},
    }
    whole = OpenPart(cache.folder / "00000.parquet")
    expected = np.concatenate([whole.matrix(g, "image_embedding", dtype, DIM) for g in range(18)])
    assert whole._page_of(0, "image_embedding", 5 * 2 * DIM) is not None
    for keywords in options.values():
        pq.write_table(table, path, row_group_size=90, **keywords)
        part = OpenPart(path)
        assert part._page_of(0, "image_embedding", 90 * 2 * DIM) is None
        assert np.array_equal(part.matrix(0, "image_embedding", dtype, DIM), expected)


def test_keys_of_unequal_lengths() -> None:
    import pyarrow as pa

    from embed.reading.mapped import fixed_width

    for keys in (["a", "bcd", ""], ["ab", "cd", "ef"], [], [""]):
        for column in (
            pa.chunked_array([keys], pa.string()),
            pa.chunked_array([keys[:1], keys[1:]], pa.string()).slice(0),
        ):
            assert [k.decode() for k in fixed_width(column).tolist()] == keys
    assert fixed_width(pa.chunked_array([["xx", "ab", "cd"]]).slice(1)).tolist() == [b"ab", b"cd"]


def test_only_two_windows_are_in_memory_and_no_row_is_read_twice(tmp_path: Path) -> None:
    """While an epoch of a cache six times the limit is read in its order."""
    cache, limit = (
        write_cache(tmp_path / "e", [range(500 * i, 500 * i + 500) for i in range(4)], DIM, 1, 50, 12),
        2000 * 152 // 6,
    )
    reader = EmbeddingReader(cache, memory_limit=limit)
    windows = reader.shuffle.windows(0, 0)
    sizes = [int(reader.parts.counts[window.units].sum()) for window in windows]
    assert 2 * max(sizes) * reader.parts.row_bytes <= limit and len(sizes) >= 10
    loaded = []
    load = reader.parts.load

    def noted(units: Sequence[Unit], kinds: Any, buffer: Any) -> Rows:
        loaded.append(sum(u.kept for u in units))
        return load(units, kinds, buffer=buffer)

    reader.parts.load = noted  # type: ignore[method-assign,assignment]
    for i, batch in enumerate(batches(reader, 20, 0), 1):
        assert len(batch.keys) == 20
        assert sum(loaded) <= i * 20 + max(sizes)
        assert sum(buffer.rows for _, buffer in reader._recent._held.values()) * reader.parts.row_bytes <= limit
    assert sum(loaded) == 2000
