"""Any of Pillow's pixel layouts to 8-bit RGB, as a person would expect to see it, or a refusal.

Transparent pixels show a background, 16-bit integers are shifted to 8 rather than clipped, floats are scaled, LAB and profiled
CMYK go through colour management. Profiles of RGB images are not applied (img2dataset does not either).
"""

import io

import numpy as np
from PIL import Image, ImageCms

RGB = tuple[int, int, int]


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
    grey = _grey(values >> 8)
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
