"""Cut, padded and corrupted files: a whole picture or a reason, never one that is grey below the cut."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from benchmarks import SHARED
from data.fetch.reasons import Reason
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from tests.data.made_images import encode, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
AS_IS = ImageSettings(mode="no", format="png")
PHOTOS = SHARED / "photos" / "images"
END = b"\xff\xd9"


def smooth(width: int = 60, height: int = 45) -> Image.Image:
    """A picture with structure at every scale, so that no block equals its neighbour."""
    return noise(width // 5, height // 5).resize((width, height), Image.Resampling.BICUBIC)


def whole(content: bytes, like: bytes) -> bool:
    """Whether it is stored; then it must have the pixels of `like`."""
    found = resize_image(content, AS_IS)
    if found.content is None:
        assert found.reason in (Reason.DECODE_ERROR, Reason.NOT_AN_IMAGE)
        return False
    assert np.array_equal(pixels(found.content), pixels(resize_image(like, AS_IS).content))
    return True


JPEGS = {
    "colour": encode(smooth(), "JPEG"),
    "full colour": encode(smooth(), "JPEG", subsampling=0, quality=95),
    "grey": encode(smooth().convert("L"), "JPEG"),
    "progressive": encode(smooth(), "JPEG", progressive=True),
    "thumbnail": encode(smooth(), "JPEG", exif=b"Exif\0\0" + encode(smooth(30, 30), "JPEG")),
    "restarts": encode(smooth(), "JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_cut_anywhere_is_dropped(name: str) -> None:
    """But for a cut that takes nothing except the end marker, where there is one scan without restarts."""
    content = JPEGS[name]
    kept = [cut for cut in range(len(content)) if whole(content[:cut], content)]
    assert kept == ([] if name in ("progressive", "restarts") else [len(content) - 2, len(content) - 1])


@pytest.mark.parametrize("tail", [b"\r\n", b"\n", b"\xff", b"</html>", b"\x01"])
def test_a_jpeg_cut_within_an_escaped_byte_is_dropped(tail: bytes) -> None:
    """Behind its 0xFF, what was appended looks like a marker: the decoder stops there, whatever bits are tried behind it."""
    content = encode(smooth(300, 220), "JPEG", quality=95)
    start = content.index(b"\xff\xda")
    cuts = [at + 1 for at in range(start, len(content) - 40) if content[at : at + 2] == b"\xff\0"]
    assert cuts and not [cut for cut in cuts if whole(content[:cut] + tail, content)]


@pytest.mark.parametrize("name", JPEGS)
def test_a_download_that_was_padded_with_zeros_is_dropped(name: str) -> None:
    content = JPEGS[name]
    for cut in range(len(content) // 2, len(content) - 8, 37):
        assert not whole(content[:cut] + b"\0" * (len(content) - cut), content), cut


@pytest.mark.parametrize("name", JPEGS)
def test_what_follows_the_end_marker_does_not_matter(name: str) -> None:
    content = JPEGS[name]
    for tail in (b"\0" * 100, b"<html></html>", content, b"\xff" * 50, b"\xff\xda\x00\x0c\x03" + b"x" * 90):
        assert whole(content + tail, content)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_cut(form: str) -> None:
    content = encode(smooth(40, 30), form)
    for cut in range(0, len(content) - 40, 61):
        whole(content[:cut], content)
    assert not whole(content[: len(content) // 2], content)


def test_corruption_never_raises() -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        content = encode(smooth(), form)
        for _ in range(40):
            damaged = bytearray(content)
            for at in rng.integers(0, len(content), 6):
                damaged[at] = rng.integers(0, 256)
            found = resize_image(bytes(damaged), AS_IS)
            assert (found.content is None) != (found.reason is None)


def test_what_is_no_image_is_told_from_what_is_damaged() -> None:
    for content in (
        b"",
        b"\0",
        b"<html>not found</html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"{}",
    ):
        assert resize_image(content, AS_IS).reason == Reason.NOT_AN_IMAGE
    for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        assert resize_image(encode(smooth(), form)[:20], AS_IS).reason == Reason.DECODE_ERROR, form


def test_tiff_says_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    content = encode(smooth(), "TIFF", compression="tiff_lzw")
    for cut in range(8, len(content), len(content) // 20):
        resize_image(content[:cut] + os.urandom(len(content) - cut), AS_IS)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared folder of photographs is not beside this checkout")
def test_cut_photographs() -> None:
    rng = np.random.default_rng(1)
    for path in sorted(PHOTOS.glob("*.jpg"))[::12]:
        content = path.read_bytes()
        assert content.endswith(END)
        assert whole(content.removesuffix(END), content), path
        for cut in rng.integers(2, len(content) - 4, 8):
            assert not whole(content[:cut], content), (path, cut)
        out = io.BytesIO()
        Image.open(path).save(out, "JPEG", progressive=True, quality=90)
        for cut in rng.integers(2, len(out.getvalue()) - 4, 8):
            assert not whole(out.getvalue()[:cut], out.getvalue()), (path, cut)
