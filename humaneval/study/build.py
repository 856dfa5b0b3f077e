"""Making a study from both systems' generated images: draw the questions, make the images, then write what is asked and the key."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.generations import find_generations
from data.pipeline.artifacts import Artifact, Receipt, canonical_json, publish_bytes
from data.pipeline.config import Config
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from humaneval.settings import KINDS, Arm, HumanevalSettings, compared
from humaneval.study.draft import DraftImage, DraftQuestion, Naming, Source, draw_questions
from humaneval.study.images import check_png, compose_grid
from humaneval.study.study import FOLDER, FORMAT
from humaneval.study.wording import wording

STAGE_VERSION = 2
QUESTIONS_PER_PART = 50
Pair = tuple[DraftImage, DraftImage]


@dataclass(frozen=True)
class MakeImages:
    """The images of one part: of each question two."""

    pairs: tuple[Pair, ...]


def build_study(run: Run, config: Config, executor: Executor, precious: bool) -> Artifact:
    """Make the study of a run. A `precious` one (people have rated it) is never replaced.

    Raises UserError for generated images that are missing or stale, different prompts, and images whose size or metadata would
    tell their system.
    """
    settings, arms = config[HumanevalSettings], compared(config)
    if arms is None:
        raise UserError("a study compares two systems, and [systems] has fewer; add a row")
    sources = _sources(run, settings, arms)
    draft = draft_study(run.seed, settings, sources)
    stage = Stage(
        "study", STAGE_VERSION, run.folder / FOLDER, _shaping(run.seed, settings, arms), _parts(run, draft, sources), make_images,
        finish=partial(_finish, draft=draft, systems=_systems(arms)), precious=precious,
    )  # fmt: skip
    return run_stage(stage, executor, run.logs)


def draft_study(
    seed: int, settings: HumanevalSettings, sources: dict[str, tuple[Source, Source]]
) -> list[DraftQuestion]:
    """The questions of all kinds, their images still to be made. `sources` are both systems' images by prompt set.

    Raises UserError when no question is asked, and as `draw_questions`.
    """
    if not sources:
        raise UserError("humaneval.questions asks for no question of any kind; ask for at least one", Code.EMPTY)
    name = Naming(seed, [source for pair in sources.values() for source in pair])
    draft: list[DraftQuestion] = []
    for kind in KINDS:
        for prompt_set, (a, b) in sources.items():
            if kind in settings.kinds_of(prompt_set):
                draft += draw_questions(kind, getattr(settings.questions, kind), a, b, name)
    return draft


def _sources(run: Run, settings: HumanevalSettings, arms: tuple[Arm, Arm]) -> dict[str, tuple[Source, Source]]:
    """Images of system a and b by prompt set, where questions are asked about it. Raises UserError where they are missing or stale."""
    lineage = Lineage(run)

    def read(label: str, arm: Arm, prompt_set: str) -> Source:
        found = find_generations(run.folder, arm.name, prompt_set, arm.guidance)
        return Source.read(label, lineage.require(_name(run, found)))

    asked = [s for s in dict.fromkeys((settings.prompt_set, settings.grid_prompt_set)) if settings.kinds_of(s)]
    return {name: (read("a", arms[0], name), read("b", arms[1], name)) for name in asked}


def _name(run: Run, artifact: Artifact) -> str:
    """What the run calls an artifact: its folder in the run."""
    return artifact.folder.relative_to(run.folder).as_posix()


def _shaping(seed: int, settings: HumanevalSettings, arms: tuple[Arm, Arm]) -> dict[str, Any]:
    """All that decides a study besides the generated images: a change of any of it is another study."""
    chosen = settings.model_dump(
        mode="json", exclude={*HumanevalSettings.volatile, "system_a", "system_b"}, exclude_none=True
    )
    return {"seed": seed, "systems": _systems(arms), "wording": wording()} | chosen


def _systems(arms: tuple[Arm, Arm]) -> dict[str, dict[str, Any]]:
    """Arms with the label that results show: the name, with the guidance where names alone do not differ."""
    a, b = arms
    label = "{0}" if a.name != b.name else "{0} at guidance {1:g}"
    return {
        arm: {"label": label.format(s.name, s.guidance), "name": s.name, "guidance": s.guidance}
        for arm, s in (("a", a), ("b", b))
    }


def _parts(run: Run, draft: list[DraftQuestion], sources: dict[str, tuple[Source, Source]]) -> list[PartSpec]:
    """50 questions a part. Every part depends on all images of both systems, because the opaque names do, and so does study.json."""
    used: Iterable[Artifact] = [source.artifact for pair in sources.values() for source in pair]
    inputs = tuple(Input(_name(run, artifact), artifact.digest()) for artifact in used)
    parts = []
    for kind in KINDS:
        of_kind = [question for question in draft if question.kind == kind]
        for i in range(0, len(of_kind), QUESTIONS_PER_PART):
            work = MakeImages(tuple(question.images for question in of_kind[i : i + QUESTIONS_PER_PART]))
            parts.append(PartSpec(f"{kind}-{i // QUESTIONS_PER_PART:05d}", inputs, work))
    return parts


def make_images(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Make the images of one part's questions (runs in a worker)."""
    work: MakeImages = spec.work
    folder = attempt / "images"
    folder.mkdir()
    for pair in work.pairs:
        formats: dict[tuple[int, ...], Path] = {}
        for image in pair:
            _make_image(image, folder, formats)
        if len(formats) > 1:
            shown = ", ".join(f"{path} {facts}" for facts, path in sorted(formats.items()))
            raise UserError(
                f"images of one question differ in (width, height, bit depth, colour type): {shown}; "
                "raters could tell the systems apart by it: generate both at one size"
            )
    return {"questions": len(work.pairs)}


def _make_image(image: DraftImage, folder: Path, formats: dict[tuple[int, ...], Path]) -> None:
    """Copy one file, or compose 16, under the image's token. `formats` collects what `check_png` says of the files."""
    contents = []
    for path, sha256 in zip(image.paths, image.sha256, strict=True):
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} is not the image that its index.parquet recorded; delete {path.parent} and generate again",
                Code.DAMAGED,
            )
        formats.setdefault(check_png(content, path), path)
        contents.append(content)
    whole = contents[0] if len(contents) == 1 else compose_grid(contents)
    (folder / f"{image.token}.png").write_bytes(whole)


def _finish(folder: Path, receipts: list[Receipt], draft: list[DraftQuestion], systems: dict[str, Any]) -> list[str]:
    """Write key.json and study.json once every image stands."""
    images: list[DraftImage] = [image for question in draft for image in question.images]
    key = canonical_json(
        {
            "systems": systems,
            "images": {image.token: image.arm for image in images},
            "image_ids": {image.token: image.image_ids for image in images},
            "prompts": {question.id: question.prompt_id for question in draft},
        }
    )
    files = {path: facts for receipt in receipts for path, facts in receipt.files.items()}
    study = {
        "format": FORMAT,
        "wording": wording(),
        "questions": [_public(question) for question in draft],
        "images": {image.token: files[f"images/{image.token}.png"] for image in images},
        "key_sha256": hashlib.sha256(key).hexdigest(),
    }
    publish_bytes(folder / "key.json", key)
    publish_bytes(folder / "study.json", canonical_json(study))
    return ["key.json", "study.json"]


def _public(question: DraftQuestion) -> dict[str, Any]:
    """A question as study.json holds it: without what tells the prompt or whose images they are."""
    return {
        "id": question.id,
        "kind": question.kind,
        "caption": question.caption,
        "images": [image.token for image in question.images],
    }
