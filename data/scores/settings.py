"""What a config may say about scores that need no CLIP."""

from pydantic import Field

from data.pipeline.config import Settings

BASE_SCORES = ("basic", "duplicates")


class DuplicatesSettings(Settings):
    """What counts as a near copy: perceptual hashes (64 bits) within `distance` bits, and the mean colours of a 4 x 4 grid within
    `colour_tolerance` of 255 levels in every cell (255: colours are not compared; the hash sees brightness alone). Images whose
    grey values vary by less than `min_pixel_std` levels have no pattern to hash and are never near copies."""

    distance: int = Field(default=3, ge=0, le=7)
    colour_tolerance: int = Field(default=24, ge=0, le=255)
    min_pixel_std: float = Field(default=3.0, ge=0)
