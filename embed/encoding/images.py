"""Stored images to raw CLIP vectors: bytes from the shard, decoded by threads ahead of the encoder, in the shard's order.

Preprocessing is open_clip's own, in two halves that give the same pixels: its geometry (PIL resize and crop) for each image in the
decode threads, its scaling and normalisation for a whole batch at once, as a table of 256 values a channel.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import MaybeConvertMode, MaybeToTensor, PreprocessCfg, ResizeKeepRatio, image_transform_v2
from PIL import Image
from torchvision.transforms import Normalize, Resize
from torchvision.transforms.functional import pil_modes_mapping

from data.dataset.shards import IMAGE_SUFFIXES
from data.pipeline.errors import Code, UserError
from embed.clip.model import Clip
from embed.encoding.threads import EncodingThreads

AHEAD = 2  # batches decoded beyond those being encoded
# A JPEG at reduced scale keeps at least this many times the size that the CLIP's resize makes, so that the resize still averages.
# The tolerance that follows, as docs/embeddings.md states it and a test measures on photographs.
REDUCED_MARGIN = 2
REDUCED_LEVELS = (
    3.0  # root mean square of the difference from the full decode's pixels, in levels of 255, for any image
)


@dataclass(frozen=True)
class StoredImage:
    """One sample of a shard: its JSON, and where its image's bytes lie in the tar."""

    key: str
    meta: Mapping[str, Any]
    offset: int
    size: int


@dataclass(frozen=True)
class Timing:
    """What encoding a shard's images took. `waited`: seconds that the encoding threads together waited for decoded images."""

    images: int
    seconds: float
    waited: float


def index_shard(path: Path) -> list[StoredImage]:
    """Every sample of a shard in its order, without the images' bytes. Raises UserError for a damaged tar."""
    found: list[StoredImage] = []
    images: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if suffix in IMAGE_SUFFIXES:
                    images[key] = member
                elif suffix == "json":
                    content = tar.extractfile(member)
                    if content is None or key not in images:
                        raise UserError(
                            f"{path}: sample {key} lacks its image; run `python -m data verify`", Code.DAMAGED
                        )
                    image = images.pop(key)
                    found.append(StoredImage(key, json.loads(content.read()), image.offset_data, image.size))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `python -m data verify`, then `make dataset`", Code.MISSING) from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); run `python -m data verify`, then `make dataset`", Code.DAMAGED
        ) from None
    if images:
        raise UserError(f"{path}: sample {sorted(images)[0]} lacks its JSON; run `python -m data verify`", Code.DAMAGED)
    return found


class Preprocess:
    """A CLIP's preprocessing: `square` for one image, `normalise` for a batch. Together equal to open_clip's, bit for bit."""

    def __init__(self, config: Mapping[str, Any], reduced_decode: bool = False) -> None:
        chosen = PreprocessCfg(**config)
        steps = image_transform_v2(chosen, is_train=False).transforms
        resize, *crops, to_rgb, scale, normalise = steps
        # We convert first and scale by our table; open_clip changing its steps must not pass unseen.
        expected = (Resize, ResizeKeepRatio), MaybeConvertMode, MaybeToTensor, Normalize
        if not all(map(isinstance, (resize, to_rgb, scale, normalise), expected)):
            raise UserError(
                f"this open_clip preprocesses by other steps than expected: {steps}; install the pinned version"
            )
        self._resize: Any = resize
        self._after = crops
        size: Any = chosen.size
        self.height, self.width = size if isinstance(size, Sequence) else (size, size)
        self._reduced = reduced_decode
        levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1).expand(256, 1, 3)
        table = normalise(
            levels.permute(2, 0, 1).float().div(255)
        )  # (3, 256, 1), by the very operations of the original
        self._table = table.reshape(3, 256).contiguous()

    def square(self, content: bytes) -> NDArray[np.uint8]:
        """Encoded image -> uint8 (height, width, 3), resized and cropped."""
        with Image.open(io.BytesIO(content)) as opened:
            reducible = self._reduced and opened.format == "JPEG"
            image = self._reduced_and_resized(opened) if reducible else self._resize(opened.convert("RGB"))
        for step in self._after:
            image = step(image)
        return np.asarray(image)

    def _reduced_and_resized(self, opened: Any) -> Any:
        """The libjpeg-scaled image, resized from the very extent that the whole one has: the scaled one is rounded up to whole
        pixels, and a resize of those would shift the crop."""
        width, height = self.resized_to(*opened.size)
        found = opened.draft(None, (REDUCED_MARGIN * width, REDUCED_MARGIN * height))
        extent = found[1] if found else None
        return opened.convert("RGB").resize((width, height), pil_modes_mapping[self._resize.interpolation], extent)

    def resized_to(self, width: int, height: int) -> tuple[int, int]:
        """The size that the CLIP's resize gives an image of this one, before the crop."""
        if isinstance(self._resize, ResizeKeepRatio):
            image = SimpleNamespace(size=(width, height))
            high, wide = self._resize.get_params(image, self._resize.size, self._resize.longest)
            return int(wide), int(high)
        size: Any = self._resize.size
        if isinstance(size, Sequence):
            return int(size[1]), int(size[0])
        short, long = min(width, height), max(width, height)
        other = int(size * long / short)
        return (size, other) if width <= height else (other, size)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, height, width, 3) -> float32 (n, 3, height, width) on the same device."""
        table = self._table.to(pixels.device)
        return torch.stack([table[channel][pixels[..., channel].int()] for channel in range(3)], dim=1)


class DecodedBatches:
    """An iterator of (position of its first image, uint8 (n, height, width, 3)), decoded by `threads` ahead of whoever asks.

    Any number of threads may ask. At most `ahead` batches beyond those handed out are held. Images are checked against the hash
    stored beside them: an embedding must be of the bytes that the trainer will read.
    """

    def __init__(
        self, path: Path, stored: Sequence[StoredImage], prepare: Preprocess, batch: int, threads: int, ahead: int,
        pinned: bool = False,
    ) -> None:  # fmt: skip
        self._path, self._stored, self._prepare = path, stored, prepare
        self._batch, self._ahead, self._pinned = batch, ahead, pinned
        self._starts: Iterator[int] = iter(range(0, len(stored), batch))
        self._waiting: deque[tuple[int, torch.Tensor, list[Future[None]]]] = deque()
        self._lock = threading.Lock()
        self._file = path.open("rb")
        self._pool = ThreadPoolExecutor(threads, "decode")
        self.waited = 0.0
        with self._lock:
            self._fill()

    def __enter__(self) -> "DecodedBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def __iter__(self) -> "DecodedBatches":
        return self

    def __next__(self) -> tuple[int, torch.Tensor]:
        with self._lock:
            if not self._waiting:
                raise StopIteration
            start, pixels, decoding = self._waiting.popleft()
            self._fill()
        before = time.perf_counter()
        for future in decoding:
            future.result()
        with self._lock:
            self.waited += time.perf_counter() - before
        return start, pixels

    def _fill(self) -> None:
        while len(self._waiting) < self._ahead and (start := next(self._starts, None)) is not None:
            chosen = self._stored[start : start + self._batch]
            shape = (len(chosen), self._prepare.height, self._prepare.width, 3)
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
            rows = pixels.numpy()
            self._waiting.append(
                (start, pixels, [self._pool.submit(self._decode, s, rows[i]) for i, s in enumerate(chosen)])
            )

    def _decode(self, stored: StoredImage, row: NDArray[np.uint8]) -> None:
        content = os.pread(self._file.fileno(), stored.size, stored.offset)
        if hashlib.sha256(content).hexdigest() != stored.meta["stored_sha256"]:
            raise UserError(
                f"{self._path}: the image of sample {stored.key} differs from the hash stored beside it; run `python -m data verify`",
                Code.DAMAGED,
            )
        try:
            row[...] = self._prepare.square(content)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self._path}: the image of sample {stored.key} cannot be decoded: {error}", Code.DAMAGED
            ) from None


def encode_shard_images(
    clip: Clip, path: Path, stored: Sequence[StoredImage], threads: EncodingThreads, decode_threads: int = 1, reduced: bool = False
) -> tuple[torch.Tensor, Timing]:  # fmt: skip
    """Images of a shard -> raw (not unit length) float32 (n, d) in the shard's order, batch by batch as `clip.batch` says."""
    start = time.perf_counter()
    prepare = Preprocess(clip.preprocess_config, reduced)
    on_gpu, ahead = threads.device.type == "cuda", threads.count + AHEAD - 1
    raw = torch.zeros(len(stored), clip.embed_dim)
    with DecodedBatches(path, stored, prepare, clip.batch, decode_threads, ahead, on_gpu) as batches:

        def encode() -> None:
            for first, pixels in batches:
                found = clip.encode_pixels(prepare.normalise(pixels.to(threads.device, non_blocking=True)))
                raw[first : first + len(pixels)] = found.cpu()

        running = [threads.submit(encode) for _ in range(threads.count)]
        for future in running:
            future.result()
    return raw, Timing(len(stored), time.perf_counter() - start, batches.waited)
