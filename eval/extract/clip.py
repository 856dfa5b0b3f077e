"""The run's CLIP as an extractor, of images and of captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from data.pipeline.stage import Input
from embed.clip.model import Clip, ClipSource
from embed.stages import clip_identity
from eval.extract.extractor import Arrays, FeatureSpace

EMBEDDING, TEXT = "embedding", "text"
SAME_CLIP = "judged by the run's own CLIP, on which its systems rest too"


@dataclass(frozen=True)
class ClipExtractor:
    """Unit-length embeddings of the run's CLIP: of images (`embedding`) and of captions (`text`)."""

    source: ClipSource
    identity: str

    @classmethod
    def open(cls, run: Run) -> "ClipExtractor":
        """Raises UserError when the run's CLIP is not there."""
        source = ClipSource.of(run)
        return cls(source, clip_identity(run, "") or source.load().identity)

    name = "clip"

    @property
    def label(self) -> str:
        return f"clip:{self.identity[:8]}"

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input("@clip", self.identity),)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def spaces(self) -> tuple[FeatureSpace, ...]:
        return (FeatureSpace(EMBEDDING, self.label, "fd", (SAME_CLIP,)),)

    def extract(self, images: NDArray[np.uint8]) -> Arrays:
        clip = _loaded(self.source, self.identity)
        return {EMBEDDING: np.asarray(clip.encode_images(images), dtype=np.float32)}

    def extract_texts(self, captions: Sequence[str]) -> Arrays:
        """float32 (n, d) of captions."""
        clip = _loaded(self.source, self.identity)
        return {TEXT: np.asarray(clip.encode_text(clip.tokenize(captions)), dtype=np.float32)}


@lru_cache(maxsize=1)
def _loaded(source: ClipSource, identity: str) -> Clip:
    """Once in each process, and anew for another `identity`."""
    clip = source.load()
    if clip.identity != identity:
        raise UserError(
            f"the CLIP changed while images were judged: {clip.identity[:12]} is not {identity[:12]}; run `make eval` again",
            Code.FOREIGN,
        )
    return clip
