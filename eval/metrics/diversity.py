"""How different the images of one caption are (the automatic companion of the paper's third question to people)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.metrics.metric import Measured
from eval.metrics.subject import Found, Subject
from eval.statistics import bootstrap


def measure_diversity(subject: Subject) -> Iterator[Found]:
    """The mean over captions with at least two images; nothing where there is none."""
    judge = subject.clip
    if judge is None:
        return
    values, captions = within_caption_diversity(judge.images, subject.groups)
    if len(values):
        estimate = bootstrap.mean(values, captions, subject.draws)
        yield Found(Measured(estimate, len(captions), len(judge.images), judge.warnings), judge.label)


def within_caption_diversity(
    images: NDArray[np.floating], groups: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Mean of 1 - cos over the pairs of images of one caption, for every caption with at least two images.

    images: unit vectors (n, d); groups: (n,). Returns (values, their captions). Lies in [0, 2]; 0 for equal images. The mean
    over pairs is unbiased for any number of images, so captions with few and with many may be compared.
    """
    x = images.astype(np.float64)
    captions, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(captions), x.shape[1]))
    np.add.at(sums, inverse, x)
    lengths = np.bincount(inverse, weights=np.sum(x**2, axis=1))
    several = counts >= 2
    # The square of a sum holds every pair's product twice, and every vector's own square once.
    products = (np.sum(sums**2, axis=1) - lengths)[several] / (counts * (counts - 1))[several]
    return 1 - products, captions[several]
