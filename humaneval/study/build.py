"""Making a study from both systems' samples: draw the questions, make the images, then write what is asked and the key."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.generations import find_samples
from data.pipeline.artifacts import Artifact, PartSpec, Receipt, canonical_json, fingerprint, publish_bytes
from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from humaneval.settings import HumanevalSettings
from humaneval.study.draft import DraftImage, DraftQuestion, Naming, Source, draw_questions
from humaneval.study.images import check_png, compose_grid
from humaneval.study.study import FOLDER, FORMAT
from humaneval.study.wording import KINDS, wording

STAGE_VERSION = 1
QUESTIONS_PER_PART = 50


def build_study(run: Run, config: Config, executor: Executor, precious: bool) -> Artifact:
    """Make the study of a run. A `precious` one (people have rated it) is never replaced.

    Raises UserError for missing samples, different prompts, and images whose size or metadata would tell their system.
    """
    settings = config[HumanevalSettings]
    draft = draft_study(run, settings)
    stage = Stage(
        "study", STAGE_VERSION, run.folder / FOLDER, _shaping(run, settings), _parts(draft), make_images,
        finish=partial(_finish, draft=draft, systems=_systems(settings)), precious=precious,
    )  # fmt: skip
    return run_stage(stage, executor, run.logs)


def draft_study(run: Run, settings: HumanevalSettings) -> list[DraftQuestion]:
    """The questions of all kinds, their images still to be made."""
    pairs = _sources(run, settings, settings.prompt_set, ("photorealism", "caption_similarity"))
    grids = _sources(run, settings, settings.grid_prompt_set, ("diversity",))
    name = Naming(run.seed, [*pairs, *grids])
    draft: list[DraftQuestion] = []
    for kind in KINDS:
        count, sources = getattr(settings.questions, kind), grids if kind == "diversity" else pairs
        if sources:
            draft += draw_questions(kind, count, sources[0], sources[1], name)
    if not draft:
        raise UserError("humaneval.questions asks for no question of any kind; ask for at least one")
    return draft


def _sources(run: Run, settings: HumanevalSettings, prompt_set: str, kinds: Sequence[str]) -> list[Source]:
    """Samples of system a and b; none when no question of these kinds is asked."""
    if all(getattr(settings.questions, kind) == 0 for kind in kinds):
        return []
    arms = {"a": settings.system_a, "b": settings.system_b}
    return [Source.read(arm, find_samples(run.folder, s.name, prompt_set, s.guidance)) for arm, s in arms.items()]


def _shaping(run: Run, settings: HumanevalSettings) -> dict[str, Any]:
    return {"seed": run.seed} | settings.model_dump(
        mode="json", exclude=set(HumanevalSettings.volatile), exclude_none=True
    )


def _systems(settings: HumanevalSettings) -> dict[str, dict[str, Any]]:
    """Arms with the label that results show: the name, with the guidance where names alone do not differ."""
    a, b = settings.system_a, settings.system_b
    label = "{0}" if a.name != b.name else "{0} at guidance {1:g}"
    return {
        arm: {"label": label.format(s.name, s.guidance), "name": s.name, "guidance": s.guidance}
        for arm, s in (("a", a), ("b", b))
    }


def _parts(draft: list[DraftQuestion]) -> list[PartSpec]:
    # Every part depends on the whole draft, so that a change anywhere remakes study.json, which `finish` writes.
    identity = fingerprint([[_public(question) for question in draft], wording()])
    parts = []
    for kind in KINDS:
        of_kind = [question for question in draft if question.kind == kind]
        for i in range(0, len(of_kind), QUESTIONS_PER_PART):
            batch = of_kind[i : i + QUESTIONS_PER_PART]
            inputs = {"study": identity, "images": fingerprint([image.sha256 for q in batch for image in q.images])}
            parts.append(
                PartSpec(f"{kind}-{i // QUESTIONS_PER_PART:05d}", inputs, {"pairs": [_recipes(q) for q in batch]})
            )
    return parts


def _public(question: DraftQuestion) -> dict[str, Any]:
    """A question as study.json holds it."""
    return {
        "id": question.id,
        "kind": question.kind,
        "caption": question.caption,
        "images": [image.token for image in question.images],
    }


def _recipes(question: DraftQuestion) -> list[dict[str, Any]]:
    return [{"token": image.token, "paths": image.paths, "sha256": image.sha256} for image in question.images]


def make_images(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Make the images of one part's questions (runs in a worker)."""
    folder = attempt / "images"
    folder.mkdir()
    for pair in spec.payload["pairs"]:
        looks: dict[tuple[int, ...], Path] = {}
        for recipe in pair:
            _make_image(recipe, folder, looks)
        if len(looks) > 1:
            shown = ", ".join(f"{path} {look}" for look, path in sorted(looks.items()))
            raise UserError(
                f"images of one question differ in (width, height, bit depth, colour type): {shown}; "
                "raters could tell the systems apart by it: sample both at one size"
            )
    return {"questions": len(spec.payload["pairs"])}


def _make_image(recipe: Mapping[str, Any], folder: Path, looks: dict[tuple[int, ...], Path]) -> None:
    """Copy one file, or compose 16, under the recipe's token; note what the files look like."""
    contents = []
    for path, sha256 in zip(map(Path, recipe["paths"]), recipe["sha256"], strict=True):
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} is not the image that its index.parquet recorded; delete {path.parent} and sample again"
            )
        looks.setdefault(check_png(content, path), path)
        contents.append(content)
    image = contents[0] if len(contents) == 1 else compose_grid(contents)
    (folder / f"{recipe['token']}.png").write_bytes(image)


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
