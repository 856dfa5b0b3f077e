"""The metrics stage: gathers samples, real images and judges of a run, and fills `eval/metrics.parquet`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.generations import find_samples
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.errors import UserError
from data.pipeline.progress import progress
from data.pipeline.run import Run
from embed.clip.model import load_clip
from eval.extract.clip import ClipExtractor
from eval.extract.extractor import AttributeExtractor, Extractor
from eval.extract.inception import InceptionExtractor
from eval.extract.stage import Features, features_of, trained_classifier
from eval.generate import drawn_with
from eval.images import ImageSet, samples_set
from eval.metrics.frechet import Gaussian
from eval.metrics.measure import SAME_CLIP, Judge, Measured, difference, distance
from eval.prompts import Prompt, read_prompts
from eval.real_images import RealImages
from eval.settings import EvalSettings
from eval.statistics.bootstrap import caption_draws
from eval.systems import system_inputs
from eval.table import Row, publish_rows, read_rows
from training.systems import SYSTEMS

VERSION = 1
PROMPT_SET = "captions"
DIFFERENCE = " - ".join(SYSTEMS)


@dataclass(frozen=True)
class SystemImages:
    """A system's images at one scale with the captions (rows of the prompt set) that they belong to."""

    system: str
    guidance: float | None
    settings_hash: str
    images: ImageSet


class Evaluation:
    """What one run's metrics are computed from. Everything expensive is made when first asked for."""

    def __init__(self, run: Run) -> None:
        self.run, self.settings = run, run.config[EvalSettings]
        self.prompts: list[Prompt] = read_prompts(run.artifact(f"prompts/{PROMPT_SET}"))
        self.real = RealImages(run.dataset, run.view("base").require("make dataset"))
        self.samples = {
            (system, scale): find_samples(run.folder, system, PROMPT_SET, scale)
            for scale in self.settings.guidance
            for system in SYSTEMS
        }
        self.side = int(next(iter(self.samples.values())).settings()["side"])
        # As many as a system has: the small-n bias of its distances is then that of the real row too.
        wanted = len(self.prompts) * self.settings.captions.samples
        self.reference_keys, extra = split_real(
            self.real, self.prompts, self.settings.reference_images, wanted, run.seed
        )
        self.real_keys = [p.caption_key for p in self.prompts] + extra

    @cached_property
    def clip(self) -> ClipExtractor:
        return ClipExtractor(load_clip(self.run))

    @cached_property
    def attributes(self) -> AttributeExtractor | None:
        """None where the dataset does not know what its images show."""
        if not self.real.has_attributes:
            return None
        return AttributeExtractor(trained_classifier(self.run, self.real, self.settings.attributes, self.side))

    @cached_property
    def inception(self) -> InceptionExtractor | None:
        return InceptionExtractor.open(self.settings.inception) if self.settings.inception else None

    @property
    def extractors(self) -> list[Extractor]:
        return [e for e in (self.clip, self.attributes, self.inception) if e is not None]

    @cached_property
    def judge(self) -> Judge:
        clip = self.clip.clip
        vocabulary = self.attributes.classifier.vocabulary if self.attributes else None
        return Judge(
            named=[p.named for p in self.prompts],
            texts=np.asarray(clip.encode_text(clip.tokenize([p.caption for p in self.prompts]))),
            draws=caption_draws(len(self.prompts), self.settings.bootstrap_draws, self.run.seed),
            clip_name=self.clip.metric.removeprefix("fd[").removesuffix("]"),
            clip_warnings=(SAME_CLIP,),
            vocabulary=vocabulary.heads if vocabulary else {},
            scene=list(vocabulary.scene) if vocabulary else [],
        )

    def judged_sets(self) -> Iterator[SystemImages]:
        for (system, scale), artifact in self.samples.items():
            yield SystemImages(system, scale, artifact.folder.name.rpartition("-")[2], samples_set(artifact))

    def real_set(self, name: str, keys: Sequence[str]) -> ImageSet:
        return self.real.image_set(name, keys, self.side)

    def features(self, images: ImageSet, extractor: Extractor) -> Features:
        return features_of(self.run, images, extractor)

    def space(self, images: ImageSet, extractor: Extractor) -> Features:
        """The features in which a Frechet distance is measured: of the classifier, without its logits."""
        found = self.features(images, extractor)
        return extractor.split(found)[0] if isinstance(extractor, AttributeExtractor) else found

    @cached_property
    def references(self) -> Mapping[str, Gaussian]:
        images = self.real_set("reference", self.reference_keys)
        return {e.name: Gaussian.fit(self.space(images, e)) for e in self.extractors}

    def measure(self, images: ImageSet, groups: NDArray[np.intp], draws: NDArray[np.int64]) -> dict[str, Measured]:
        """Every metric of a system's images; `groups` are rows of the prompt set."""
        found = {}
        for e in self.extractors:
            measured = self.distance(images, e, groups, draws)
            same = (SAME_CLIP,) if e.name == "clip" else ()
            found[e.metric] = replace(measured, warnings=(*measured.warnings, *same))
        return found | self.follow(images, groups)

    def distance(
        self, images: ImageSet, extractor: Extractor, groups: NDArray[np.intp], draws: NDArray[np.int64]
    ) -> Measured:
        """Frechet distance to the reference in one extractor's space."""
        reference = self.references[extractor.name]
        return distance(self.space(images, extractor), groups, draws, reference, len(self.reference_keys))

    def follow(self, images: ImageSet, groups: NDArray[np.intp]) -> dict[str, Measured]:
        """The metrics that compare images with their captions."""
        found = self.judge.clip_metrics(self.features(images, self.clip), groups)
        if self.attributes:
            _, logits = self.attributes.split(self.features(images, self.attributes))
            found |= self.judge.attribute_metrics(logits, groups)
        return found

    def require_current_samples(self) -> None:
        """Raises UserError for samples of weights that have been replaced since."""
        for (system, _), artifact in self.samples.items():
            if drawn_with(artifact) != system_inputs(self.run, system, self.clip.identity):
                raise UserError(
                    f"the samples {artifact.folder} were drawn with models that have been replaced since; "
                    "run `python -m eval sample`"
                )

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on, JSON types. Equal facts, equal numbers."""
        splits = Counter(self.real.meta[key]["split"] for key in self.reference_keys)
        return {
            "version": VERSION, "settings": self.settings.model_dump(mode="json", exclude={"label"}), "seed": self.run.seed,
            "samples": {sample_name(*of): artifact.digest() for of, artifact in self.samples.items()},
            "prompts": self.run.artifact(f"prompts/{PROMPT_SET}").digest(), "dataset_and_view": self.real.digest,
            "clip": self.clip.identity, "attributes": self.attributes.identity if self.attributes else None, "side": self.side,
            "reference": {"keys": fingerprint(self.reference_keys), "images": len(self.reference_keys), "splits": dict(splits)},
            "real_row": {"keys": fingerprint(self.real_keys), "images": len(self.real_keys), "of_prompts": len(self.prompts)},
        }  # fmt: skip


def sample_name(system: str, scale: float) -> str:
    """How `facts` calls a system's samples at one scale."""
    return f"{system}@{scale:g}"


def split_real(
    real: RealImages, prompts: Sequence[Prompt], references: int, row: int, seed: int
) -> tuple[list[str], list[str]]:
    """(reference keys, further keys of the real row beyond the prompts' own images), disjoint, held-out images first.

    Both have the prompts' shares of one- and two-object scenes: else every distance would measure how prompts were chosen.
    """
    own = {p.caption_key for p in prompts}
    pool = [key for key in (*real.held_out(seed, "reference"), *real.train(seed, "reference")) if key not in own]
    shares = Counter(p.objects for p in prompts)
    reference: list[str] = []
    extra: list[str] = []
    for objects, count in sorted(shares.items()):
        mine = [key for key in pool if real.objects(key) == objects] if real.has_attributes else pool
        share = count / len(prompts)
        more = min(round((row - len(prompts)) * share), len(mine) // 3)
        take = min(round(references * share), len(mine) - more)
        reference += mine[:take]
        extra += mine[take : take + more]
    return reference, extra


def compute_metrics(run: Run) -> Path:
    """Fill `eval/metrics.parquet`, unless it stands and nothing that it depends on has changed."""
    evaluation, path = Evaluation(run), run.folder / "eval" / "metrics.parquet"
    evaluation.require_current_samples()
    facts = evaluation.facts()
    if not path.exists() or read_rows(path)[1] != facts:
        publish_rows(path, list(all_rows(evaluation)), facts)
    return path


def all_rows(evaluation: Evaluation) -> Iterator[Row]:
    index = {p.prompt_id: i for i, p in enumerate(evaluation.prompts)}
    measured: dict[tuple[str, float | None], dict[str, Measured]] = {}
    sets = list(evaluation.judged_sets())
    with progress("metrics", len(sets) + 1, "image sets") as bar:
        for judged in sets:
            groups = np.array([index[prompt] for prompt in judged.images.groups], dtype=np.intp)
            found = measured[judged.system, judged.guidance] = evaluation.measure(
                judged.images, groups, evaluation.judge.draws
            )
            yield from _rows(found, judged.system, evaluation.run.seed, judged.guidance, judged.settings_hash)
            bar.advance()
        for scale in evaluation.settings.guidance:
            a, b = (measured[system, scale] for system in SYSTEMS)
            yield from _rows(difference(a, b), DIFFERENCE, evaluation.run.seed, scale)
        yield from _real_rows(evaluation)
        bar.advance()
    yield from _chance_rows(measured[SYSTEMS[0], evaluation.settings.guidance[0]], evaluation.run.seed)


def _real_rows(evaluation: Evaluation) -> Iterator[Row]:
    """Real images under the same judges: the prompts' own where a caption matters, with more of their kind for distances."""
    own = evaluation.real_set("prompts", [p.caption_key for p in evaluation.prompts])
    found = evaluation.follow(own, np.arange(len(own.ids)))
    images = evaluation.real_set("real", evaluation.real_keys)
    draws = caption_draws(len(images.ids), evaluation.settings.bootstrap_draws, evaluation.run.seed)
    for e in evaluation.extractors:
        found[e.metric] = evaluation.distance(images, e, np.arange(len(images.ids)), draws)
    yield from _rows(found, "real", evaluation.run.seed)
    yield from _classifier_rows(evaluation)


def _classifier_rows(evaluation: Evaluation) -> Iterator[Row]:
    """The attribute classifier on held-out real scenes, every attribute that they show."""
    if evaluation.attributes is None:
        return
    keys = evaluation.real.held_out(evaluation.run.seed, "classifier")[: evaluation.settings.attributes.held_out]
    _, logits = evaluation.attributes.split(
        evaluation.features(evaluation.real_set("held-out", keys), evaluation.attributes)
    )
    judge = Judge(
        [evaluation.real.truth(key) for key in keys], evaluation.judge.texts,
        caption_draws(len(keys), evaluation.settings.bootstrap_draws, evaluation.run.seed), "", (),
        evaluation.judge.vocabulary, evaluation.judge.scene,
    )  # fmt: skip
    found = judge.attribute_metrics(logits, np.arange(len(keys)))
    yield from _rows(
        {k.replace("attribute", "classifier", 1): m for k, m in found.items()}, "real", evaluation.run.seed
    )


def _chance_rows(found: Mapping[str, Measured], seed: int) -> Iterator[Row]:
    for metric, m in found.items():
        if m.chance is not None:
            yield Row(metric, "chance", m.chance, m.chance, m.chance, m.n, m.images, seed)


def _rows(
    found: Mapping[str, Measured], system: str, seed: int, guidance: float | None = None, settings_hash: str = ""
) -> Iterator[Row]:
    for metric, m in found.items():
        e = m.estimate
        yield Row(metric, system, e.value, e.lo, e.hi, m.n, m.images, seed, settings_hash, guidance, m.warnings)


def extract_all(run: Run) -> list[Artifact]:
    """Train the classifier and compute every feature that `metrics` will ask for."""
    evaluation = Evaluation(run)
    evaluation.require_current_samples()
    sets = [judged.images for judged in evaluation.judged_sets()]
    sets += [
        evaluation.real_set("reference", evaluation.reference_keys),
        evaluation.real_set("real", evaluation.real_keys),
    ]
    for images in sets:
        for extractor in evaluation.extractors:
            evaluation.features(images, extractor)
    return sorted(
        (Artifact(p.parent) for p in (run.folder / "eval" / "features").glob("*/*/manifest.json")),
        key=lambda a: a.folder,
    )
