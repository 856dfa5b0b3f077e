"""Images for the resizer's tests."""

import io
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pixels(content: bytes | None) -> np.ndarray:
    """Stored bytes -> uint8 (height, width, 3)."""
    assert content is not None
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)
