"""Every pixel layout comes out as the RGB a person would expect to see, upright, or with a reason."""

import csv
import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from benchmarks import SHARED
from data.fetch.reasons import Reason
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from tests.data.made_images import encode, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
AS_IS = ImageSettings(mode="no", format="png")
MAGENTA = ImageSettings(mode="no", format="png", background=(255, 0, 255))
ODD = SHARED / "odd_images"


def decoded(content: bytes, settings: ImageSettings = AS_IS) -> np.ndarray:
    found = resize_image(content, settings)
    assert found.content is not None, found
    return pixels(found.content)


def with_orientation(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_and_not_kept(turn: int, form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    content = encode(noise(24, 10), form, exif=with_orientation(turn), **options)
    found = resize_image(content, AS_IS)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(pixels(found.content), upright)
    assert (
        (found.original_height, found.original_width) == upright.shape[:2] == ((24, 10) if 5 <= turn <= 8 else (10, 24))
    )
    assert not Image.open(io.BytesIO(found.content or b"")).getexif()


def test_orientation_in_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    assert decoded(encode(noise(24, 10), "JPEG", xmp=xmp)).shape == (24, 10, 3)


def test_damaged_exif_spoils_no_pixel() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*", b"Exif\0\0rubbish"):
        assert decoded(encode(noise(24, 10), "JPEG", exif=exif)).shape == (10, 24, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_matted_on_the_background(form: str, alpha: int) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    image = Image.new("RGBA", (4, 4), (10, 20, 30, alpha))
    seen = decoded(encode(image, form, **options), MAGENTA).astype(int)
    mixed = np.array([10, 20, 30]) * alpha / 255 + np.array([255, 0, 255]) * (1 - alpha / 255)
    assert np.abs(seen - mixed).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P", "RGB", "L", "1"])
def test_other_ways_to_be_transparent(mode: str) -> None:
    if mode == "LA":
        content = encode(Image.new("LA", (4, 4), (50, 0)))
    else:
        image = Image.new("RGB", (4, 4), (0, 0, 0)).convert(mode)
        content = encode(image, transparency={"RGB": (0, 0, 0)}.get(mode, 0))
    assert (decoded(content, MAGENTA) == (255, 0, 255)).all()


def test_a_transparent_value_of_sixteen_bits() -> None:
    values = np.array([[1000, 40000]], np.uint16)
    assert decoded(encode(Image.fromarray(values), transparency=40000), MAGENTA).tolist() == [
        [[3, 3, 3], [255, 0, 255]]
    ]


@pytest.mark.parametrize(
    ("depth", "kind", "row", "see_through"),
    [
        (1, 0, b"\xf0", (1,)), (2, 0, b"\xaa\0", (2,)), (4, 0, b"\x55\x55\0\0", (5,)), (8, 0, b"\x11" * 4 + b"\0" * 4, (0x11,)),
        (8, 2, bytes((1, 2, 3)) * 4 + b"\0" * 12, (1, 2, 3)),
        (16, 0, b"\x12\x34" * 4 + b"\0" * 8, (0x1234,)),
        (16, 2, bytes((0x12, 0x34, 0x56, 0x78, 0x9A, 0xBC)) * 4 + b"\0" * 24, (0x1234, 0x5678, 0x9ABC)),
    ],
)  # fmt: skip
def test_a_transparent_value_of_every_depth(depth: int, kind: int, row: bytes, see_through: tuple[int, ...]) -> None:
    """Four pixels of the value that tRNS names, then four others."""
    value = b"".join(part.to_bytes(2, "big") for part in see_through)
    seen = decoded(png(8, 8, depth, kind, row * 8, value), MAGENTA)
    assert (seen[:, :4] == (255, 0, 255)).all() and (seen[:, 4:] == (0, 0, 0)).all()


def test_sixteen_bit_grey_is_shifted_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    for form in ("PNG", "TIFF", "PPM"):
        grey = decoded(encode(Image.fromarray(ramp), form))[0, :, 0].astype(int)
        assert np.abs(grey - np.arange(256)).max() <= 1, form


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colour_png(kind: int, channels: int) -> None:
    values = np.linspace(0, 65535, 64 * channels).astype(">u2").reshape(8, 8, channels)
    if channels == 4:
        values[..., 3] = 65535
    seen = decoded(png16(values, kind)).astype(int)
    assert np.abs(seen - values[..., :3].astype(int) / 257).max() <= 1


def png16(values: np.ndarray, kind: int) -> bytes:
    height, width = values.shape[:2]
    return png(width, height, 16, kind, values.tobytes())


def png(width: int, height: int, depth: int, kind: int, values: bytes, see_through: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    row = len(values) // height
    rows = b"".join(b"\0" + values[at : at + row] for at in range(0, len(values), row))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", see_through) if see_through else b"")
    return content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_float_images() -> None:
    unit = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0)
    assert np.abs(decoded(encode(Image.fromarray(unit), "TIFF"))[..., 0] - unit * 255).max() <= 0.5
    assert np.abs(decoded(encode(Image.fromarray(unit * 200), "TIFF"))[..., 0] - unit * 200).max() <= 0.5
    for wild in (-3.0, 300.0, np.nan, np.inf):
        content = encode(Image.fromarray(np.full((8, 8), wild, np.float32)), "TIFF")
        assert resize_image(content, AS_IS).reason == Reason.UNSUPPORTED_MODE


def test_wide_integers_that_are_bytes_stay() -> None:
    ramp = np.arange(256, dtype=np.int32)[None].repeat(8, 0)
    assert (decoded(encode(Image.fromarray(ramp), "TIFF"))[..., 0] == ramp).all()
    assert (decoded(encode(Image.fromarray(ramp * 257), "TIFF"))[..., 0] == ramp).all()
    dark = b"P5 8 8 65535\n" + (200).to_bytes(2, "big") * 64  # of 65,535, nearly black
    assert (decoded(dark) == 0).all()


def test_wide_integers_are_refused() -> None:
    content = encode(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF")
    assert resize_image(content, AS_IS).reason == Reason.UNSUPPORTED_MODE


def test_grey_palette_and_one_bit() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert (decoded(encode(red.convert("P"))) == (255, 0, 0)).all()
    assert set(np.unique(decoded(encode(Image.fromarray(np.eye(8) > 0))))) == {0, 255}
    for form in ("JPEG", "PNG", "TIFF", "BMP", "PPM"):
        assert (decoded(encode(Image.new("L", (8, 8), 77), form)) == 77).all(), form


def test_cmyk_and_its_inverted_forms() -> None:
    """Pillow writes CMYK JPEGs as Photoshop does: inverted, with an Adobe marker; YCCK is the same behind a colour transform."""
    colours = Image.new("RGB", (32, 16), (255, 0, 0))
    colours.paste((255, 255, 0), (16, 0, 32, 16))
    for form in ("JPEG", "TIFF"):
        seen = decoded(encode(colours.convert("CMYK"), form)).astype(int)
        assert np.abs(seen - np.asarray(colours)).max() <= 3, form
    inks = encode(colours.convert("CMYK"), "JPEG")
    adobe = inks.index(b"Adobe") + 11
    ycck = inks[:adobe] + b"\x02" + inks[adobe + 1 :]  # read the four channels as Y, Cb, Cr and K
    expected = np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB"))
    assert np.array_equal(decoded(ycck), expected) and not np.array_equal(expected, decoded(inks))


def test_cmyk_with_a_useless_profile_is_converted_plainly() -> None:
    plain = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"rubbish", srgb):
        assert np.array_equal(decoded(encode(plain, "TIFF", icc_profile=profile)), decoded(encode(plain, "TIFF")))


def test_lab() -> None:
    for lab, rgb in (((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)), ((136, 208, 195), (255, 0, 0))):
        seen = decoded(encode(Image.new("LAB", (8, 8), lab), "TIFF"))[0, 0].astype(int)
        assert np.abs(seen - rgb).max() <= 12, (lab, seen)


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
MOVING = {
    "gif": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "webp": encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "apng": encode(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
}
STILL = {
    "gif": encode(FRAMES[0], "GIF"),
    "pages": encode(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
    "mpo": encode(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
}


@pytest.mark.parametrize("name", MOVING)
def test_an_animation_gives_its_first_frame_or_is_dropped(name: str) -> None:
    assert (decoded(MOVING[name])[0, 0] == (255, 0, 0)).all()
    assert resize_image(MOVING[name], ImageSettings(animated="drop")).reason == Reason.ANIMATED


@pytest.mark.parametrize("name", STILL)
def test_pages_previews_and_single_frames_do_not_move(name: str) -> None:
    seen = decoded(STILL[name], AS_IS.model_copy(update={"animated": "drop"}))
    assert np.abs(seen.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.skipif(not ODD.is_dir(), reason="the shared folder of odd images is not beside this checkout")
def test_every_odd_image_is_stored_or_has_a_reason() -> None:
    with (ODD / "decode_report.csv").open() as file:
        rows: dict[str, Any] = {row["file"]: row for row in csv.DictReader(file)}
    outcomes = {name: resize_image((ODD / name).read_bytes(), AS_IS) for name in rows}
    assert len(outcomes) == 53
    dropped = {name: found.reason for name, found in outcomes.items() if found.content is None}
    unreadable = {name: Reason.DECODE_ERROR for name, row in rows.items() if row["pillow13_decode"] == "fail"}
    assert dropped == unreadable | {
        "pillow_10ct_32bit_128.tiff": Reason.UNSUPPORTED_MODE,  # floats far from [0, 255]
        "pillow_hopper.heif": Reason.NOT_AN_IMAGE,  # a format nobody here reads
        "pillow_hopper_bad.p7": Reason.NOT_AN_IMAGE,
    }
    upright = decoded((ODD / "pillow_hopper.jpg").read_bytes()).astype(int)
    for name in outcomes:
        if "hopper_orientation" in name:
            assert np.abs(pixels(outcomes[name].content) - upright).mean() < 6, name
