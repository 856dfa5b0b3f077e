"""Equal work: our stored bytes are those of img2dataset's own Resizer, mode by mode.

Where they differ on purpose: `keep_ratio` and `keep_ratio_largest` never enlarge (its `resize_only_if_bigger`), grey images are
stored as RGB (equal pixels), orientation is applied, and what it gets wrong (16 bits, CMYK profiles) is not copied.
"""

import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import SHARED
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from tests.data.made_images import encode, noise, pixels

PHOTOS = SHARED / "photos" / "images"
SHAPES = [
    (1, 1),
    (1, 40),
    (40, 1),
    (20, 300),
    (300, 20),
    (64, 64),
    (63, 65),
    (65, 63),
    (3, 5),
    (70, 20),
    (128, 128),
    (301, 97),
]


def theirs(mode: str, form: str, quality: int) -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    bigger_only = mode in ("keep_ratio", "keep_ratio_largest")
    return Resizer(64, mode, bigger_only, encode_format=form, encode_quality=quality)


@pytest.mark.parametrize("mode", ["center_crop", "keep_ratio", "keep_ratio_largest", "border", "no"])
@pytest.mark.parametrize(("form", "quality", "their_quality"), [("jpg", 95, 95), ("webp", 80, 80), ("png", 95, 4)])
def test_equal_to_img2dataset(mode: Any, form: Any, quality: int, their_quality: int) -> None:
    peer = theirs(mode, form, their_quality)
    settings = ImageSettings(mode=mode, size=64, format=form, quality=quality, chroma="420")
    sources = [encode(noise(*shape, seed=i), "JPEG", quality=90) for i, shape in enumerate(SHAPES)]
    sources += [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))[:20]]
    for source in sources:
        content, width, height, original_width, original_height, error = peer(io.BytesIO(source))
        ours = resize_image(source, settings)
        assert error is None
        assert (ours.width, ours.height) == (width, height)
        assert (ours.original_width, ours.original_height) == (original_width, original_height)
        if Image.open(io.BytesIO(source)).mode == "L":
            same = np.array_equal(
                pixels(ours.content)[..., 0], np.asarray(Image.open(io.BytesIO(content)).convert("L"))
            )
        else:
            same = ours.content == content
        assert same, (mode, form, original_width, original_height)


def test_png_sources_are_equal_too() -> None:
    peer, settings = theirs("center_crop", "jpg", 95), ImageSettings(size=64, chroma="420")
    for image in (noise(100, 80), noise(50, 80), noise(90, 90).quantize(16)):
        source = encode(image)
        assert resize_image(source, settings).content == peer(io.BytesIO(source))[0]
