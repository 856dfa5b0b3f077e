"""Our resizer: every pixel layout comes out as the RGB a person would expect, or with a reason."""

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.fetch.reasons import Reason
from data.fetch.resize import resize_image
from data.fetch.settings import ImageSettings

AS_IS = ImageSettings(mode="no", format="png")
ODD = Path(__file__).parents[2].parent / "shared" / "data" / "odd_images"


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def decoded(content: bytes, settings: ImageSettings = AS_IS) -> np.ndarray:
    found = resize_image(content, settings)
    assert found.content is not None, found
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.mode == "RGB"
        assert image.size == (found.width, found.height)
        return np.asarray(image)


def test_orientation_is_applied_and_not_kept() -> None:
    pixels = np.zeros((20, 10, 3), np.uint8)
    pixels[:10] = (255, 0, 0)  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored image must turn clockwise
    found = resize_image(encode(Image.fromarray(pixels), "PNG", exif=exif), AS_IS)
    assert (found.original_width, found.original_height) == (20, 10)
    assert found.content is not None
    with Image.open(io.BytesIO(found.content)) as image:
        assert not image.getexif()
        assert image.getpixel((15, 5)) == (255, 0, 0)  # what was above is now on the right
        assert image.getpixel((5, 5)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_show_the_background(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0)).convert(mode if mode != "PA" else "RGBA")
    settings = ImageSettings(mode="no", format="png", background=(255, 0, 255))
    assert (decoded(encode(image), settings) == (255, 0, 255)).all()


def test_sixteen_bits_are_shifted_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    grey = decoded(encode(Image.fromarray(ramp)))[0, :, 0].astype(int)
    assert np.abs(grey - np.arange(256)).max() <= 1


def test_float_images() -> None:
    unit = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0))
    assert decoded(encode(unit, "TIFF")).max() == 255
    wild = Image.fromarray(np.full((8, 8), -3.0, np.float32))
    assert resize_image(encode(wild, "TIFF"), AS_IS).reason == Reason.UNSUPPORTED_MODE


def test_cmyk_lab_palette_and_one_bit() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert decoded(encode(red.convert("CMYK"), "JPEG"))[0, 0, 0] > 200
    assert (decoded(encode(red.convert("P"))) == (255, 0, 0)).all()
    assert set(np.unique(decoded(encode(Image.fromarray(np.eye(8) > 0))))) == {0, 255}
    lab = Image.new("LAB", (8, 8), (255, 128, 128))  # L* = 100: white
    assert decoded(encode(lab, "TIFF")).min() > 245


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(content)[0, 0] == (255, 0, 0)).all()


def test_a_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    assert resize_image(bomb, AS_IS).reason == Reason.TOO_MANY_PIXELS


def test_what_is_no_image_has_a_reason() -> None:
    whole = encode(Image.new("RGB", (64, 64), "red"), "JPEG")
    assert resize_image(b"<html>not found</html>", AS_IS).reason == Reason.NOT_AN_IMAGE
    assert resize_image(b"", AS_IS).reason == Reason.NOT_AN_IMAGE
    assert resize_image(whole[: len(whole) // 2], AS_IS).reason == Reason.DECODE_ERROR
    assert resize_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", AS_IS).reason == Reason.NOT_AN_IMAGE
    assert resize_image(whole, ImageSettings(min_side=65)).reason == Reason.TOO_SMALL


@pytest.mark.parametrize(("mode", "size"), [("center_crop", (32, 32)), ("keep_ratio", (64, 32)), ("no", (128, 64))])
def test_modes(mode: str, size: tuple[int, int]) -> None:
    wide = encode(Image.new("RGB", (128, 64), "red"))
    found = resize_image(wide, ImageSettings(mode=mode, size=32))  # type: ignore[arg-type]
    assert (found.width, found.height) == size
    small = resize_image(encode(Image.new("RGB", (16, 8), "red")), ImageSettings(mode="keep_ratio", size=32))
    assert (small.width, small.height) == (16, 8)


@pytest.mark.parametrize(("form", "limit"), [("jpg", 65_500), ("webp", 16_383)])
def test_a_side_the_format_cannot_hold_has_a_reason(form: str, limit: int) -> None:
    settings = ImageSettings(mode="no", format=form)  # type: ignore[arg-type]
    assert resize_image(encode(Image.new("RGB", (limit, 1))), settings).width == limit
    for size in ((limit + 1, 1), (1, limit + 1), (70_000, 1)):
        assert resize_image(encode(Image.new("RGB", size)), settings).reason == Reason.TOO_LARGE_SIDE
    assert resize_image(encode(Image.new("RGB", (70_000, 1))), AS_IS).width == 70_000
    for mode in ("center_crop", "keep_ratio"):
        cut = resize_image(encode(Image.new("RGB", (70_000, 20))), ImageSettings(mode=mode, size=8, format=form))  # type: ignore[arg-type]
        assert (cut.reason is None) == (cut.content is not None) == (mode == "center_crop" or form == "jpg")


def test_shrinking_is_antialiased() -> None:
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[::2] = 255
    shrunk = decoded(encode(Image.fromarray(lines)), ImageSettings(size=32, format="png")).astype(int)
    assert np.abs(shrunk - 127).max() <= 8  # picking pixels instead of averaging them would give 0 or 255


@pytest.mark.skipif(not ODD.is_dir(), reason="the shared folder of odd images is not beside this checkout")
def test_every_odd_image_is_stored_or_has_a_reason() -> None:
    with (ODD / "decode_report.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)]
    outcomes = {name: resize_image((ODD / name).read_bytes(), AS_IS) for name in names if (ODD / name).is_file()}
    assert len(outcomes) >= 50
    assert all((found.content is None) != (found.reason is None) for found in outcomes.values())
    upright = outcomes["pillow_hopper.jpg"]
    for name in (
        "pillow_hopper_orientation_3.jpg",
        "pillow_hopper_orientation_5.jpg",
        "pillow_hopper_orientation_6.webp",
        "pillow_hopper_orientation_8.jpg",
    ):
        assert upright.content is not None and outcomes[name].content is not None
        a, b = (np.asarray(Image.open(io.BytesIO(f.content or b""))).astype(int) for f in (upright, outcomes[name]))
        assert np.abs(a - b).mean() < 6, name
