"""How well an image fits its caption, by a CLIP: two conventions under two names, and R-precision.

All take unit vectors; `images[i]` was made for the caption whose vector is `texts[i]`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.metrics.metric import Measured
from eval.metrics.subject import ClipJudge, Found, Subject
from eval.statistics import bootstrap

HESSEL_WEIGHT = 2.5
ONE_CAPTION_HESSEL = "without Hessel's caption prefix, and on the run's CLIP instead of ViT-B/32"


def measure_clip_score(subject: Subject) -> Iterator[Found]:
    """The mean over images, captions resampled."""
    if subject.clip is not None:
        yield _mean_over_images(subject, subject.clip, clip_score(*_own_pairs(subject, subject.clip)))


def measure_hessel(subject: Subject) -> Iterator[Found]:
    """The same in Hessel's convention, as far as this run's CLIP allows."""
    if subject.clip is not None:
        found = _mean_over_images(subject, subject.clip, clip_score_hessel(*_own_pairs(subject, subject.clip)))
        yield replace(found, measured=replace(found.measured, own_warnings=(ONE_CAPTION_HESSEL,)))


def measure_r_precision(subject: Subject) -> Iterator[Found]:
    """The share of images whose own caption is the nearest of the prompt set; a guesser hits one of them all."""
    judge = subject.clip
    if judge is not None:
        right = r_precision(judge.images, judge.texts, subject.groups)
        estimate = bootstrap.proportion(right, subject.groups, subject.draws)
        chance = 1 / len(judge.texts)
        yield Found(Measured(estimate, subject.captions, len(judge.images), judge.warnings, chance=chance), judge.label)


def _own_pairs(subject: Subject, judge: ClipJudge) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    return judge.images, judge.texts[subject.groups]


def _mean_over_images(subject: Subject, judge: ClipJudge, values: NDArray[np.float64]) -> Found:
    estimate = bootstrap.mean(values, subject.groups, subject.draws)
    return Found(Measured(estimate, subject.captions, len(values), judge.warnings), judge.label)


def cosines(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Row-wise cosine (n,) of unit vectors (n, d) and (n, d)."""
    return np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64))


def clip_score(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """100 * cos per image, not clamped (n,): the paper's and GLIDE's convention, 100 being CLIP's logit scale."""
    return 100 * cosines(images, texts)


def clip_score_hessel(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """2.5 * max(cos, 0) per image (n,): Hessel et al. 2021, clamped before the mean; their caption prefix is the caller's."""
    return HESSEL_WEIGHT * np.maximum(cosines(images, texts), 0)


def r_precision(
    images: NDArray[np.floating], captions: NDArray[np.floating], own: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Is an image's own caption the nearest of all captions (k, d)? `own[i]` is its row. (n,); ties count as wrong."""
    similarity = images.astype(np.float64) @ captions.astype(np.float64).T
    mine = similarity[np.arange(len(own)), own].copy()
    similarity[np.arange(len(own)), own] = -np.inf
    return mine > similarity.max(axis=1)
