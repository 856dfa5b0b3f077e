"""Every metric of one set of images, and the paired difference between two systems."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from eval.metrics.families import FAMILIES
from eval.metrics.metric import Measured, Metric
from eval.metrics.subject import Subject
from eval.statistics import bootstrap

NO_VARIATION = "no variation among the captions"
M = TypeVar("M")


def measure(subject: Subject, families: Sequence[str]) -> dict[Metric, Measured]:
    """What the named families find in a subject, in their order."""
    found: dict[Metric, Measured] = {}
    for name in families:
        family = FAMILIES[name]
        for one in family.measure(subject):
            found[family.metric(one.space, one.what, one.scope)] = one.measured
    return found


def difference(a: Mapping[M, Measured], b: Mapping[M, Measured]) -> dict[M, Measured]:
    """a - b of every metric that both have, paired over captions."""
    return {
        metric: _paired(a[metric], b[metric])
        for metric in a
        if metric in b and len(a[metric].estimate.draws) == len(b[metric].estimate.draws)
    }


def _paired(a: Measured, b: Measured) -> Measured:
    still = np.ptp(a.estimate.draws) == np.ptp(b.estimate.draws) == 0
    own = (NO_VARIATION,) if still else ()
    return Measured(bootstrap.difference(a.estimate, b.estimate), a.n, a.images, a.warnings, own)
