"""The metrics of a run: which features are extracted, which sets are measured by what, and `eval/metrics/metrics.parquet`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import run_stage, run_stages
from data.pipeline.stage import Input, PartSpec, Stage
from eval.extract.attributes import AttributeExtractor, classifier_stage
from eval.extract.clip import ClipExtractor
from eval.extract.extractor import Extractor
from eval.extract.inception import InceptionExtractor
from eval.extract.stage import TEXTS, features_folder, features_stage, texts_stage
from eval.images import ImageSet
from eval.metrics.families import CLASSIFIER as CLASSIFIER_FAMILY
from eval.metrics.families import DISTANCES, FOLLOWING, versions
from eval.protocols.part import Measuring, SetFeatures, Texts, measure_part
from eval.protocols.rows import FILE, FOLDER, write_table
from eval.protocols.sets import Sets, SystemImages
from eval.settings import EvalSettings
from eval.stages import PROMPT_SET
from eval.systems import image_side
from eval.table import Whose, read_facts
from training.settings import SystemsSettings

VERSION = 1


def compute_metrics(run: Run, executor: Executor) -> Path:
    """Extract the features that are missing and fill the metrics table; what stands and is made of the same is kept."""
    evaluation = Evaluation.of(run, executor)
    run_stages(evaluation.features_stages(), executor, run.logs)
    stage = evaluation.metrics_stage()
    path = run.folder / FOLDER / FILE
    if path.is_file() and read_facts(path) != evaluation.facts():
        Artifact(stage.folder).manifest_path.unlink(
            missing_ok=True
        )  # the table is written again from the parts that stand
    run_stage(stage, executor, run.logs)
    return path


def extract_all(run: Run, executor: Executor) -> list[Artifact]:
    """Train the classifier and compute every feature that the metrics will ask for."""
    return run_stages(Evaluation.of(run, executor).features_stages(), executor, run.logs)


def train_attributes(run: Run, executor: Executor) -> Artifact | None:
    """The attribute classifier; None where the dataset does not know what its images show."""
    stage = classifier_stage(run, image_side(run))
    if not stage.parts[0].work.real.open().has_attributes:
        return None
    return run_stage(stage, executor, run.logs)


@dataclass(frozen=True)
class Judges:
    """The extractors of a run: its CLIP, the attribute classifier where the dataset has attributes, Inception where it is given."""

    clip: ClipExtractor
    attributes: AttributeExtractor | None
    inception: InceptionExtractor | None

    @classmethod
    def open(cls, run: Run, executor: Executor) -> "Judges":
        """Trains the classifier unless it stands. Raises UserError for a CLIP or weights that are not there."""
        weights = run.config[EvalSettings].inception
        inception = InceptionExtractor.open(weights) if weights is not None else None
        classifier = train_attributes(run, executor)
        attributes = AttributeExtractor(classifier.folder, classifier.digest()) if classifier is not None else None
        return cls(ClipExtractor.open(run), attributes, inception)

    @property
    def all(self) -> tuple[Extractor, ...]:
        return tuple(one for one in (self.clip, self.attributes, self.inception) if one is not None)

    @property
    def following(self) -> tuple[Extractor, ...]:
        """Those that say whether an image follows its caption."""
        return tuple(one for one in (self.clip, self.attributes) if one is not None)


@dataclass(frozen=True)
class Evaluation:
    """A run's image sets and judges: all that its metrics are computed from."""

    run: Run
    sets: Sets
    judges: Judges

    @classmethod
    def of(cls, run: Run, executor: Executor) -> "Evaluation":
        """Raises UserError for generated images that are not there or are stale."""
        return cls(run, Sets.of(run), Judges.open(run, executor))

    def features_stages(self) -> list[Stage]:
        """Everything that the metrics read, independent of each other."""
        sets, judges = self.sets, self.judges
        wanted: list[tuple[ImageSet, Sequence[Extractor]]] = [
            *((one.images, judges.all) for one in sets.generated),
            (sets.reference, judges.all), (sets.real, judges.all), (sets.of_prompts, judges.following),
        ]  # fmt: skip
        if sets.held_out is not None and judges.attributes is not None:
            wanted.append((sets.held_out, [judges.attributes]))
        images = [features_stage(self.run, one, extractor) for one, extractors in wanted for extractor in extractors]
        return [texts_stage(self.run, sets.prompt_set, judges.clip), *images]

    def metrics_stage(self) -> Stage:
        """A part for every system at every scale, and three of real images. Its features must stand."""
        sets, judges, real = self.sets, self.judges, Whose("real", "real")
        parts = [self._part_of_system(one) for one in sets.generated]
        # The prompts' own images where a caption matters, with more of their kind for distances.
        parts.append(self._part("real-captions", sets.of_prompts, judges.following, real, FOLLOWING))
        parts.append(self._part("real-distances", sets.real, judges.all, real, DISTANCES, of_prompts=False))
        if sets.held_out is not None and judges.attributes is not None:
            families, truths = (CLASSIFIER_FAMILY,), sets.held_out.dataset
            parts.append(
                self._part("real-classifier", sets.held_out, [judges.attributes], real, families, False, truths)
            )
        draws = self.run.config[EvalSettings].bootstrap_draws
        settings = {"bootstrap_draws": draws, "seed": self.run.seed, "families": versions()}
        finish = partial(write_table, [part.work.whose for part in parts], self.facts())
        # Movable: where families come or go, all is measured again, which takes features alone.
        return Stage("metrics", VERSION, self.run.folder / FOLDER, settings, parts, measure_part, finish, movable=True)

    def _part_of_system(self, one: SystemImages) -> PartSpec:
        whose = Whose("system", one.system, one.guidance, one.settings_hash)
        return self._part(one.label, one.images, self.judges.all, whose, (*DISTANCES, *FOLLOWING))

    def _part(
        self, name: str, images: ImageSet, extractors: Sequence[Extractor], whose: Whose, families: tuple[str, ...],
        of_prompts: bool = True, truths: Path | None = None,
    ) -> PartSpec:  # fmt: skip
        run, clip = self.run, self.judges.clip
        inputs = [Input(f"prompts/{PROMPT_SET}", self.sets.prompt_set.digest()), self._input(clip, TEXTS)]
        under = []
        for extractor in extractors:
            features, reference = self._input(extractor, images.name), None
            inputs.append(features)
            if set(families) & set(DISTANCES):
                fitted = self._input(extractor, self.sets.reference.name)
                inputs.append(fitted)
                reference = (run.folder / fitted.of, fitted.digest)
            under.append(SetFeatures(extractor.spaces, run.folder / features.of, reference))
        texts = Texts(self.sets.prompt_set.folder, run.folder / features_folder(clip, TEXTS), clip.label)
        attributes = self.judges.attributes
        if attributes is not None:
            inputs += attributes.inputs
        work = Measuring(
            whose, families, tuple(under), texts, attributes.folder if attributes is not None else None, of_prompts, truths,
            run.config[EvalSettings].bootstrap_draws, run.seed,
        )  # fmt: skip
        return PartSpec(name, tuple(inputs), work)

    def _input(self, extractor: Extractor, name: str) -> Input:
        """Features that stand."""
        folder = features_folder(extractor, name)
        return Input(folder, self.run.artifact(folder).require("python -m eval features").digest())

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on, for a reader of the table, JSON types."""
        sets, judges, settings = self.sets, self.judges, self.run.config[EvalSettings]
        return {
            "settings": settings.model_dump(mode="json", exclude={"label"}), "seed": self.run.seed,
            "systems": list(self.run.config[SystemsSettings].rows),
            "generations": {one.label: one.artifact.digest() for one in sets.generated},
            "prompts": sets.prompt_set.digest(), "clip": judges.clip.identity,
            "attributes": judges.attributes.digest if judges.attributes is not None else None, "side": sets.side,
            "reference": {
                "keys": fingerprint(list(sets.reference.keys)), "images": len(sets.reference.keys), "splits": sets.splits,
            },
            "real_row": {
                "keys": fingerprint(list(sets.real.keys)), "images": len(sets.real.keys), "of_prompts": len(sets.prompts),
            },
        }  # fmt: skip
