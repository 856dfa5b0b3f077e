"""What a config may say about downloading an image and about how it is stored."""

from typing import Annotated, Literal

from pydantic import Field

from data.config import Settings

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


class FetchSettings(Settings):
    """Limits of one download; seconds and bytes. Private addresses are refused unless allowed.

    `per_host` requests at a time, and `per_host_rate` requests a second (none: no limit), hold for one host over all workers.
    A `Retry-After` of more than `max_wait` seconds is not waited for. After `host_failures` requests in a row that a host did not
    answer, or answered by asking to wait, a worker gives the host's rows the same reason at once, for a minute (0: never). The
    run stops when fewer than `breaker_min_success` of the last `breaker_window` downloads of a worker, or of the run, succeeded.
    """

    threads: int = Field(default=16, ge=1, le=256)
    deadline: float = Field(default=20.0, gt=0, le=86_400)
    max_bytes: int = Field(default=50_000_000, ge=1)
    max_redirects: int = Field(default=5, ge=0)
    attempts: int = Field(default=2, ge=1)
    max_wait: float = Field(default=30.0, ge=0, le=86_400)
    per_host: int = Field(default=8, ge=1, le=256)
    per_host_rate: float | None = Field(default=None, gt=0)
    host_failures: int = Field(default=20, ge=0)
    allow_private_hosts: bool = False
    user_agent: str = Field(default="unclip-toolkit/0.1 (research crawler)", pattern=r"^[!-~][ -~]*$")
    contact: str | None = Field(default=None, pattern=r"^[!-~][ -~]*$")
    respect_robots_tag: bool = True
    respect_robots_txt: bool = False
    verify_hash: bool = False
    breaker_window: int = Field(default=1000, ge=10)
    breaker_min_success: float = Field(default=0.05, ge=0, lt=1)


# How servers are asked; the other fetch settings decide what is stored.
HOW_TO_ASK = (
    "threads", "deadline", "attempts", "max_wait", "per_host", "per_host_rate", "host_failures",
    "user_agent", "contact", "breaker_window", "breaker_min_success",
)  # fmt: skip
