"""Image sets: which images, with ids and groups (captions), and from what they come; and PNG in and out."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.generations import read_generations
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError
from data.pipeline.stage import Input


@dataclass(frozen=True)
class Images:
    """n images, uint8 (n, h, w, 3). `groups[i]` is the caption that image `ids[i]` belongs to."""

    ids: list[str]
    groups: list[str]
    pixels: NDArray[np.uint8]


class ImageSet(Protocol):
    """A small value that says which images; they are read in the process that needs them. `inputs` decide what they are."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Input, ...]: ...

    def load(self) -> Images: ...


@dataclass(frozen=True)
class GeneratedImages:
    """The images of one folder of `generations/` (whose artifact has `digest`), ordered by image id and grouped by prompt."""

    folder: Path
    digest: str

    @classmethod
    def of(cls, artifact: Artifact) -> "GeneratedImages":
        return cls(artifact.folder, artifact.digest())

    @property
    def name(self) -> str:
        """`<system>-<prompt set>-<settings hash>`."""
        return f"{self.folder.parent.name}-{self.folder.name}"

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.folder.relative_to(self.folder.parents[2]).as_posix(), self.digest),)

    def load(self) -> Images:
        table = read_generations(Artifact(self.folder))
        pixels = [read_png((self.folder / file).read_bytes()) for file in table["file"].to_pylist()]
        return Images(table["image_id"].to_pylist(), table["prompt_id"].to_pylist(), np.stack(pixels))


def read_png(content: bytes) -> NDArray[np.uint8]:
    """PNG bytes -> uint8 (h, w, 3). Raises UserError for anything that is not a PNG image."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"a generated image cannot be read as PNG: {error}; run `python -m eval generate` again", Code.DAMAGED
        ) from None


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
