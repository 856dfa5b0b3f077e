"""Simulated raters: programs that answer through the same store as people, so that the demo's results have content.

A simulated rater sees what a person sees, the two images' bytes, left and right, and nothing else: it prefers the image of
stronger contrast, with noise of its own. Whatever comes out says how contrasts differ, and nothing about people.
"""

import hashlib
import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from data.pipeline.progress import progress
from humaneval.rating.store import Lease, Rater, Store
from humaneval.settings import SimulatedRaters
from humaneval.study.study import Study

LABEL = "simulated"
DISCLAIMER = "SIMULATED raters (a program that prefers contrast): these answers say nothing about people"


def simulate(study: Study, store: Store, settings: SimulatedRaters, seed: int) -> int:
    """Let `settings.raters` simulated raters answer their share. Returns the number of new ratings; a second run adds none."""
    contrast = lru_cache(maxsize=4096)(lambda token: image_contrast(study.image(token)))
    ratings = 0
    with progress("simulated raters", settings.raters, "raters") as bar:
        for i in range(settings.raters):
            rater = store.join(f"{LABEL}-{study.hash[:12]}-{i:04d}", simulated=True)
            while lease := store.next_lease(rater):
                ratings += store.answer(lease.lease, _answer(rater, lease, contrast, settings, seed))
            bar.advance()
    return ratings


def _answer(rater: Rater, lease: Lease, contrast: Callable[[str], float], settings: SimulatedRaters, seed: int) -> str:
    noise = settings.noise * rater_noise(seed, rater.rater, lease.question)
    preference = contrast(lease.left_image) - contrast(lease.right_image) + noise
    if abs(preference) < settings.indecision:
        return "not_sure"
    return "left" if preference > 0 else "right"


def image_contrast(content: bytes) -> float:
    """Standard deviation of an image's pixel values in [0, 1], the mean over channels."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float64) / 255
    return float(pixels.std(axis=(0, 1)).mean())


def rater_noise(seed: int, rater: str, question: str) -> float:
    """A standard normal number that belongs to this rater and question."""
    digest = hashlib.sha256(f"{seed}\0{rater}\0{question}".encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:16], "big")).standard_normal())
