"""What every source yields: one candidate per image, before anything was downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """`source_id` is the source's own name of the image: equal ids are one image, which gets one split.

    `captions` may be empty: such a candidate is dropped with a counted reason. `split` is the source's own, where it has one.
    """

    source_id: str
    url: str
    captions: tuple[str, ...]
    attributes: Mapping[str, Any] | None = None
    split: str | None = None
    license: str | None = None
    source_page: str | None = None
    attribution: str | None = None
