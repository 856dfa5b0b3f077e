"""Any of Pillow's pixel layouts to 8-bit RGB, as a person would expect to see it, or a refusal.

Transparent pixels show a background, 16-bit integers are shifted to 8 rather than clipped, floats are scaled, LAB and profiled
CMYK go through colour management. Profiles of RGB images are not applied (img2dataset does not either).
"""

import io

import numpy as np
from PIL import Image, ImageCms

RGB = tuple[int, int, int]


# How Pillow brings a PNG's values to 8 bits, by the raw mode: the bits that count, and what they are multiplied by.
TO_EIGHT_BITS = {"1": (1, 255), "L;2": (3, 85), "L;4": (15, 17), "L": (255, 1), "RGB": (255, 1)}


class UnsupportedMode(ValueError):
    """A pixel layout that has no agreed way to become RGB."""


def to_rgb(image: Image.Image, background: RGB) -> Image.Image:
    """Any Pillow mode to RGB. Transparent pixels show `background`; 16-bit integers are shifted to 8; floats must lie in [0, 1]
    or [0, 255]. Raises UnsupportedMode."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _wide_grey(image, background)
    if mode == "LAB":
        return _managed(image, ImageCms.createProfile("LAB"))
    if mode == "CMYK":
        return _cmyk(image)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _matte(image.convert("RGBA"), background)
    if mode in ("L", "1", "P", "YCbCr", "HSV", "RGBX"):
        return image.convert("RGB")
    raise UnsupportedMode(f"mode {mode}")


def in_eight_bits(image: Image.Image) -> None:
    """Bring a PNG's see-through value (tRNS) to the 8 bits to which its pixels will be decoded; Pillow leaves it as the file has it.
    To be called before they are."""
    value, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or not tiles or not isinstance(value, int | tuple):
        return
    raw = tiles[0].args if isinstance(tiles[0].args, str) else tiles[0].args[0]
    if raw == "RGB;16B" and isinstance(value, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in value)
    elif raw in TO_EIGHT_BITS:
        mask, factor = TO_EIGHT_BITS[raw]
        eight = [(part & mask) * factor for part in (value if isinstance(value, tuple) else (value,))]
        image.info["transparency"] = tuple(eight) if isinstance(value, tuple) else eight[0]


def _matte(image: Image.Image, background: RGB) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _managed(image: Image.Image, profile: ImageCms.core.CmsProfile | ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def _cmyk(image: Image.Image) -> Image.Image:
    """By the file's own profile, else by Pillow's formula: CMYK without a profile does not say which inks it means."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            return _managed(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a damaged profile, or one for other channels
    return image.convert("RGB")


def _wide_grey(image: Image.Image, background: RGB) -> Image.Image:
    """16-bit and 32-bit integers, and floats. Pillow opens 16-bit greyscale files as `I;16` or, as PGM, `I`."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return _grey(_float_to_byte(values))
    if values.min() < 0 or values.max() > 65535:
        raise UnsupportedMode(f"32-bit integers from {values.min()} to {values.max()}")
    # Pillow brings PGM to 16 bits; a TIFF's 32-bit values are as the file has them, and up to 255 they are bytes.
    bytes_already = image.format == "TIFF" and image.mode == "I" and values.max() <= 255
    grey = _grey(values if bytes_already else values >> 8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: the one grey value that is see-through
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return _matte(grey, background)
    return grey


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _float_to_byte(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UnsupportedMode("float values that are not finite or not in [0, 255]")
    return np.rint(values * 255 if values.max() <= 1 else values)
