"""Every metric there is, one row each. To add one: a file with its arithmetic and a function of a `Subject`, and a row here.

A run that has metrics measures them again, from the features it has, when rows come, go or raise their `version`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.pipeline.errors import Code, UserError
from eval.metrics.accuracy import measure_accuracy
from eval.metrics.clip_score import measure_clip_score, measure_hessel, measure_r_precision
from eval.metrics.diversity import measure_diversity
from eval.metrics.frechet import measure_fd, measure_fid
from eval.metrics.metric import Direction, Metric
from eval.metrics.subject import Found, Subject


@dataclass(frozen=True)
class Family:
    """A row: its title in the report, which direction is better, the unit, where it is defined, and how it is measured.

    `about` says of which images: "captions" of those that were made for the prompts (and the prompts' own), "distance" of a set as a
    whole against the reference, "classifier" of held-out real images, to tell how far the judge of attributes is to be trusted.
    `version` is raised whenever its numbers change for equal features.
    """

    name: str
    title: str
    direction: Direction
    unit: str
    citation: str
    measure: Callable[[Subject], Iterator[Found]]
    about: Literal["captions", "distance", "classifier"] = "captions"
    version: int = 1

    def metric(self, space: str | None = None, what: str | None = None, scope: str | None = None) -> Metric:
        return Metric(self.name, space, what, scope, self.direction, self.unit, self.citation)


CLASSIFIER = "classifier_accuracy"
FAMILIES = {
    row.name: row
    for row in (
        Family(
            "fid", "FID", "lower", "squared distance",
            "Heusel et al. 2017 (arXiv 1706.08500), resized as Parmar et al. 2022 (arXiv 2104.11222)", measure_fid, "distance",
        ),
        Family(
            "fd", "Frechet distance", "lower", "squared distance",
            "Dowson and Landau 1982; FID's formula on other features", measure_fd, "distance",
        ),
        Family(
            "clip_score", "CLIP score", "higher", "100 cos",
            "as in GLIDE (Nichol et al. 2021, arXiv 2112.10741) and unCLIP (arXiv 2204.06125)", measure_clip_score,
        ),
        Family(
            "clip_score_hessel", "CLIP score (Hessel)", "higher", "2.5 max(cos, 0)",
            "Hessel et al. 2021 (arXiv 2104.08718)", measure_hessel,
        ),
        Family(
            "r_precision", "R-precision, top 1", "higher", "share",
            "Xu et al. 2018 (arXiv 1711.10485), by CLIP as in Park et al. 2021", measure_r_precision,
        ),
        Family(
            "diversity", "Within-caption diversity", "higher", "1 - cos",
            "the automatic companion of unCLIP's question about diversity (arXiv 2204.06125)", measure_diversity,
        ),
        Family(
            "attribute_accuracy", "Accuracy", "higher", "share",
            "this toolkit: a classifier trained on real scenes", measure_accuracy,
        ),
        Family(CLASSIFIER, "Accuracy of the classifier", "higher", "share", "this toolkit", measure_accuracy, "classifier"),
    )
}  # fmt: skip
DISTANCES = tuple(name for name, family in FAMILIES.items() if family.about == "distance")
FOLLOWING = tuple(name for name, family in FAMILIES.items() if family.about == "captions")


def versions() -> dict[str, int]:
    """Name -> version of every family, in their order: what the metrics of a run are measured by."""
    return {name: family.version for name, family in FAMILIES.items()}


def stored_metric(path: Path, row: Mapping[str, Any]) -> Metric:
    """The metric of a row (`family, space, what, scope`) of the file `path`. Raises UserError for a family that has no row here."""
    family = FAMILIES.get(row["family"])
    if family is None:
        raise UserError(
            f"{path} holds numbers of the family {row['family']!r}, which this version of the toolkit does not know; "
            f"run `python -m eval metrics` again", Code.OTHER_VERSION,
        )  # fmt: skip
    return family.metric(row["space"], row["what"], row["scope"])
