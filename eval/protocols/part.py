"""One part of the metrics: a set of images measured by families of metrics, from features alone, on any worker.

A part keeps its bootstrap draws, so that differences between parts can be paired when all of them stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact
from data.pipeline.stage import PartSpec
from eval.extract.attributes import LOGITS, AttributeExtractor, read_vocabulary
from eval.extract.clip import EMBEDDING, SAME_CLIP, TEXT
from eval.extract.extractor import FeatureSpace
from eval.extract.stage import Features, read_features
from eval.metrics.families import stored_metric
from eval.metrics.gaussian import Gaussian
from eval.metrics.measure import measure
from eval.metrics.metric import Measured, Metric
from eval.metrics.subject import AttributeJudge, ClipJudge, Space, Subject
from eval.prompts import Prompt, read_prompts
from eval.real_images import truth_of
from eval.statistics.bootstrap import caption_draws
from eval.statistics.intervals import Estimate
from eval.table import Whose

MEASURED_SCHEMA = pa.schema(
    [
        ("family", pa.string()),
        ("space", pa.string()),
        ("what", pa.string()),
        ("scope", pa.string()),
        ("value", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("n", pa.int64()),
        ("images", pa.int64()),
        ("chance", pa.float64()),
        ("warnings", pa.list_(pa.string())),
        ("own_warnings", pa.list_(pa.string())),
        ("draws", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class SetFeatures:
    """A set under one extractor: its features, and those of the reference, each a folder and what digest it had."""

    spaces: tuple[FeatureSpace, ...]
    features: Path
    reference: tuple[Path, str] | None


@dataclass(frozen=True)
class Texts:
    """The prompts, and the CLIP features of their captions."""

    prompts: Path
    features: Path
    label: str


@dataclass(frozen=True)
class Measuring:
    """What a part measures: whose images, by which families, under which judges.

    `of_prompts`: each image belongs to a prompt, and captions are what is resampled; otherwise images are.
    `truths` is the dataset whose scenes the images are, for a judgement by what they show instead of by what a caption names.
    """

    whose: Whose
    families: tuple[str, ...]
    features: tuple[SetFeatures, ...]
    texts: Texts
    classifier: Path | None
    of_prompts: bool
    truths: Path | None
    draws: int
    seed: int


def measure_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Measure one set and write what was found."""
    work: Measuring = spec.work
    found = measure(_subject(work), work.families)
    pq.write_table(
        pa.Table.from_pylist([_to_row(metric, m) for metric, m in found.items()], MEASURED_SCHEMA),
        attempt / f"{spec.name}.parquet",
    )
    return {"numbers": len(found)}


def read_measured(path: Path) -> dict[Metric, Measured]:
    """What `measure_part` wrote. Raises UserError for a family that this version does not know."""
    found = {}
    for row in pq.read_table(path, schema=MEASURED_SCHEMA).to_pylist():
        metric = stored_metric(path, row)
        estimate = Estimate(row["value"], row["lo"], row["hi"], np.asarray(row["draws"], dtype=np.float64))
        found[metric] = Measured(
            estimate, row["n"], row["images"], tuple(row["warnings"]), tuple(row["own_warnings"]), row["chance"]
        )
    return found


def _to_row(metric: Metric, m: Measured) -> dict[str, Any]:
    e = m.estimate
    return {
        "family": metric.family, "space": metric.space, "what": metric.what, "scope": metric.scope, "value": e.value,
        "lo": e.lo, "hi": e.hi, "n": m.n, "images": m.images, "chance": m.chance, "warnings": list(m.warnings),
        "own_warnings": list(m.own_warnings), "draws": e.draws,
    }  # fmt: skip


def _subject(work: Measuring) -> Subject:
    features = [read_features(one.features) for one in work.features]
    prompts = read_prompts(Artifact(work.texts.prompts))
    groups, named = _captions(work, features[0], prompts)
    arrays = {name: array for one in features for name, array in one.arrays.items()}
    texts = read_features(work.texts.features).arrays[TEXT]
    clip = ClipJudge(work.texts.label, arrays[EMBEDDING], texts, (SAME_CLIP,)) if EMBEDDING in arrays else None
    return Subject(
        groups, named, caption_draws(len(named), work.draws, work.seed),
        tuple(_spaces(work, arrays)), clip, _attributes(work, arrays),
    )  # fmt: skip


def _captions(
    work: Measuring, features: Features, prompts: Sequence[Prompt]
) -> tuple[NDArray[np.intp], list[Mapping[str, Any]]]:
    """(group of each image, what each group names)."""
    if work.truths is not None:
        reader = ShardReader(Artifact(work.truths))
        return np.arange(len(features.ids)), [truth_of(reader.meta(key)) for key in features.ids]
    if not work.of_prompts:
        return np.arange(len(features.ids)), [{} for _ in features.ids]
    named = [p.named for p in prompts]
    if work.whose.kind == "real":  # the prompts' own images, in their order
        return np.arange(len(named)), named
    row = {p.prompt_id: i for i, p in enumerate(prompts)}
    return np.array([row[group] for group in features.groups], dtype=np.intp), named


def _spaces(work: Measuring, arrays: Mapping[str, NDArray[np.float32]]) -> list[Space]:
    found = []
    for one in work.features:
        if one.reference is None:
            continue
        for space in one.spaces:
            reference, count = _reference(*one.reference, space.array)
            # What is said of a system's images does not concern real ones.
            warnings = space.warnings if work.whose.kind == "system" else ()
            found.append(Space(space.label, space.family, arrays[space.array], reference, count, warnings))
    return found


@lru_cache(maxsize=4)
def _reference(folder: Path, digest: str, array: str) -> tuple[Gaussian, int]:
    """A Gaussian fitted to one array of the reference's features, and of how many images; once in each process."""
    features = read_features(folder).arrays[array]
    return Gaussian.fit(features), len(features)


def _attributes(work: Measuring, arrays: Mapping[str, NDArray[np.float32]]) -> AttributeJudge | None:
    if work.classifier is None:
        return None
    vocabulary = read_vocabulary(work.classifier)
    logits = {head: arrays[f"{LOGITS}{head}"] for head in vocabulary.heads}
    return AttributeJudge(AttributeExtractor.name, logits, vocabulary.heads, list(vocabulary.scene))
