"""The study's image files: copied byte for byte, or composed once into a grid; never resampled.

A PNG may carry text, times and EXIF beside its pixels. Those could name the system, so a file with any of them is refused.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.pipeline.errors import Code, UserError
from humaneval.settings import GRID_CELLS, GRID_SIDE

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that hold pixels or say how to show them; any other could name the system.
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sRGB", b"gAMA", b"cHRM", b"sBIT"})
GRID_GROUND = (255, 255, 255)


def check_png(content: bytes, source: Path) -> tuple[int, int, int, int]:
    """(width, height, bit depth, colour type) of a PNG that holds pixels and nothing else. Raises UserError otherwise."""
    if not content.startswith(PNG_SIGNATURE) or content[12:16] != b"IHDR":
        raise UserError(f"{source} is not a PNG; studies are made from PNG images", Code.DAMAGED)
    position, end = len(PNG_SIGNATURE), len(content)
    while position + 12 <= end:
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        if kind not in PIXEL_CHUNKS:
            raise UserError(
                f"{source} carries a {kind.decode('latin-1')} chunk, which could tell raters its system; save images without metadata",
                Code.DAMAGED,
            )
        position += length + 12
    if position != end or content[-8:-4] != b"IEND":
        raise UserError(f"{source} is cut short or carries bytes after its end; generate it again", Code.DAMAGED)
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    return width, height, depth, colour


def compose_grid(cells: Sequence[bytes]) -> bytes:
    """16 PNGs of one size, row by row in a 4x4 grid with a white gutter, as PNG bytes. Pixels are pasted, not resampled."""
    images = [Image.open(io.BytesIO(cell)).convert("RGB") for cell in cells]
    sizes = sorted({image.size for image in images})
    if len(images) != GRID_CELLS or len(sizes) != 1:
        raise UserError(f"a grid needs {GRID_CELLS} images of one size, got {len(images)} of sizes {sizes}")
    (width, height), gutter = sizes[0], max(1, sizes[0][0] // 16)
    whole = (GRID_SIDE * width + (GRID_SIDE - 1) * gutter, GRID_SIDE * height + (GRID_SIDE - 1) * gutter)
    grid = Image.new("RGB", whole, GRID_GROUND)
    for i, image in enumerate(images):
        grid.paste(image, ((i % GRID_SIDE) * (width + gutter), (i // GRID_SIDE) * (height + gutter)))
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG")
    return buffer.getvalue()
