"""What a config may say about downloading an image and about how it is stored."""

from pydantic import Field

from data.pipeline.config import Settings


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
