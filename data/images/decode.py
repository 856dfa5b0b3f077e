"""Bytes of any image file to upright pixels, or a reason: the header first, then the pixels.

Ordinary JPEGs (8-bit grey or colour) are decoded by OpenCV, which hands over the pixels as the resizing needs them; Pillow, which
knows many more formats and layouts, reads every header and decodes everything else. Both use libjpeg-turbo and give equal pixels.

What is bounded, and where: pixels by the header before anything is decoded, so that memory stays below some 20 bytes a pixel;
how often a decoder goes over them, by `bombs`; compressed text by Pillow; the body's bytes by the fetch. No clock runs while a file
is decoded, but its time is bounded by its bytes and pixels: a few seconds for 89 million pixels, and a fraction of a second for each
megabyte of a header that is all segments, chunks or strips. An icon's directory does not bound the picture inside, which Pillow opens
up to twice `Image.MAX_IMAGE_PIXELS`.
"""

import errno
import io
import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile

from data.fetch.reasons import Reason
from data.images.bombs import has_many_profiles, has_more_scans, most_scans
from data.images.colour import UnsupportedMode, in_eight_bits, to_rgb
from data.images.quiet import silent_stderr
from data.images.settings import ImageSettings

# What a web crawl can hold. Formats that run other programs or read other files (EPS, WMF, FLI ...) stay closed.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "DIB")
# Frames of these follow each other in time. Frames of an MPO (depth maps, previews), a TIFF (pages) or an ICO (sizes) do not.
CAN_MOVE = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")  # damaged rather than no image
START_OF_SCAN, END_OF_IMAGE, RESTARTS = b"\xff\xda", b"\xff\xd9", b"\xff\xdd"  # JPEG markers
NO_PICTURE_DATA = re.compile(
    rb"\xff[^\x00\xd0-\xd7]"
)  # within a scan: a marker, though none may stand there, or a damaged byte
FILLINGS = (b"\x00", b"\xb5", b"\x5a", b"\xff\x00")  # bits that no picture goes on with alike
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
TURNS = {
    3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """Upright pixels, uint8 (height, width, 3), blue first as OpenCV has them; the original's upright size."""

    pixels: np.ndarray
    width: int
    height: int


class Undecodable(Exception):
    """Why there are no pixels, and the size (not turned upright) where the header told it."""

    def __init__(self, reason: Reason, detail: str = "", size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.size = reason, detail, size


def decode(content: bytes, settings: ImageSettings) -> Decoded:
    """Decode, turn upright and convert to 8-bit colour. Raises Undecodable and nothing else that a file can provoke."""
    _prepare(settings.max_pixels)
    size = (0, 0)
    try:
        if has_many_profiles(content):
            raise Undecodable(Reason.DECODING_BOMB, "a PNG with many colour profiles")
        image = Image.open(io.BytesIO(content), formats=_installed_formats())
        size = image.size
        _check_header(image, settings)
        if image.format in ("JPEG", "MPO"):
            _check_scans(content, image)
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            pixels = _jpeg(content, image, _reduction(size, settings))
        else:
            pixels = _other(image, settings)
            size = image.size
        turn = _orientation(image)
        width, height = size if turn < 5 else size[::-1]
        return Decoded(_turned(pixels, turn), width, height)
    except Undecodable:
        raise
    except Image.DecompressionBombError as error:
        raise Undecodable(Reason.TOO_MANY_PIXELS, str(error), size) from None
    except Image.UnidentifiedImageError:
        known = content.startswith(SIGNATURES) or content[8:12] == b"WEBP"
        raise Undecodable(Reason.DECODE_ERROR if known else Reason.NOT_AN_IMAGE) from None
    except UnsupportedMode as error:
        raise Undecodable(Reason.UNSUPPORTED_MODE, str(error), size) from None
    except Exception as error:  # whatever a damaged file provokes: SyntaxError, struct.error, cv2.error, OSError ...
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # our own trouble, which says nothing about the file
        raise Undecodable(Reason.DECODE_ERROR, f"{type(error).__name__}: {error}"[:300], size) from None


@cache
def _prepare(max_pixels: int) -> None:
    """Once a process: one thread an image, Pillow's own limit not below ours, and few words on stderr: libjpeg alone says a line
    about a damaged file."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)


@cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # Pillow loads its plugins on demand, and an unloaded name would be an error
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_header(image: Image.Image, settings: ImageSettings) -> None:
    if image.width * image.height > settings.max_pixels:
        raise Undecodable(Reason.TOO_MANY_PIXELS, size=image.size)
    if min(image.size) < settings.min_side:
        raise Undecodable(Reason.TOO_SMALL, size=image.size)
    if settings.animated == "drop" and image.format in CAN_MOVE and getattr(image, "is_animated", False):
        raise Undecodable(Reason.ANIMATED, size=image.size)


def _check_scans(content: bytes, image: ImageFile.ImageFile) -> None:
    most = most_scans(image.width * image.height)
    if not _has_one_scan(content, image) and has_more_scans(content, most):
        raise Undecodable(Reason.DECODING_BOMB, f"a JPEG of more than {most} scans", image.size)


def _has_one_scan(content: bytes, image: ImageFile.ImageFile) -> bool:
    """Whether the first scan of a JPEG holds the whole picture; libjpeg then stops after it. Not known of an MPO."""
    assert image.fp is not None
    scan = image.fp.tell()  # behind the scan's header, where Pillow stops reading; 0 in an MPO
    header = 8 + 2 * len(image.getbands())  # bytes, of a scan that holds all components
    return not image.info.get("progressive") and content[scan - header : scan - header + 2] == START_OF_SCAN


def _orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1 to 8, after decoding: PNG may hold it behind its pixels, and of TIFF Pillow has applied it
    by then. 1 where there is none or it cannot be read, which spoils no pixel."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises SyntaxError, struct.error, KeyError ...
        return 1
    return turn if turn in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo what EXIF's orientation says: 2 and 4 are mirrored, 3, 6 and 8 turned, 5 and 7 both."""
    if orientation in TURNS:
        return cv2.rotate(pixels, TURNS[orientation])
    if orientation in (2, 4):
        return cv2.flip(pixels, 1 if orientation == 2 else 0)
    if orientation in (5, 7):
        mirrored = cv2.transpose(pixels)
        return mirrored if orientation == 5 else cv2.flip(mirrored, -1)
    return pixels


def _other(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Through Pillow, which takes the first frame."""
    in_eight_bits(image)
    with silent_stderr() if image.format == "TIFF" else nullcontext():
        image.load()
    if image.width * image.height > settings.max_pixels:  # an icon's picture is not bounded by its directory
        raise Undecodable(Reason.TOO_MANY_PIXELS, size=image.size)
    return cv2.cvtColor(np.asarray(to_rgb(image, settings.background)), cv2.COLOR_RGB2BGR)


def _jpeg(content: bytes, image: ImageFile.ImageFile, reduction: int) -> np.ndarray:
    """A JPEG of 8-bit grey or colour. OpenCV fails, as Pillow does, when the data runs out before the end marker."""
    assert image.fp is not None
    scan = image.fp.tell()
    if content.endswith(END_OF_IMAGE) or content.find(END_OF_IMAGE, scan) >= 0:
        pixels = _opencv(content, reduction)
    else:
        pixels = _endless_jpeg(content, image, scan, reduction)
    if pixels is None:
        raise Undecodable(Reason.DECODE_ERROR, "JPEG data ends early or is damaged", image.size)
    width, height = (-(-side // reduction) for side in image.size)
    if pixels.shape != (height, width, 3):
        raise Undecodable(
            Reason.DECODE_ERROR, f"{pixels.shape} pixels do not fit the header's {image.size}", image.size
        )
    return pixels


def _endless_jpeg(content: bytes, image: ImageFile.ImageFile, scan: int, reduction: int) -> np.ndarray | None:
    """A JPEG without end marker: cut off, perhaps padded with zeros, or complete but for the marker.

    It is complete where it does not matter what follows the data. Of several scans, or of parts between restart markers, nobody
    can say so whether the last one arrived.
    """
    if not _has_one_scan(content, image) or RESTARTS in content[:scan] or NO_PICTURE_DATA.search(content, scan):
        return None
    data = content.rstrip(b"\0")
    guesses = [_opencv(data + follows * 64 + END_OF_IMAGE, reduction) for follows in FILLINGS]
    whole = [guess for guess in guesses if guess is not None]
    same = len(whole) == len(FILLINGS) and all(np.array_equal(guess, whole[0]) for guess in whole)
    return whole[0] if same else None


def _opencv(content: bytes, reduction: int) -> np.ndarray | None:
    flags = REDUCED.get(reduction, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return pixels


def _reduction(size: tuple[int, int], settings: ImageSettings) -> int:
    """The largest of 8, 4, 2 that leaves the side which the mode scales at least as long as wanted; 1 unless asked for."""
    if not settings.reduced_decode or settings.mode == "no":
        return 1
    side = min(size) if settings.mode in ("center_crop", "keep_ratio") else max(size)
    return next((factor for factor in REDUCED if side // factor >= settings.size), 1)
