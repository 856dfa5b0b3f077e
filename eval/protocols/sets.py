"""Which images a run's metrics look at: every system's at every scale, and real ones chosen so that the two compare."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data.generations import find_generations
from data.pipeline.artifacts import Artifact
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.stage import Input
from eval.images import GeneratedImages
from eval.prompts import Prompt, read_prompts
from eval.real_images import RealImages, RealSet, RealSource
from eval.settings import EvalSettings
from eval.stages import PROMPT_SET, set_label
from eval.systems import image_side
from training.settings import SystemsSettings


@dataclass(frozen=True)
class SystemImages:
    """A system's images at one scale."""

    system: str
    guidance: float
    artifact: Artifact

    @property
    def label(self) -> str:
        return set_label(self.system, self.guidance)

    @property
    def settings_hash(self) -> str:
        return self.artifact.folder.name.rpartition("-")[2]

    @property
    def images(self) -> GeneratedImages:
        return GeneratedImages.of(self.artifact)


@dataclass(frozen=True)
class Sets:
    """`reference` is what distances are measured to; `real` stands beside the systems in distances, `of_prompts` (the prompts' own
    images) where captions matter; `held_out` tells how good the attribute classifier is. Reference and real share no image."""

    side: int
    prompts: list[Prompt]
    prompt_set: Artifact
    generated: tuple[SystemImages, ...]
    reference: RealSet
    real: RealSet
    of_prompts: RealSet
    held_out: RealSet | None
    splits: dict[str, int]  # of the reference

    @classmethod
    def of(cls, run: Run) -> "Sets":
        """Raises UserError for images that are not there or are stale, naming the command that makes them."""
        generated = generated_sets(run)
        prompt_set = Lineage(run).require(f"prompts/{PROMPT_SET}")
        settings, source, prompts = run.config[EvalSettings], RealSource.of(run), read_prompts(prompt_set)
        real, side = source.open(), image_side(run)
        # As many as a system has: the small-n bias of its distances is then that of the real row too.
        wanted = len(prompts) * settings.captions.images
        reference, extra = split_real(real, prompts, settings.reference_images, wanted, run.seed)
        own = [p.caption_key for p in prompts]
        chosen = {"reference": reference, "real": own + extra, "prompts": own}
        if real.has_attributes:
            chosen["held-out"] = real.held_out(run.seed, "classifier")[: settings.attributes.held_out]
        sources = (*source.inputs, Input(f"prompts/{PROMPT_SET}", prompt_set.digest()))
        sets = {name: RealSet(name, source.dataset, tuple(keys), side, sources) for name, keys in chosen.items()}
        return cls(
            side, prompts, prompt_set, generated, sets["reference"], sets["real"], sets["prompts"], sets.get("held-out"),
            dict(Counter(real.meta[key]["split"] for key in reference)),
        )  # fmt: skip


def generated_sets(run: Run) -> tuple[SystemImages, ...]:
    """Every system's images of the prompt set, scale by scale. Raises UserError for those that are not there or are stale."""
    settings, lineage = run.config[EvalSettings], Lineage(run)
    found = [
        SystemImages(system, scale, find_generations(run.folder, system, PROMPT_SET, scale))
        for scale in settings.guidance
        for system in run.config[SystemsSettings].rows
    ]
    for one in found:
        lineage.require(one.images.inputs[0].of, "python -m eval generate")
    return tuple(found)


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
