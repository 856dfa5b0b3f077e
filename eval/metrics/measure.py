"""From features to numbers: every metric of one set of images, and the paired difference between two systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.accuracy import Judged, judge_one_object, judge_two_objects
from eval.metrics.clip_score import clip_score, clip_score_hessel, r_precision
from eval.metrics.diversity import within_caption_diversity
from eval.metrics.frechet import BIASED, Gaussian, frechet_distance, frechet_draws, small_n_warning
from eval.statistics import bootstrap
from eval.statistics.bootstrap import Estimate

Floats = NDArray[np.floating]
SAME_CLIP = "judged by the CLIP that also conditions unCLIP"
NO_VARIATION = "no variation among the captions"
ONE_CAPTION_HESSEL = "without Hessel's caption prefix, and on the run's CLIP instead of ViT-B/32"


@dataclass(frozen=True)
class Measured:
    """An estimate over `n` captions and `images` images. `chance` is what a guesser would reach, where that is known."""

    estimate: Estimate
    n: int
    images: int
    warnings: tuple[str, ...] = ()
    chance: float | None = None


@dataclass(frozen=True)
class Judge:
    """Everything that is the same for all systems: captions, what they name, their draws, the references.

    `texts` (captions, d) are the captions' unit CLIP vectors; `draws` (draws, captions) from `bootstrap.caption_draws`.
    """

    named: Sequence[Mapping[str, Any]]
    texts: Floats
    draws: NDArray[np.int64]
    clip_name: str
    clip_warnings: tuple[str, ...]
    vocabulary: Mapping[str, Sequence[str]]
    scene: Sequence[str]

    def clip_metrics(self, features: Floats, groups: NDArray[np.intp]) -> dict[str, Measured]:
        """CLIP scores, R-precision and diversity of images (n, d) of captions `groups` (n,)."""
        own, captions = self.texts[groups], len(np.unique(groups))
        tag, n = f"[{self.clip_name}]", len(features)
        hessel = (*self.clip_warnings, ONE_CAPTION_HESSEL)
        found = {
            f"clip_score{tag}": Measured(self._mean(clip_score(features, own), groups), captions, n, self.clip_warnings),
            f"clip_score_hessel{tag}": Measured(self._mean(clip_score_hessel(features, own), groups), captions, n, hessel),
            f"r_precision{tag}": Measured(
                bootstrap.proportion(r_precision(features, self.texts, groups), groups, self.draws),
                captions, n, self.clip_warnings, 1 / len(self.texts),
            ),
        }  # fmt: skip
        values, of = within_caption_diversity(features, groups)
        if len(values):
            found[f"diversity{tag}"] = Measured(self._mean(values, of), len(of), n, self.clip_warnings)
        return found

    def attribute_metrics(self, logits: Mapping[str, Floats], groups: NDArray[np.intp]) -> dict[str, Measured]:
        """Accuracy of every named attribute, one-object captions apart from two-object ones."""
        named = [self.named[g] for g in groups]
        one = judge_one_object(logits, self.vocabulary, named)
        two = judge_two_objects(logits, self.vocabulary, named, self.scene)
        judged = one | {f"{attribute}, two objects": j for attribute, j in two.items()}
        return {f"attribute_accuracy[{name}]": self._accuracy(j, groups) for name, j in judged.items()}

    def _mean(self, values: Floats, groups: NDArray[np.intp]) -> Estimate:
        return bootstrap.mean(values, groups, self.draws)

    def _accuracy(self, judged: Judged, groups: NDArray[np.intp]) -> Measured:
        of = groups[judged.rows]
        estimate = bootstrap.proportion(judged.right, of, self.draws)
        wilson = ("all right or all wrong: Wilson's interval over captions",) if estimate.value in (0, 1) else ()
        return Measured(estimate, len(np.unique(of)), len(of), wilson, float(judged.chance.mean()))


def distance(
    features: Floats, groups: NDArray[np.intp], draws: NDArray[np.int64], reference: Gaussian, references: int
) -> Measured:
    """Frechet distance of features (n, d) to a fitted reference of `references` images, clamped at 0; the raw value is named
    where the clamp changed it."""
    raw = frechet_distance(Gaussian.fit(features), reference)
    estimate = bootstrap.centred(raw, frechet_draws(features, groups, draws, reference), floor=0.0)
    bias = small_n_warning(len(features), references, features.shape[1])
    own = f"resampling puts the bias of the images' side at {np.mean(estimate.draws) - raw:+.3g}"
    warnings = [bias, own] if bias else []
    if raw < 0:
        warnings.append(f"raw value {raw:.3g}, below 0 by rounding")
    return Measured(estimate, len(np.unique(groups)), len(features), tuple(warnings))


def difference(a: Mapping[str, Measured], b: Mapping[str, Measured]) -> dict[str, Measured]:
    """a - b of every metric that both have, paired over captions."""
    return {
        name: _paired(a[name], b[name])
        for name in a
        if name in b and len(a[name].estimate.draws) == len(b[name].estimate.draws)
    }


def _paired(a: Measured, b: Measured) -> Measured:
    """Of the warnings only those that hold for a difference: what concerns one side's own interval or bias is left behind."""
    warnings = [w for w in a.warnings if w == SAME_CLIP or w.startswith(BIASED)]
    if np.ptp(a.estimate.draws) == np.ptp(b.estimate.draws) == 0:
        warnings.append(NO_VARIATION)
    return Measured(bootstrap.difference(a.estimate, b.estimate), a.n, a.images, tuple(warnings))
