"""Our resizer: any image file to an upright RGB image of the wanted size, or a reason.

Resizing averages when it shrinks (`INTER_AREA`) and interpolates by Lanczos when it enlarges, which are img2dataset's defaults:
for an 8-bit colour JPEG all modes give the pixels of img2dataset's own resizer, and with `chroma = "420"` its stored bytes.
The differences: `keep_ratio` and `keep_ratio_largest` never enlarge (its `resize_only_if_bigger`); orientation is applied;
grey images are stored as RGB; PNG's `quality` is not a compression level; beyond an aspect ratio of MAX_ASPECT (less above a size
of 1,024), `center_crop` cuts the middle out before it resizes.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from data.fetch.reasons import Reason
from data.images.decode import Undecodable, decode
from data.images.settings import ImageSettings

# Limits of libjpeg and of the WebP format, in pixels; PNG has none to speak of.
MAX_SIDE = {"jpg": 65_500, "webp": 16_383}
# A line of 1 x 65,500 px, its shorter side enlarged to 256, would take 13 GB before the crop. At large sizes fewer pixels of it are
# made, but always half a side on both sides of what the crop takes, more than the Lanczos window sees of a picture that is one.
MAX_ASPECT, MIN_ASPECT, MAX_ENLARGED = 64, 2, 1 << 26  # the last in pixels
PNG_LEVEL = 4
LANCZOS_WINDOW = 5  # source pixels right of, or below, a place that it depends on, and one more


@dataclass(frozen=True)
class Resized:
    """Encoded bytes with their size and the original's (upright), or a reason."""

    content: bytes | None = None
    reason: Reason | None = None
    width: int = 0
    height: int = 0
    original_width: int = 0
    original_height: int = 0
    detail: str = ""


def resize_image(content: bytes, settings: ImageSettings) -> Resized:
    """Decode, turn upright, convert to RGB, resize and encode. Safe to call from many threads."""
    try:
        image = decode(content, settings)
    except Undecodable as error:
        width, height = error.size
        return Resized(None, error.reason, original_width=width, original_height=height, detail=error.detail)
    stored = scale(image.pixels, settings)
    height, width = stored.shape[:2]
    if max(width, height) > MAX_SIDE.get(settings.format, max(width, height)):
        return Resized(None, Reason.TOO_LARGE_SIDE, original_width=image.width, original_height=image.height)
    return Resized(encode(stored, settings), None, width, height, image.width, image.height)


def scale(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """uint8 (height, width, 3) to the configured mode's size; the channels' order does not matter but for `border`: BGR."""
    size = settings.size
    if settings.mode == "center_crop":
        aspect = max(MIN_ASPECT, min(MAX_ASPECT, MAX_ENLARGED // size**2))
        pixels = _middle(pixels, aspect * min(pixels.shape[:2]))
        return _middle_resized(pixels, size)
    if settings.mode == "border":
        return _bordered(_resized(pixels, size / max(pixels.shape[:2])), size, settings.background)
    if settings.mode == "no":
        return pixels
    side = min(pixels.shape[:2]) if settings.mode == "keep_ratio" else max(pixels.shape[:2])
    return _resized(pixels, min(1.0, size / side))


def _resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    target = max(1, round(width * factor)), max(1, round(height * factor))
    if target == (width, height):
        return pixels
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LANCZOS4)


def _middle_resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """The shorter side to `size`, then the middle `size` x `size`.

    Resizing costs as much as its output has pixels, so what the crop would cut away at the right and below is not computed: OpenCV
    gives the other pixels alike when it is told the factors. (Left and above it cannot be spared: source pixels would shift.)
    """
    height, width = pixels.shape[:2]
    factor = size / min(height, width)
    if factor == 1:
        return _middle(pixels, size)
    method, window = (cv2.INTER_AREA, 1) if factor < 1 else (cv2.INTER_LANCZOS4, LANCZOS_WINDOW)
    ends, factors, starts = [], [], []
    for side in (height, width):
        target = round(side * factor)
        start = (target - size) // 2
        factors.append(target / side)
        starts.append(start)
        ends.append(min(side, math.ceil((start + size + 1) / factors[-1]) + window - 1))
    part = cv2.resize(pixels[: ends[0], : ends[1]], None, fx=factors[1], fy=factors[0], interpolation=method)
    return part[starts[0] : starts[0] + size, starts[1] : starts[1] + size]


def _middle(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The middle of the image, no side longer than `longest`; a view."""
    height, width = pixels.shape[:2]
    y, x = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[y : y + longest, x : x + longest]


def _bordered(pixels: np.ndarray, size: int, background: tuple[int, int, int]) -> np.ndarray:
    height, width = pixels.shape[:2]
    canvas = np.full((size, size, 3), background[::-1], np.uint8)
    y, x = (size - height) // 2, (size - width) // 2
    canvas[y : y + height, x : x + width] = pixels
    return canvas


def encode(pixels: np.ndarray, settings: ImageSettings) -> bytes:
    """BGR pixels to bytes, without metadata. With `chroma = "444"` a JPEG keeps full colour resolution: small saturated objects
    lose theirs to 4:2:0."""
    if settings.format == "jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
        if settings.chroma == "444":
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    elif settings.format == "webp":
        options = [cv2.IMWRITE_WEBP_QUALITY, settings.quality]
    else:
        options = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    done, encoded = cv2.imencode(f".{settings.format}", pixels, options)
    assert done, f"OpenCV could not encode {pixels.shape} as {settings.format}"
    return encoded.tobytes()
