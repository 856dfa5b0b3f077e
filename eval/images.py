"""Image sets: images with ids and groups (captions), and the digest by which their features are cached."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.generations import read_samples
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """n images. `groups[i]` is the caption that image `ids[i]` belongs to; `load` gives uint8 (n, h, w, 3) in that order."""

    name: str
    digest: str
    ids: list[str]
    groups: list[str]
    load: Callable[[], NDArray[np.uint8]]


def samples_set(artifact: Artifact) -> ImageSet:
    """The images of a samples artifact, ordered by image id and grouped by prompt."""
    table = read_samples(artifact)
    files = table["file"].to_pylist()
    name = artifact.folder.relative_to(artifact.folder.parents[1]).as_posix()
    return ImageSet(
        name, artifact.digest(), table["image_id"].to_pylist(), table["prompt_id"].to_pylist(),
        lambda: np.stack([read_png((artifact.folder / file).read_bytes()) for file in files]),
    )  # fmt: skip


def read_png(content: bytes) -> NDArray[np.uint8]:
    """PNG bytes -> uint8 (h, w, 3). Raises UserError for anything that is not a PNG image."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"an image of a samples artifact cannot be read as PNG: {error}; sample again") from None


def write_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (h, w, 3) -> PNG bytes, the same for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def tile(images: NDArray[np.uint8], columns: int, gutter: int = 1) -> NDArray[np.uint8]:
    """uint8 (n, h, w, 3) -> one image, row by row, with a white gutter in pixels; missing cells are white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gutter) - gutter, columns * (w + gutter) - gutter, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + gutter), (i % columns) * (w + gutter)
        sheet[y : y + h, x : x + w] = image
    return sheet
