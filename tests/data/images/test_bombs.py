"""Small files that would take minutes, or gigabytes, are refused or bounded before anything is decoded or enlarged."""

import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.fetch.reasons import Reason
from data.images import bombs, resize
from data.images.bombs import FEW_SCANS, MOST_SCANS, has_more_scans, most_scans
from data.images.resize import resize_image, scale
from data.images.settings import ImageSettings
from tests.data.made_images import encode, noise

pytestmark = pytest.mark.timeout(30)
END = b"\xff\xd9"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_scans(content: bytes, more: int) -> bytes:
    """A progressive JPEG with its last scan, and the tables before it, `more` times more."""
    last = content.rindex(b"\xff\xda")
    table = content.rfind(b"\xff\xc4", 0, last)
    scan = content[table if 0 < last - table < 60 else last : -2]
    return content[:-2] + scan * more + END


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_a_thousand_scans_is_refused_at_once(mode: Any) -> None:
    content = with_scans(encode(Image.new(mode, (3000, 3000)), "JPEG", progressive=True), 1000)
    start = time.process_time()
    found = resize_image(content, ImageSettings())
    assert found.reason == Reason.DECODING_BOMB and (found.original_width, found.original_height) == (3000, 3000)
    assert time.process_time() - start < 0.5


def test_many_scans_of_one_component_each_are_refused_too() -> None:
    """Sequential JPEGs can be in several scans as well; they too are gone through to the end."""
    content = encode(Image.new("L", (64, 64)), "JPEG")
    frame = content.index(b"\xff\xc0")
    header = b"\xff\xc0\x00\x11" + content[frame + 4 : frame + 9] + b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    scan_at = content.index(b"\xff\xda")
    body = content[scan_at + 10 : -2]
    scans = b"".join(b"\xff\xda\x00\x08\x01" + bytes([c]) + b"\x00\x00\x3f\x00" + body for c in (1, 2, 3))
    tables = content[:frame] + header + content[frame + 13 : scan_at]
    assert resize_image(tables + scans + END, ImageSettings()).reason is None
    assert resize_image(tables + scans * 50 + END, ImageSettings()).reason == Reason.DECODING_BOMB


def test_honest_progressive_files_pass() -> None:
    for mode in ("L", "RGB", "CMYK"):
        content = encode(noise(90, 70).convert(mode), "JPEG", progressive=True)
        for more in (0, 10, MOST_SCANS - content.count(b"\xff\xda")):
            assert resize_image(with_scans(content, more), ImageSettings()).reason is None, (mode, more)
        assert resize_image(with_scans(content, MOST_SCANS), ImageSettings()).reason == Reason.DECODING_BOMB


def test_scans_of_previews_and_of_what_follows_do_not_count() -> None:
    preview = b"\xff\xda\x00\x08" * 200
    content = encode(noise(90, 70), "JPEG", progressive=True)
    many = content[:2] + b"\xff\xe5" + struct.pack(">H", len(preview) + 2) + preview + content[2:] + preview
    assert many.count(b"\xff\xda") > 400 and not has_more_scans(many, MOST_SCANS)
    assert resize_image(many, ImageSettings()).reason is None


def test_large_pictures_may_have_fewer_scans() -> None:
    assert [most_scans(pixels) for pixels in (1, 10**6, 50_000_000, 89_478_485, 10**9)] == [
        MOST_SCANS,
        MOST_SCANS,
        50,
        27,
        FEW_SCANS,
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xda" * 9, b"\xff\xd8" + b"\xff\xda\xff\xff" * 9, b"\xff" * 99]
)
def test_counting_scans_of_rubbish_ends(content: bytes) -> None:
    assert not has_more_scans(content, 9)


def test_start_markers_are_counted_at_even_and_odd_places() -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 3, 7, 200):
        content = rng.choice(np.array([0xFF, 0xDA], np.uint8), length).tobytes()
        assert bombs._pairs(content) == content.count(b"\xff\xda")


def test_a_png_of_many_profiles_is_refused_at_once() -> None:
    plain = encode(noise(40, 40))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 1_000_000))
    assert resize_image(plain[:33] + profile + plain[33:], ImageSettings()).reason is None
    start = time.process_time()
    assert resize_image(plain[:33] + profile * 1000 + plain[33:], ImageSettings()).reason == Reason.DECODING_BOMB
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("mode", ["center_crop", "border", "keep_ratio", "keep_ratio_largest", "no"])
@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (1, 60_000), (16, 1000), (300, 200)])
def test_enlarging_is_bounded_in_memory(mode: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def resized(pixels: np.ndarray, target: Any, fx: float = 0, fy: float = 0, interpolation: int = 0) -> np.ndarray:
        height, width = pixels.shape[:2]
        target = target or (round(width * fx), round(height * fy))
        made.append(target[0] * target[1])
        return np.broadcast_to(np.uint8(0), (target[1], target[0], 3))

    monkeypatch.setattr(resize.cv2, "resize", resized)
    source = np.zeros((*shape, 3), np.uint8)
    for size in (64, 256, 1024, 2048, 8192):
        if mode == "border" and size > 2048:
            continue  # the canvas itself would take 200 MB
        made.clear()
        height, width = scale(source, ImageSettings(mode=mode, size=size)).shape[:2]
        assert sum(made) <= max(1 << 26, 2.1 * size * size)
        if mode == "center_crop":
            assert (height, width) == (size, size)


@pytest.mark.parametrize("size", [40, 97, 128])
def test_the_middle_of_an_enlarged_line_is_that_of_the_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for half a side at both sides, the crop has the pixels of the whole picture enlarged, but for rounding."""
    image = np.asarray(noise(320, 16).resize((320, 16), Image.Resampling.BICUBIC))
    whole = scale(image, ImageSettings(size=size))
    monkeypatch.setattr(resize, "MAX_ENLARGED", 1)
    cut = scale(image, ImageSettings(size=size))
    assert cut.shape == whole.shape and np.abs(cut.astype(int) - whole).max() <= 1
