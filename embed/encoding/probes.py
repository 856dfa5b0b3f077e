"""Fixed inputs through a CLIP, kept in the cache: by them another machine can tell whether its encoder gives the same vectors."""

import numpy as np
import torch
from numpy.typing import NDArray

from embed.clip.model import Clip

PROBE_SEED = 2204_06125
PROBE_IMAGES = 2
PROBE_CAPTIONS = ("", "a photo of a corgi", "a red cube on top of a blue cube")


def probe_embeddings(clip: Clip) -> NDArray[np.float32]:
    """Two noise images, then three captions, encoded: float32 (5, d) of unit length."""
    images = np.random.default_rng(PROBE_SEED).integers(0, 256, (PROBE_IMAGES, 64, 64, 3), dtype=np.uint8)
    found = torch.cat([clip.encode_images(images).cpu(), clip.encode_text(clip.tokenize(PROBE_CAPTIONS)).cpu()])
    return found.numpy().astype("<f4")
