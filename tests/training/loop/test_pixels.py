"""Pixels by key: what fits is held, what does not is streamed in windows of shards, and both are what the shards store."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import training.loop.pixels
from benchmarks.fake_cache import write_cache
from data.dataset.shards import ShardReader
from data.pipeline.errors import Code, UserError
from embed.reading.reader import EmbeddingReader
from training.loop.feed import Feed
from training.loop.pixels import Pixels, Share, read_images, reduce_image, to_uint8, to_unit

sys.path.insert(0, str(Path(__file__).parent))
from made_shards import digests, open_shards, picture, write_shards

STORED, SIDE = 8, 4
IMAGE = 3 * SIDE**2  # bytes
IMAGES = 48
# Retried samples (every seventh) lie in later shards, out of the order of keys; one shard is empty.
SHARDS: dict[str, Sequence[int]] = {
    **{f"{i:05d}": [n for n in range(8 * i, 8 * i + 8) if n % 7] for i in range(6)},
    "00006": [],
    "00007": [n for n in range(IMAGES) if n % 7 == 0],
}
LIMIT = 32 * IMAGE  # two windows of sixteen images


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return write_shards(tmp_path_factory.mktemp("dataset") / "d", SHARDS, STORED)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each shard, and each image (by key), is read."""
    found: Counter[str] = Counter()

    def counted(path: Path, wanted: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        found[path.stem] += 1
        for key, image in read_images(path, wanted):
            found[key] += 1
            yield key, image

    monkeypatch.setattr(training.loop.pixels, "read_images", counted)
    return found


def expected(keys: Sequence[str]) -> torch.Tensor:
    images = [reduce_image(picture(key, STORED), SIDE) for key in keys]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def items_shown_twice(shards: ShardReader) -> list[str]:
    """The keys of items as a cache has them: two captions an image."""
    return [key for key in sorted(shards.keys()) for _ in range(2)]


def test_uint8_is_rounded_and_inverts_to_unit() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(torch.tensor([0.9999, -3.0, 3.0, 0.0])).tolist() == [255, 0, 255, 128]


def test_reduction_is_the_mean_of_the_centre_square() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:2, 2:4], image[2:, 4:6] = 200, 100
    assert reduce_image(image, 2)[:, :, 0].tolist() == [[200, 0], [0, 100]]
    image[0, 2] = 100
    assert reduce_image(image, 2)[0, 0, 0] == 175
    assert np.array_equal(reduce_image(image[:, :4], 4), image[:, :4])
    with pytest.raises(UserError, match="8 x 4 pixels, training needs 5 x 5"):
        reduce_image(image, 5)


@pytest.mark.parametrize("limit", [10**9, LIMIT])
def test_pixels_are_those_of_the_shards_whatever_is_asked_for(shards: ShardReader, limit: int) -> None:
    keys = [key for key in sorted(shards.keys()) if int(key) % 5]
    also = ["000000040", "000000005"]
    with Pixels(shards, keys, SIDE, limit=limit, also=also) as pixels:
        for epoch in (None, 0, 1):
            if epoch is not None:
                pixels.order(0, epoch)
            for wanted in (
                ["000000031", "000000002", "000000031"],
                also,
                [*also, "000000001"],
                ["000000000"],
                keys,
                [],
            ):
                found = pixels.fetch(wanted)
                assert found.dtype == torch.uint8 and found.shape == (len(wanted), 3, SIDE, SIDE)
                assert not wanted or torch.equal(found, expected(wanted))


def test_what_fits_is_decoded_once_and_has_no_order_of_its_own(shards: ShardReader, read: Counter[str]) -> None:
    keys = items_shown_twice(shards)
    with Pixels(shards, keys, SIDE) as pixels:
        assert pixels.order(0, 0) is None
        for _ in range(2):
            assert torch.equal(pixels.fetch(keys), expected(keys))
    assert set(read.values()) == {1} and len(read) == 7 + IMAGES


def test_a_shrinking_of_ones_own(shards: ShardReader) -> None:
    with Pixels(shards, ["000000003"], SIDE, lambda image, side: image[:side, :side]) as pixels:
        found = pixels.fetch(["000000003"])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, picture("000000003", STORED)[:SIDE, :SIDE])


def test_the_order_of_a_larger_set_holds_every_item_once_and_walks_through_the_shards(shards: ShardReader) -> None:
    keys = items_shown_twice(shards)
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        with Pixels(shards, keys, SIDE, limit=LIMIT, share=Share(6, 1, 2)) as pixels:
            found = pixels.order(seed, epoch)
        with Pixels(shards, keys, SIDE, limit=LIMIT) as pixels:
            pixels.order(9, 9)
            again = pixels.order(seed, epoch)
        assert found is not None and again is not None
        assert found.tolist() == again.tolist(), "of seed and epoch alone"
        assert sorted(found.tolist()) == list(range(len(keys)))
        orders[seed, epoch] = found.tolist()
        names = [shards.tar_path(keys[item]).stem for item in found]
        spans = [(names.index(name), len(names) - 1 - names[::-1].index(name)) for name in set(names)]
        assert max(last - first for first, last in spans) < 2 * 16, "a shard's items lie within one window"
        assert len({names.index(name) for name in set(names)}) > 2
    assert len({tuple(order) for order in orders.values()}) == 3


@pytest.mark.parametrize("batch", [3, 8, 40])
@pytest.mark.parametrize("cores", [1, 4])
def test_a_set_larger_than_memory_is_fed_from_any_step_within_the_limit(
    shards: ShardReader, batch: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.loop.pixels, "cores", lambda: cores)
    keys = items_shown_twice(shards)
    steps = 2 * len(keys) // batch + 1  # over the ends of epochs
    whole: list[list[int]] = []
    for start in range(steps):
        with Pixels(shards, keys, SIDE, limit=LIMIT, also=keys[:2]) as pixels:

            def order(epoch: int, pixels: Pixels = pixels) -> NDArray[np.int64]:
                found = pixels.order(3, epoch)
                assert found is not None
                return found

            def fetch(items: NDArray[np.int64], pixels: Pixels = pixels) -> list[int]:
                chosen = [keys[item] for item in items]
                assert torch.equal(pixels.fetch(chosen), expected(chosen))
                held = sum(window.pixels.nbytes for window in (pixels._kept, *pixels._held))
                assert held <= LIMIT and len(pixels._held) <= 2
                return items.tolist()

            with Feed(order, len(keys), fetch, batch) as feed:
                found = [feed.take(step)[0] for step in range(start, steps if start == 0 else min(steps, start + 4))]
        whole = whole or found
        assert found == whole[start : start + len(found)]
    items = [item for step in whole for item in step]
    for epoch in range(2):
        assert sorted(items[epoch * len(keys) : (epoch + 1) * len(keys)]) == list(range(len(keys)))


def test_along_the_order_an_epoch_reads_each_shard_once(shards: ShardReader, read: Counter[str]) -> None:
    keys = items_shown_twice(shards)
    with Pixels(shards, keys, SIDE, limit=LIMIT) as pixels:
        order = pixels.order(0, 0)
        assert order is not None
        for at in range(0, len(keys), 4):
            pixels.fetch([keys[item] for item in order[at : at + 4]])
    assert set(read.values()) == {1} and len(read) == 7 + IMAGES


@pytest.mark.parametrize(("batch", "ranks"), [(5, 1), (10, 2), (15, 3), (9, 3)])
def test_from_any_step_no_window_is_left_out(
    shards: ShardReader, batch: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a window that was left out would be decoded one by one, when their turn comes."""
    keys, alone = shards.keys(), []
    image = ShardReader.image
    monkeypatch.setattr(ShardReader, "image", lambda reader, key: alone.append(key) or image(reader, key))
    for rank in range(ranks):
        for start in range(3 * IMAGES // batch):
            with Pixels(shards, keys, SIDE, limit=LIMIT, share=Share(batch, rank, ranks)) as pixels:

                def order(epoch: int, pixels: Pixels = pixels) -> NDArray[np.int64]:
                    found = pixels.order(3, epoch)
                    assert found is not None
                    return found

                def fetch(items: NDArray[np.int64], pixels: Pixels = pixels) -> None:
                    chosen = [keys[item] for item in items]
                    assert torch.equal(pixels.fetch(chosen), expected(chosen))

                with Feed(order, len(keys), fetch, batch, rank, ranks, slices=2, ahead=0) as feed:
                    for step in range(start, start + 2 * IMAGES // batch):
                        feed.take(step)
            assert not alone, (rank, start)


@pytest.mark.parametrize("batch", [4, 6])
def test_two_ranks_decode_and_get_what_one_would(shards: ShardReader, batch: int, read: Counter[str]) -> None:
    keys, steps = shards.keys(), IMAGES // batch
    whole = list(digests(shards, SIDE, LIMIT, batch, 0, steps, 0, 1))
    read.clear()
    seen: list[set[str]] = []
    for rank in range(2):
        with Pixels(shards, keys, SIDE, limit=LIMIT, share=Share(batch, rank, 2)) as pixels:
            order = pixels.order(5, 0)
            assert order is not None
            mine = [keys[item] for at in range(0, IMAGES, batch) for item in order[at : at + batch][rank::2]]
            for at in range(0, len(mine), batch // 2):
                assert torch.equal(pixels.fetch(mine[at : at + batch // 2]), expected(mine[at : at + batch // 2]))
            seen.append(set(mine))
    assert {key: n for key, n in read.items() if len(key) == 9} == dict.fromkeys(keys, 1), (
        "each image by one rank alone"
    )
    assert not seen[0] & seen[1] and len(whole) == steps


def test_windows_also_bound_the_pairs_of_a_cache_that_is_larger_than_memory(
    shards: ShardReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Counter[str]
) -> None:
    """Pairs and pixels walk together: neither a row group nor a shard is read twice in an epoch."""
    cache = write_cache(tmp_path / "e", list(SHARDS.values()), 16, 1, 4, 12)
    reader, image = EmbeddingReader(cache, memory_limit=4000), 3 * STORED**2
    assert not reader.in_memory
    loaded: Counter[Any] = Counter()
    load = reader.parts.load

    def counted(units: Any, *arguments: Any, **named: Any) -> Any:
        loaded.update(units)
        return load(units, *arguments, **named)

    keys, row_bytes = reader.keys.tolist(), reader.parts.row_bytes
    monkeypatch.setattr(reader.parts, "load", counted)
    with Pixels(shards, keys, STORED, limit=IMAGES * image - 1, beside=row_bytes) as pixels:
        order = pixels.order(0, 0)
        assert order is not None
        read.clear()
        for at in range(0, len(keys), 4):
            pairs = reader.fetch(order[at : at + 4])
            assert pairs.keys == [keys[item] for item in order[at : at + 4]]
            images = np.stack([picture(key, STORED) for key in pairs.keys])
            assert torch.equal(pixels.fetch(pairs.keys), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert set(loaded.values()) == {1} and len(loaded) == len(reader.parts.units)
    assert set(read.values()) == {1}


def damaged(folder: Path, shards: ShardReader, how: str) -> ShardReader:
    for number in range(8):
        source = shards.folder / "shards" / f"{number:05d}.tar"
        target = folder / "shards" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (folder / "ledger").symlink_to(shards.folder / "ledger")
    (folder / "manifest.json").write_text("{}")
    opened, path = open_shards(folder), folder / "shards" / "00003.tar"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut within an image":
        path.write_bytes(content[: 512 + 100])
    elif how == "cut between samples":
        path.write_bytes(content[: content.index(b"000000026.png")])
    elif how == "no tar":
        path.write_bytes(b"x" * 3000)
    else:
        at = content.index(b"IDAT")
        path.write_bytes(content[: at + 8] + bytes(40) + content[at + 48 :])
    return opened


@pytest.mark.parametrize("limit", [10**9, LIMIT])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"00003\.tar is missing or damaged \(FileNotFoundError\)"),
        ("cut within an image", r"00003\.tar is missing or damaged \(ReadError\)"),
        ("cut between samples", r"00003\.tar lacks the images of \d samples, e\.g\. 000000026"),
        ("no tar", r"00003\.tar is missing or damaged \(ReadError\)"),
        ("image", r"00003\.tar: 000000024\.png cannot be decoded"),
    ],
)
def test_a_damaged_shard_is_named_with_what_to_do(
    shards: ShardReader, tmp_path: Path, limit: int, how: str, message: str
) -> None:
    broken = damaged(tmp_path / "d", shards, how)
    with pytest.raises(UserError, match=message + r".*run `python -m data verify`") as error:
        list(digests(broken, SIDE, limit, 4, 0, IMAGES // 4, 0, 1))
    assert error.value.code == Code.DAMAGED


def test_what_cannot_be_streamed_is_refused(shards: ShardReader) -> None:
    with pytest.raises(UserError, match=r"the images of .*\.tar take 0\.00 MiB at 4 x 4 .*make smaller shards"):
        Pixels(shards, shards.keys(), SIDE, limit=13 * IMAGE)
    with pytest.raises(UserError, match="stores no image of 000000099") as error:
        Pixels(shards, ["000000001", "000000099"], SIDE)
    assert error.value.code == Code.FOREIGN
    with pytest.raises(UserError, match="a stored image has 8 x 8 pixels, training needs 16 x 16"):
        Pixels(shards, shards.keys(), 16)


def test_closing_ends_a_feed_that_waits(shards: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(path: Path, wanted: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        begun.set()
        release.wait(60)
        yield from read_images(path, wanted)

    monkeypatch.setattr(training.loop.pixels, "read_images", slow)
    pixels = Pixels(shards, shards.keys(), SIDE, limit=LIMIT)
    order = pixels.order(0, 0)
    assert order is not None
    with Feed(lambda epoch: order, IMAGES, lambda items: pixels.fetch([shards.keys()[i] for i in items]), 4) as feed:
        threading.Thread(target=lambda: (begun.wait(60), pixels.close(), release.set())).start()
        with pytest.raises((CancelledError, RuntimeError)):
            feed.take(0)


def test_streaming_that_nobody_closes_lets_the_interpreter_end(shards: ShardReader) -> None:
    """Which waits for the shard that is being decoded, and for no other."""
    program = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "import training.loop.pixels as module\nfrom made_shards import open_shards\nread = module.read_images\n"
        "def slow(path, wanted):\n    print('begun', flush=True)\n    time.sleep(2)\n    return read(path, wanted)\n"
        "module.read_images, module.cores = slow, lambda: 1\nshards = open_shards(Path(sys.argv[2]))\n"
        "pixels = module.Pixels(shards, sorted(shards.keys()), 4, limit=40 * 48)\npixels.order(0, 0)\npixels._hold(0)\n"
        "assert len(pixels._held[0].decoding) > 1\ntime.sleep(0.5)\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(shards.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.split() == ["begun"]


LARGE_SIDE, LARGE_LIMIT = 64, 8 * 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """8,192 images of 12 KiB: 96 MiB in 64 shards."""
    shards = {f"{i:05d}": range(128 * i, 128 * i + 128) for i in range(64)}
    return write_shards(tmp_path_factory.mktemp("large") / "d", shards, LARGE_SIDE)


def streaming(shards: ShardReader, start: int, steps: int, rank: int = 0, ranks: int = 1) -> subprocess.Popen[str]:
    numbers = (LARGE_SIDE, LARGE_LIMIT, 96, start, steps, rank, ranks)
    command = [sys.executable, str(Path(__file__).parent / "made_shards.py"), str(shards.folder), *map(str, numbers)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_set_twelve_times_the_limit_streams_in_little_memory(large: ShardReader) -> None:
    steps = 2 * 8192 // 96
    process = streaming(large, 0, steps)
    printed = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0 and len(printed) == steps + 1
    grew = float(printed[-1].split()[1])
    assert grew < 40, "of 96 MiB 8 are held; the rest is what reading, decoding and the allocator take"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_any_moment_streaming_goes_on_the_same(large: ShardReader, ranks: int) -> None:
    steps, rng = 50, random.Random(ranks)
    for rank in range(ranks):
        expected = list(digests(large, LARGE_SIDE, LARGE_LIMIT, 96, 0, steps, rank, ranks))
        done: list[str] = []
        kills = 0
        while len(done) < steps:
            process = streaming(large, len(done), steps, rank, ranks)
            assert process.stdout is not None
            until = rng.randrange(6, 25)
            for line in process.stdout:
                if line.startswith("grew"):
                    break
                done.append(line.split()[1])
                until -= 1
                if not until:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
            process.wait(60)
            process.stdout.close()
        assert kills >= 2 and done == expected
