"""The run's CLIP as an extractor."""

import numpy as np
from numpy.typing import NDArray

from embed.clip.model import Clip


class ClipExtractor:
    """Unit-length image embeddings of the run's CLIP."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.name, self.identity = "clip", clip.identity
        self.metric = f"fd[clip:{clip.identity[:8]}]"

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self.clip.encode_images(images), dtype=np.float32)
