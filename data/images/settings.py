"""What a config may say about how an image is stored."""

from typing import Annotated, Literal

from pydantic import Field

from data.pipeline.config import Settings

Byte = Annotated[int, Field(ge=0, le=255)]


class ImageSettings(Settings):
    """How an image is stored.

    `center_crop`: shorter side scaled to `size`, then cropped; `keep_ratio`: shorter side at most `size`; `keep_ratio_largest`:
    longer side at most `size`; `border`: longer side scaled to `size`, padded with `background` to a square; `no`: original size.
    Images whose shorter side is below `min_side` or whose header promises more than `max_pixels` are dropped with a reason.
    `chroma` is the JPEG's colour resolution. `reduced_decode` decodes large JPEGs at a reduced scale: faster, other pixels.
    """

    mode: Literal["center_crop", "keep_ratio", "keep_ratio_largest", "border", "no"] = "center_crop"
    size: int = Field(default=256, ge=8, le=8192)
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=95, ge=1, le=100)
    chroma: Literal["444", "420"] = "444"
    min_side: int = Field(default=1, ge=1)
    max_pixels: int = Field(default=89_478_485, ge=1)
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    animated: Literal["first_frame", "drop"] = "first_frame"
    reduced_decode: bool = False
