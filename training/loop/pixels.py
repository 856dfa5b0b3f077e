"""Pixels by key at the decoder's side: decoded and reduced once, then kept as uint8."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.pipeline.errors import UserError
from data.pipeline.progress import progress

MEMORY_LIMIT = 4 * 2**30  # bytes of pixels held; beyond it every batch is decoded anew


Shrink = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


class Images(Protocol):
    """Where stored images come from (`data.dataset.shards.ShardReader`)."""

    def image(self, key: str) -> NDArray[np.uint8]: ...


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


class PixelStore:
    """Images of `keys`, shrunk to uint8 (3, side, side) by `shrink`, in memory while they fit `limit` bytes."""

    def __init__(
        self, images: Images, keys: Sequence[str], side: int, shrink: Shrink = reduce_image, limit: int = MEMORY_LIMIT
    ) -> None:
        self._images, self._shrink, self.side = images, shrink, side
        self._row: dict[str, int] = {}
        self._pixels = torch.zeros(0, 3, side, side, dtype=torch.uint8)
        distinct = list(dict.fromkeys(keys))
        if len(distinct) * 3 * side * side > limit:
            return
        self._pixels = torch.empty(len(distinct), 3, side, side, dtype=torch.uint8)
        with progress(f"reading images at {side} pixels", len(distinct), "images") as bar:
            for row, key in enumerate(distinct):
                self._pixels[row] = self._decode(key)
                self._row[key] = row
                bar.advance()

    def _decode(self, key: str) -> Tensor:
        return torch.from_numpy(self._shrink(self._images.image(key), self.side).copy()).permute(2, 0, 1)

    def fetch(self, keys: Sequence[str]) -> Tensor:
        """uint8 (n, 3, side, side), in the order of the keys."""
        if self._row:
            return self._pixels[[self._row[key] for key in keys]]
        return torch.stack([self._decode(key) for key in keys])


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded to the nearest and clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
