"""The feed: the same items for any number of ranks, read ahead or not, from any step on."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.fake_cache import write_cache
from embed.reading.reader import EmbeddingReader
from training.loop.feed import Feed

Items = NDArray[np.int64]
SIZE = 13


def order(epoch: int) -> Items:
    return np.random.default_rng([7, epoch]).permutation(SIZE)


def same(items: Items) -> Items:
    return items


def steps(batch: int, epochs: int = 3) -> range:
    return range(-(-epochs * SIZE // batch))


def sequence(batch: int) -> list[list[int]]:
    """What the steps are by definition: epoch after epoch, cut into batches."""
    whole = np.concatenate([order(epoch) for epoch in range(3 + batch // SIZE + 1)])
    return [whole[step * batch : (step + 1) * batch].tolist() for step in steps(batch)]


BATCHES = pytest.mark.parametrize("batch", [1, 4, 13, 26, 31])


@BATCHES
def test_steps_cut_the_endless_sequence_of_epochs(batch: int) -> None:
    with Feed(order, SIZE, same, batch) as feed:
        found = [feed.take(step)[0].tolist() for step in steps(batch)]
    assert found == sequence(batch)
    items = [item for step in found for item in step]
    for epoch in range(3):
        assert sorted(items[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))


@BATCHES
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("slices", [1, 2])
def test_ranks_together_give_one_ranks_batch(batch: int, ranks: int, slices: int) -> None:
    feeds = [Feed(order, SIZE, same, batch, rank, ranks, slices) for rank in range(ranks)]
    for step, whole in zip(steps(batch), sequence(batch), strict=True):
        for rank, feed in enumerate(feeds):
            pieces = feed.take(step)
            assert len(pieces) == slices and max(map(len, pieces)) - min(map(len, pieces)) <= 1
            assert np.concatenate(pieces).tolist() == whole[rank::ranks]
    for feed in feeds:
        feed.close()


@BATCHES
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_begun_at_any_step_the_rest_is_the_same(batch: int, ahead: int) -> None:
    expected = sequence(batch)
    for start in steps(batch):
        with Feed(order, SIZE, same, batch, ahead=ahead) as feed:
            assert [feed.take(step)[0].tolist() for step in steps(batch)[start:]] == expected[start:]


def test_steps_may_be_taken_in_any_order_and_again() -> None:
    expected = sequence(4)
    with Feed(order, SIZE, same, 4) as feed:
        for step in (5, 5, 0, 7, 1, 2, 1):
            assert feed.take(step)[0].tolist() == expected[step]


def test_following_steps_are_fetched_before_they_are_asked_for() -> None:
    fetched: list[list[int]] = []
    reached = threading.Event()

    def fetch(items: Items) -> Items:
        fetched.append(items.tolist())
        if len(fetched) == 3:
            reached.set()
        return items

    with Feed(order, SIZE, fetch, 4, ahead=2) as feed:
        feed.take(0)
        assert reached.wait(10)
        assert fetched == sequence(4)[:3]
        feed.take(1)
        feed.take(2)
        feed.take(3)
    assert fetched[:4] == sequence(4)[:4], "no step is fetched twice"


def test_what_fetch_raises_is_raised_at_its_step() -> None:
    bad = set(sequence(4)[2])

    def fetch(items: Items) -> Items:
        if set(items.tolist()) == bad:
            raise ValueError("no such image")
        return items

    with Feed(order, SIZE, fetch, 4) as feed:
        for step in (0, 1):
            feed.take(step)
        with pytest.raises(ValueError, match="no such image"):
            feed.take(2)
        assert feed.take(3)[0].tolist() == sequence(4)[3]


def test_closing_does_not_wait_for_a_fetch_that_hangs() -> None:
    release = threading.Event()

    def fetch(items: Items) -> Items:
        if items.tolist() != sequence(4)[0]:
            release.wait(60)
        return items

    feed = Feed(order, SIZE, fetch, 4)
    feed.take(0)
    start = time.monotonic()
    feed.close()
    assert time.monotonic() - start < 5
    release.set()


def test_a_feed_that_nobody_closes_lets_the_interpreter_end() -> None:
    program = (
        "import numpy as np, time\nfrom training.loop.feed import Feed\n"
        "feed = Feed(lambda epoch: np.arange(9), 9, lambda items: time.sleep(0.1), 2, ahead=5)\nfeed.take(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("limit", [4000, 10**9])  # 4000 bytes: windows of eleven rows, two row groups of five
def test_pairs_of_a_cache_are_fed_alike_from_any_step(tmp_path: Path, limit: int) -> None:
    cache = write_cache(tmp_path / "e", [range(10), range(10, 25)], 16, 2, 5, 12)
    reader = EmbeddingReader(cache, memory_limit=limit)
    assert reader.in_memory == (limit > 4000)

    def fed(start: int, rank: int = 0, ranks: int = 1) -> list[tuple[list[str], torch.Tensor]]:
        opened = EmbeddingReader(cache, memory_limit=limit)
        with Feed(lambda epoch: opened.order(3, epoch), len(opened), opened.fetch, 8, rank, ranks) as feed:
            batches = [feed.take(step)[0] for step in range(start, 15)]
        return [(batch.keys, batch.image_embedding) for batch in batches]

    whole = fed(0)
    for step in range(15):
        for (keys, vectors), (expected, others) in zip(fed(step), whole[step:], strict=True):
            assert keys == expected and torch.equal(vectors, others)
    first, second = fed(0, 0, 2), fed(0, 1, 2)
    for step, (keys, vectors) in enumerate(whole):
        assert (first[step][0], second[step][0]) == (keys[::2], keys[1::2])
        assert torch.equal(torch.cat([first[step][1], second[step][1]]), torch.cat([vectors[::2], vectors[1::2]]))


def test_an_epoch_loads_each_row_group_of_a_cache_on_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path / "e", [range(30), range(30, 60)], 16, 3, 5, 12)
    reader = EmbeddingReader(cache, memory_limit=4000)
    loaded: list[int] = []
    load: Callable[..., object] = reader.parts.load

    def counted(units, *arguments, **named):  # type: ignore[no-untyped-def]
        loaded.extend(unit.start for unit in units)
        return load(units, *arguments, **named)

    monkeypatch.setattr(reader.parts, "load", counted)
    with Feed(lambda epoch: reader.order(0, epoch), len(reader), reader.fetch, 6, ahead=0) as feed:
        for step in range(len(reader) // 6):
            feed.take(step)
    assert len(loaded) == len(reader.parts.units)


def test_nothing_is_read_ahead_beyond_the_last_step() -> None:
    fetched: list[list[int]] = []
    with Feed(order, SIZE, lambda items: fetched.append(items.tolist()), 4, ahead=3, steps=3) as feed:
        for step in range(3):
            feed.take(step)
        feed.take(5)
    assert fetched == [*sequence(4)[:3], sequence(4)[5]]
