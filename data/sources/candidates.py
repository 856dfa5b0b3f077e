"""What every source yields: one candidate per image, before anything was downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Served:
    """Where a worker gets a source's images: the web, a folder or tars below `root`, or the scenes' server at `address`."""

    kind: Literal["web", "folder", "tars", "scenes"]
    root: Path | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image and all its captions, as the source names them.

    `source_id` is the source's own name of the image and occurs once in a plan. The split is drawn from `identity`, where it is
    given, or from `source_id`: candidates of equal identity are one image to the outside world and get one split.
    `captions` may be empty: such a candidate is dropped with a counted reason. `split` is the source's own, where it has one.
    `key` is given only by a source whose keys are ours (a resharded dataset). `expected_hash` is lower-case hex of the bytes that
    `url` leads to: MD5, SHA-1 or SHA-256, told by its length. `extra` holds JSON types. `nsfw` is the source's word
    (LAION: UNLIKELY, UNSURE, NSFW) or its probability as text; `watermark` a probability. `excluded` is a Reason's value when an
    exclusion list names the candidate.
    """

    source_id: str
    url: str
    captions: tuple[str, ...]
    attributes: Mapping[str, Any] | None = None
    split: str | None = None
    license: str | None = None
    source_page: str | None = None
    attribution: str | None = None
    key: str | None = None
    expected_hash: str | None = None
    extra: Mapping[str, Any] | None = None
    nsfw: str | None = None
    watermark: float | None = None
    excluded: str | None = None
    identity: str | None = None
