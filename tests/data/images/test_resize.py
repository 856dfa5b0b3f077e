"""Our resizer: every mode and shape, limits, formats, and the same answer from many threads."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data.fetch.reasons import Reason
from data.images.resize import resize_image, scale
from data.images.settings import ImageSettings
from tests.data.made_images import encode, noise, pixels

SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (32, 32),
    (31, 33),
    (33, 31),
    (128, 64),
    (64, 128),
    (16, 8),
    (8, 16),
    (500, 3),
    (3, 500),
]
# mode -> the size wanted of an image of width w and height h
WANTED = {
    "center_crop": lambda w, h: (32, 32),
    "border": lambda w, h: (32, 32),
    "no": lambda w, h: (w, h),
    "keep_ratio": lambda w, h: scaled(w, h, 32 / min(w, h)),
    "keep_ratio_largest": lambda w, h: scaled(w, h, 32 / max(w, h)),
}


def scaled(width: int, height: int, factor: float) -> tuple[int, int]:
    factor = min(1, factor)
    return max(1, round(width * factor)), max(1, round(height * factor))


@pytest.mark.parametrize("mode", WANTED)
def test_modes_and_shapes(mode: Any) -> None:
    for shape in SHAPES:
        found = resize_image(encode(noise(*shape)), ImageSettings(mode=mode, size=32, format="png"))
        assert found.reason is None
        assert (found.original_width, found.original_height) == shape
        assert (found.width, found.height) == WANTED[mode](*shape), shape
        assert pixels(found.content).shape == (found.height, found.width, 3)


def test_border_is_the_background_around_the_middle() -> None:
    wide = encode(Image.new("RGB", (64, 16), (0, 0, 255)))
    framed = pixels(
        resize_image(wide, ImageSettings(mode="border", size=32, format="png", background=(1, 2, 3))).content
    )
    assert (framed[:12] == (1, 2, 3)).all() and (framed[20:] == (1, 2, 3)).all()
    assert (framed[12:20] == (0, 0, 255)).all()


def test_center_crop_takes_the_middle() -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = (255, 0, 0)
    found = resize_image(encode(Image.fromarray(image)), ImageSettings(size=32, format="png"))
    assert (pixels(found.content) == (255, 0, 0)).all()


def test_center_crop_gives_the_pixels_of_the_whole_image_resized() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width, size = *rng.integers(20, 400, 2), int(rng.integers(8, 200))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        factor = size / min(height, width)
        target = round(width * factor), round(height * factor)
        whole = cv2.resize(image, target, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LANCZOS4)
        y, x = (target[1] - size) // 2, (target[0] - size) // 2
        found = scale(image, ImageSettings(size=size))
        assert np.array_equal(found, whole[y : y + size, x : x + size]), (height, width, size)


def test_center_crop_enlarges_only_what_it_needs_and_alike() -> None:
    rng = np.random.default_rng(1)
    for _ in range(120):
        size, side = int(rng.integers(30, 300)), int(rng.integers(1, 30))
        shape = (side, int(side * rng.uniform(1, 40)))
        image = rng.integers(0, 256, (*(shape if rng.random() < 0.5 else shape[::-1]), 3), dtype=np.uint8)
        target = tuple(round(length * (size / side)) for length in image.shape[1::-1])
        whole = cv2.resize(image, target, interpolation=cv2.INTER_LANCZOS4)
        y, x = (target[1] - size) // 2, (target[0] - size) // 2
        found = scale(image, ImageSettings(size=size))
        assert np.array_equal(found, whole[y : y + size, x : x + size]), (image.shape, size)


def test_nothing_to_resize_leaves_the_pixels() -> None:
    image = noise(32, 32)
    for mode in WANTED:
        found = resize_image(encode(image), ImageSettings(mode=mode, size=32, format="png"))  # type: ignore[arg-type]
        assert np.array_equal(pixels(found.content), np.asarray(image)), mode


def test_shrinking_is_antialiased() -> None:
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[::2] = 255
    settings = ImageSettings(size=32, format="png")
    shrunk = pixels(resize_image(encode(Image.fromarray(lines)), settings).content).astype(int)
    assert np.abs(shrunk - 127).max() <= 1  # picking pixels instead of averaging them would give 0 or 255


def test_a_line_is_cut_before_it_is_enlarged() -> None:
    """1 x 60,000 px with the shorter side enlarged to 256 would be a picture of 4 billion pixels before the crop."""
    for shape in ((1, 60_000), (60_000, 1)):
        found = resize_image(encode(Image.new("RGB", shape, (9, 8, 7))), ImageSettings(size=256, format="png"))
        assert (pixels(found.content) == (9, 8, 7)).all() and (found.width, found.height) == (256, 256)


@pytest.mark.parametrize(("form", "magic"), [("jpg", b"\xff\xd8"), ("webp", b"RIFF"), ("png", b"\x89PNG")])
def test_stored_formats_have_no_metadata(form: Any, magic: bytes) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    source = encode(noise(40, 40), "JPEG", exif=exif, icc_profile=b"not a profile", comment=b"hello")
    small, large = (resize_image(source, ImageSettings(size=32, format=form, quality=q)).content for q in (30, 95))
    assert small is not None and large is not None and large.startswith(magic)
    assert (len(small) < len(large)) == (form != "png")
    with Image.open(io.BytesIO(large)) as image:
        assert not image.getexif() and not {"icc_profile", "comment", "xmp", "exif"} & image.info.keys()


def test_chroma_of_a_jpeg() -> None:
    source = encode(noise(40, 40))
    full, half = (resize_image(source, ImageSettings(size=32, chroma=chroma)).content for chroma in ("444", "420"))  # type: ignore[arg-type]
    sampling = [Image.open(io.BytesIO(content or b"")).layer[0][1:3] for content in (full, half)]  # type: ignore[attr-defined]
    assert sampling == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("form", "limit"), [("jpg", 65_500), ("webp", 16_383)])
def test_a_side_the_format_cannot_hold_has_a_reason(form: Any, limit: int) -> None:
    settings = ImageSettings(mode="no", format=form)
    assert resize_image(encode(Image.new("RGB", (limit, 1))), settings).width == limit
    for size in ((limit + 1, 1), (1, limit + 1), (70_000, 1)):
        assert resize_image(encode(Image.new("RGB", size)), settings).reason == Reason.TOO_LARGE_SIDE
    assert resize_image(encode(Image.new("RGB", (70_000, 1))), ImageSettings(mode="no", format="png")).width == 70_000
    for mode in ("center_crop", "keep_ratio"):
        cut = resize_image(encode(Image.new("RGB", (70_000, 20))), ImageSettings(mode=mode, size=8, format=form))  # type: ignore[arg-type]
        assert (cut.reason is None) == (cut.content is not None) == (mode == "center_crop" or form == "jpg")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_bombs_are_refused_from_their_header() -> None:
    found = resize_image(png_of(60_000, 60_000), ImageSettings())
    assert (found.reason, found.content) == (Reason.TOO_MANY_PIXELS, None)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        found = resize_image(encode(noise(50, 41), form), ImageSettings(max_pixels=2000))
        assert (found.reason, found.original_width, found.original_height) == (Reason.TOO_MANY_PIXELS, 50, 41), form
        assert resize_image(encode(noise(50, 40), form), ImageSettings(max_pixels=2000, size=8)).reason is None, form


def test_an_icon_that_lies_about_its_size_is_refused() -> None:
    icon = bytearray(encode(Image.new("RGBA", (64, 64)), "ICO", sizes=[(64, 64)]))
    picture = encode(noise(300, 300))
    entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(picture), 22)
    assert (
        resize_image(bytes(icon[:6]) + entry + picture, ImageSettings(max_pixels=5000)).reason == Reason.TOO_MANY_PIXELS
    )


def test_small_images_are_refused_undecoded() -> None:
    assert resize_image(png_of(64, 30), ImageSettings(min_side=31)).reason == Reason.TOO_SMALL
    assert resize_image(encode(noise(64, 31)), ImageSettings(min_side=31)).reason is None


def test_reduced_decoding_keeps_the_size_and_nearly_the_picture() -> None:
    wave = np.sin(np.linspace(0, 20, 1500))[:, None] * np.cos(np.linspace(0, 9, 1100))[None]
    source = encode(
        Image.fromarray(np.repeat((127 + 120 * wave)[..., None], 3, 2).astype(np.uint8)), "JPEG", quality=95
    )
    for mode in ("center_crop", "keep_ratio", "keep_ratio_largest", "border"):
        for size in (130, 137, 1100):  # eighths, eighths just not, no reduction at all
            settings = ImageSettings(mode=mode, size=size, format="png")  # type: ignore[arg-type]
            full = resize_image(source, settings)
            fast = resize_image(source, settings.model_copy(update={"reduced_decode": True}))
            assert (fast.original_width, fast.original_height) == (1100, 1500)
            assert abs(fast.width - full.width) <= 1 and abs(fast.height - full.height) <= 1
            if (fast.width, fast.height) == (full.width, full.height):
                a, b = pixels(full.content).astype(int), pixels(fast.content).astype(int)
                assert np.abs(a - b).mean() < 4
                assert np.array_equal(a, b) == (size == 1100)


def test_many_threads_give_the_same_bytes() -> None:
    forms = (
        ("JPEG", noise(90, 70)),
        ("PNG", noise(50, 60).convert("RGBA")),
        ("TIFF", noise(64, 40).convert("CMYK")),
        ("GIF", noise(40, 40)),
    )
    sources = [encode(image, form) for form, image in forms] + [b"<html>", encode(noise(64, 64), "JPEG")[:900]]
    settings = ImageSettings(size=48)
    alone = [resize_image(source, settings) for source in sources]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda source: resize_image(source, settings), sources * 40))
    assert together == alone * 40
