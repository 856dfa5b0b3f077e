"""Pixels by key at the decoder's side, uint8: decoded once where they fit the memory limit, else streamed shard by shard.

A set that is larger than the limit is walked in windows of whole shards (`embed.reading.shuffle`): while one window is used, the shards of
the next are read by webdataset and decoded on threads. `Pixels.order` is the order of items that keeps to the windows; it is a pure
function of (seed, epoch), and any place in it can be begun at.
"""

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarError

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from webdataset.tariterators import tar_file_expander

from data.dataset.shards import IMAGE_SUFFIXES, ShardReader, decode_rgb
from data.pipeline.errors import Code, UserError
from data.pipeline.progress import progress
from embed.encoding.threads import cores
from embed.reading.shuffle import Shuffle

MEMORY_LIMIT = 4 * 2**30  # bytes of pixels held
MOST_THREADS = 16
ADVICE = "run `python -m data verify`, then `make dataset`"

Items = NDArray[np.int64]
Shrink = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def reduce_image(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 (h, w, 3) -> (side, side, 3): the centre square, each new pixel the mean of the area it covers.

    Raises UserError for an image smaller than `side`."""
    h, w = image.shape[:2]
    if min(h, w) < side:
        raise UserError(
            f"a stored image has {w} x {h} pixels, training needs {side} x {side}: "
            f"lower the architecture's side, or store larger images (dataset.image)"
        )
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    square = Image.fromarray(image[top : top + s, left : left + s])
    return np.asarray(square if s == side else square.resize((side, side), Image.Resampling.BOX))


@dataclass(frozen=True)
class Share:
    """Which items of an order this process gets: of every `batch`, each `ranks`-th from number `rank` on, as `Feed` deals them out."""

    batch: int = 1
    rank: int = 0
    ranks: int = 1

    def of(self, places: Items) -> NDArray[np.bool_]:
        """Whether the items at these places of the endless sequence are ours."""
        return np.asarray(places % self.batch % self.ranks == self.rank)


@dataclass
class _Window:
    """Images being decoded: row i of `pixels` is image number `images[i]` (ascending) once all of `decoding` are done, which tell how
    many images each shard has."""

    images: Items
    pixels: Tensor
    decoding: dict[Future[None], int] = field(default_factory=dict)
    dropped: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Raises UserError where a shard is damaged, CancelledError where the window was dropped."""
        for shard in self.decoding:
            shard.result()
        self.decoding = {}

    def drop(self) -> None:
        self.dropped.set()
        for shard in list(self.decoding):
            shard.cancel()


def _find(images: Items, numbers: Items) -> tuple[NDArray[np.bool_], Items]:
    """Which of the image numbers are among `images` (ascending), and the places there of those that are."""
    if not len(images):
        return np.zeros(len(numbers), bool), np.zeros(0, np.int64)
    places = np.minimum(np.searchsorted(images, numbers), len(images) - 1)
    here = images[places] == numbers
    return here, places[here]


class Pixels:
    """The images of items: item i shows the image `keys[i]` (several items may share one), shrunk to uint8 (3, side, side) by `shrink`.

    Images that fit `limit` bytes together are decoded at once and kept. Of a larger set two windows are held, together at most `limit`
    bytes; of these a process decodes what its `share` of the items shows. Images of `also` (validation) are kept beside them. `beside`
    counts the bytes that each item takes elsewhere while its window is used (a pair of a cache that is itself larger than memory).

    Raises UserError for a damaged shard, for images that `shrink` refuses, and where a single shard is too large for a window.
    """

    def __init__(
        self, shards: ShardReader, keys: Sequence[str], side: int, shrink: Shrink = reduce_image,
        limit: int = MEMORY_LIMIT, also: Sequence[str] = (), share: Share | None = None, beside: int = 0,
    ) -> None:  # fmt: skip
        self.side, self._shards, self._shrink, self._share = side, shards, shrink, share or Share()
        self._number = {key: i for i, key in enumerate(dict.fromkeys([*keys, *also]))}
        self._keys = list(self._number)
        self._paths = [_tar_path(shards, key) for key in self._keys]
        self._image_of = np.array([self._number[key] for key in keys], dtype=np.int64)
        self._pool = ThreadPoolExecutor(max(1, min(MOST_THREADS, cores() // self._share.ranks)), "decode")
        self._lock = threading.Lock()
        self._held: list[_Window] = []  # the window in use, then the one that is decoded ahead
        # The images of each window of the order asked for last, after those of the former's windows that its first batch begins in.
        self._plan: list[Items] = []
        self._ends: list[int] = []  # the place in the endless sequence where each of these windows ends
        self._newest = -1  # which window of that plan is the last one held
        kept = np.unique([self._number[key] for key in also]).astype(np.int64)
        self._shuffle: Shuffle | None = None
        if len(self._keys) * self._image_bytes <= limit:
            kept = np.arange(len(self._keys))
        else:
            self._shuffle = self._windows(limit - len(kept) * self._image_bytes, beside)
        self._kept = self._decode_now(kept)

    def __enter__(self) -> "Pixels":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop decoding. A `fetch` that waits in another thread ends with an error."""
        for window in (self._kept, *self._held):
            window.drop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _image_bytes(self) -> int:
        return 3 * self.side**2

    def _windows(self, limit: int, beside: int) -> Shuffle:
        """Windows of shards, each shard with the bytes that its images and items take."""
        shard_of = np.unique([str(path) for path in self._paths], return_inverse=True)[1]
        unit_of = np.unique(shard_of[self._image_of], return_inverse=True)[1]
        items = np.bincount(unit_of)
        self._items_of = np.split(np.argsort(unit_of, kind="stable"), np.cumsum(items)[:-1])
        images = np.array([len(np.unique(self._image_of[of])) for of in self._items_of])
        sizes = images * self._image_bytes + items * beside
        if sizes.max() > limit // 2:
            path = self._paths[self._image_of[self._items_of[int(sizes.argmax())][0]]]
            raise UserError(
                f"the images of {path} take {sizes.max() / 2**20:.2f} MiB at {self.side} x {self.side} pixels, and of two windows of "
                f"at least one shard each {limit / 2**20:.2f} MiB are to be held: make smaller shards (`python -m data reshard`)"
            )
        return Shuffle(sizes, limit // 2)

    def order(self, seed: int, epoch: int) -> Items | None:
        """A permutation of the items that walks through the windows; None where all images are held, and any order will do.

        A batch may lie across the ends of two epochs, whose orders are then asked for one after the other before its images are."""
        if self._shuffle is None:
            return None
        order, plan, ends, start = [], [], [], epoch * len(self._image_of)
        batch = start // self._share.batch * self._share.batch  # where the batch begins in which this epoch does
        for window in self._shuffle.windows(seed, epoch):
            assert window.units is not None
            items = window.shuffled(np.concatenate([self._items_of[unit] for unit in window.units]))
            ours = items[self._share.of(np.arange(start, start + len(items)))]
            order.append(items)
            start += len(items)
            if len(ours):
                plan.append(np.unique(self._image_of[ours]))
                ends.append(start)
        with self._lock:
            first = start - len(self._image_of)
            across = [n for n in range(self._newest + 1, len(self._plan)) if batch < self._ends[n] <= first]
            self._plan, self._ends = [self._plan[n] for n in across] + plan, [self._ends[n] for n in across] + ends
            self._newest = -1
            if across and not self._held:
                self._hold(0)
        return np.concatenate(order)

    def fetch(self, keys: Sequence[str]) -> Tensor:
        """uint8 (n, 3, side, side), in the order of the keys. Quick along the order that was asked for last; any other image of a set
        larger than memory is decoded anew. Waits for the images' window, and raises what is wrong with a shard of it."""
        numbers = np.array([self._number.get(key, -1) for key in keys], dtype=np.int64)
        here, rows = _find(self._kept.images, numbers)
        if here.all():
            return self._kept.pixels[rows]
        found = torch.empty(len(keys), 3, self.side, self.side, dtype=torch.uint8)
        found[here] = self._kept.pixels[rows]
        with self._lock:
            left = self._walk(numbers, np.flatnonzero(~here), found)
        for i in left.tolist():
            found[i] = _shrunk(self._shards.image(keys[i]), self._shrink, self.side)
        return found

    def _walk(self, numbers: Items, left: Items, found: Tensor) -> Items:
        """Fill in the places `left` of `found` from the windows, going on to later ones as needed; returns the places of images that
        are in no window, or in one that lies behind."""
        newest_used = False
        while True:
            for window in self._held:
                here, rows = _find(window.images, numbers[left])
                if len(rows):
                    window.wait()
                    found[left[here]] = window.pixels[rows]
                    left, newest_used = left[~here], window is self._held[-1]
            # Begun anywhere, and then window by window: an image that lies further on may be one of the former epoch's.
            later = range(self._newest + 1, len(self._plan))[: 1 if self._held else None]
            following = next((n for n in later if _find(self._plan[n], numbers[left])[0].any()), None)
            if following is None:
                break
            self._hold(following)
        if newest_used and self._newest + 1 < len(self._plan):
            self._hold(self._newest + 1)
        return left

    def _hold(self, number: int) -> None:
        """Begin to decode a window of the plan, in the place of the older one of the two held."""
        while len(self._held) > 1:
            self._held.pop(0).drop()  # its memory is free before the new window takes some
        self._held.append(self._decode(self._plan[number]))
        self._newest = number

    def _decode(self, images: Items) -> _Window:
        window = _Window(images, torch.empty(len(images), 3, self.side, self.side, dtype=torch.uint8))
        by_shard: dict[Path, dict[str, int]] = {}
        for row, image in enumerate(images.tolist()):
            by_shard.setdefault(self._paths[image], {})[self._keys[image]] = row
        for path, rows in sorted(by_shard.items()):
            shard = self._pool.submit(self._decode_shard, path, rows, window.pixels, window.dropped)
            window.decoding[shard] = len(rows)
        return window

    def _decode_shard(self, path: Path, rows: Mapping[str, int], pixels: Tensor, dropped: threading.Event) -> None:
        self._pool.submit(bool)  # refused when the interpreter ends, which would wait for every shard that is queued
        missing = set(rows)
        for key, image in read_images(path, rows):
            if dropped.is_set():
                raise CancelledError
            pixels[rows[key]] = _shrunk(image, self._shrink, self.side)
            missing.discard(key)
        if missing:
            raise UserError(
                f"{path} lacks the images of {len(missing)} samples, e.g. {min(missing)}; {ADVICE}", Code.DAMAGED
            )

    def _decode_now(self, images: Items) -> _Window:
        window = self._decode(images)
        try:
            with progress(f"reading images at {self.side} pixels", len(images), "images", not len(images)) as bar:
                for shard, count in window.decoding.items():
                    shard.result()
                    bar.advance(count)
        except BaseException:
            window.drop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise
        return window


def read_images(path: Path, wanted: Container[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The images of a shard's samples that are wanted, uint8 (h, w, 3), with their keys, in the shard's order.

    Raises UserError for a tar that is missing or damaged and for an image that cannot be decoded."""

    def is_wanted(name: str) -> bool:
        key, _, suffix = name.partition(".")
        return suffix in IMAGE_SUFFIXES and key in wanted

    try:
        with path.open("rb") as stream:
            source = [{"url": str(path), "stream": stream}]
            for member in tar_file_expander(source, select_files=is_wanted, eof_value=None):
                yield member["fname"].partition(".")[0], _decoded(member["data"], f"{path}: {member['fname']}")
    except (TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}); {ADVICE}", Code.DAMAGED) from error


def _decoded(content: bytes, what: str) -> NDArray[np.uint8]:
    try:
        return decode_rgb(content)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{what} cannot be decoded ({error}); {ADVICE}", Code.DAMAGED) from error


def _shrunk(image: NDArray[np.uint8], shrink: Shrink, side: int) -> Tensor:
    """uint8 (3, side, side)."""
    return torch.from_numpy(shrink(image, side).copy()).permute(2, 0, 1)


def _tar_path(shards: ShardReader, key: str) -> Path:
    if key not in shards:
        raise UserError(
            f"{shards.folder} stores no image of {key}: the pairs are of another dataset; run `make embeddings`",
            Code.FOREIGN,
        )
    return shards.tar_path(key)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded to the nearest and clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
