"""Our resizer: any image file to an upright RGB image of the wanted size, or a reason.

Decoding is bounded before it starts (header pixels), orientation is applied, alpha is matted, 16-bit and float images are scaled
rather than clipped, LAB and CMYK are converted, of an animation the first frame is taken.
"""

import io
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data.fetch.reasons import Reason
from data.fetch.settings import ImageSettings

# What a web crawl can hold. Formats that run other programs or read other files (EPS, WMF, FLI ...) stay closed.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "DIB")
SAVE_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
MAX_SIDE = {
    "jpg": 65_500,
    "webp": 16_383,
}  # limits of libjpeg and of the WebP format, in pixels; PNG has none to speak of
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Resized:
    """Encoded bytes with their size and the original's (upright), or a reason."""

    content: bytes | None = None
    reason: Reason | None = None
    width: int = 0
    height: int = 0
    original_width: int = 0
    original_height: int = 0
    detail: str = ""


def resize_image(content: bytes, settings: ImageSettings) -> Resized:
    """Decode, turn upright, convert to RGB, resize and encode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_installed_formats())
            if image.width * image.height > settings.max_pixels:
                return Resized(reason=Reason.TOO_MANY_PIXELS, original_width=image.width, original_height=image.height)
            upright = to_rgb(ImageOps.exif_transpose(image), settings.background)
    except Image.DecompressionBombError:
        return Resized(reason=Reason.TOO_MANY_PIXELS)
    except Image.UnidentifiedImageError:
        return Resized(reason=Reason.NOT_AN_IMAGE)
    except UnsupportedMode as error:
        return Resized(reason=Reason.UNSUPPORTED_MODE, detail=str(error))
    except (
        Exception
    ) as error:  # Pillow raises whatever a damaged file provokes: SyntaxError, struct.error, ValueError ...
        return Resized(reason=Reason.DECODE_ERROR, detail=f"{type(error).__name__}: {error}"[:300])
    width, height = upright.size
    if min(width, height) < settings.min_side:
        return Resized(reason=Reason.TOO_SMALL, original_width=width, original_height=height)
    stored = scale(upright, settings)
    if max(stored.size) > MAX_SIDE.get(settings.format, max(stored.size)):
        return Resized(reason=Reason.TOO_LARGE_SIDE, original_width=width, original_height=height)
    return Resized(encode(stored, settings), None, stored.width, stored.height, width, height)


@cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # Pillow loads its plugins on demand, and an unloaded name would be an error
    return tuple(name for name in FORMATS if name in Image.OPEN)


class UnsupportedMode(ValueError):
    """A pixel layout that has no agreed way to become RGB."""


def to_rgb(image: Image.Image, background: RGB) -> Image.Image:
    """Any Pillow mode to RGB. Transparent pixels show `background`; 16-bit integers are shifted to 8; floats must lie in [0, 1]
    or [0, 255]."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16) >> 8)
    if mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnsupportedMode(f"32-bit integers from {values.min()} to {values.max()}")
        # Pillow opens 16-bit greyscale PNG and PGM files as mode I.
        return _grey(values >> 8)
    if mode == "F":
        return _grey(_float_to_byte(np.asarray(image)))
    if mode == "LAB":
        profile = ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        return converted
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _matte(image.convert("RGBA"), background)
    if mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "RGB"):
        return image.convert("RGB")
    raise UnsupportedMode(f"mode {mode}")


def _matte(image: Image.Image, background: RGB) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _float_to_byte(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UnsupportedMode("float values that are not finite or not in [0, 255]")
    scaled = values * 255 if values.max() <= 1 else values
    return np.rint(scaled)


def scale(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Resize by the configured mode with an antialiased bicubic filter; never enlarges in `keep_ratio`."""
    size = settings.size
    if settings.mode == "center_crop":
        return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    shorter = min(image.size)
    if settings.mode == "no" or shorter <= size:
        return image
    factor = size / shorter
    target = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(target, Image.Resampling.BICUBIC, reducing_gap=None)


def encode(image: Image.Image, settings: ImageSettings) -> bytes:
    """RGB pixels to bytes, without metadata. JPEG keeps full colour resolution: small saturated objects lose theirs to 4:2:0."""
    out = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.tobytes())
    if settings.format == "jpg":
        plain.save(out, "JPEG", quality=settings.quality, subsampling=0)
    elif settings.format == "webp":
        plain.save(out, "WEBP", quality=settings.quality, method=4)
    else:
        plain.save(out, "PNG", compress_level=4)
    return out.getvalue()
