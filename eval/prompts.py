"""Prompt sets: held-out captions, chosen once by seed, on which every system is judged.

`prompts/<name>/` has a part of `prompts_per_part` prompts for each part of what systems generate from them, so that a part whose
prompts stay what they are stays too. Rows, ordered by prompt_id over all parts: `prompt_id, caption, caption_key, caption_index, split,
attributes, named` (the last two JSON: what the scene shows, what this caption names of it; {} where the dataset does not know).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import run_stages
from data.pipeline.stage import PartSpec, Stage
from eval.real_images import RealImages, RealSource
from eval.settings import EvalSettings, PromptSetSettings

IMAGES_PER_PART = 64  # that a system generates; at the default batch one batch
PROMPTS_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("caption", pa.string()),
        ("caption_key", pa.string()),
        ("caption_index", pa.int32()),
        ("split", pa.string()),
        ("attributes", pa.string()),
        ("named", pa.string()),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """One caption. `named` is what it names of its scene ({} where unknown), in the form of the sample's attributes."""

    prompt_id: str
    caption: str
    caption_key: str
    caption_index: int
    split: str
    attributes: Mapping[str, Any]
    named: Mapping[str, Any]

    @property
    def objects(self) -> int:
        return len(self.named.get("objects", []))

    def row(self) -> dict[str, Any]:
        return asdict(self) | {
            name: json.dumps(getattr(self, name), sort_keys=True) for name in ("attributes", "named")
        }


def read_prompts(artifact: Artifact) -> list[Prompt]:
    """The prompts of a complete set, ordered by prompt_id."""
    parts = artifact.require("python -m eval generate").part_digests()
    return [prompt for name in parts for prompt in read_part(part_path(artifact, name))]


def part_path(artifact: Artifact, part: str) -> Path:
    return artifact.folder / f"{part}.parquet"


def read_part(path: Path) -> list[Prompt]:
    table = pq.read_table(path, schema=PROMPTS_SCHEMA)
    return [Prompt(**row | {n: json.loads(row[n]) for n in ("attributes", "named")}) for row in table.to_pylist()]


@dataclass(frozen=True)
class PromptsWork:
    """One part of the prompt set `name`: prompts `start` to `stop` of the whole choice."""

    real: RealSource
    name: str
    settings: PromptSetSettings
    seed: int
    start: int
    stop: int


def prompts_per_part(settings: PromptSetSettings) -> int:
    """As many as give IMAGES_PER_PART images, or one."""
    return max(1, IMAGES_PER_PART // settings.images)


def make_prompts(run: Run, executor: Executor) -> list[Artifact]:
    """Choose the prompt sets of the config, or keep those that stand."""
    real = RealSource.of(run)
    sets = run.config[EvalSettings].prompt_sets
    return run_stages([prompts_stage(run, real, name, s) for name, s in sets.items()], executor, run.logs)


def prompts_stage(run: Run, real: RealSource, name: str, settings: PromptSetSettings) -> Stage:
    step = prompts_per_part(settings)
    parts = [
        PartSpec(
            f"{i:05d}",
            real.inputs,
            PromptsWork(real, name, settings, run.seed, start, min(start + step, settings.captions)),
        )
        for i, start in enumerate(range(0, settings.captions, step))
    ]
    chosen = settings.model_dump(mode="json") | {"prompt_set": name, "seed": run.seed}
    return Stage(f"prompts-{name}", 2, run.folder / "prompts" / name, chosen, parts, write_prompts)


def write_prompts(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Write one part's rows."""
    work: PromptsWork = spec.work
    prompts = _chosen(work.real, work.name, work.settings, work.seed)[work.start : work.stop]
    pq.write_table(pa.Table.from_pylist([p.row() for p in prompts], PROMPTS_SCHEMA), attempt / f"{spec.name}.parquet")
    return {"prompts": len(prompts)}


@lru_cache(maxsize=2)
def _chosen(real: RealSource, name: str, settings: PromptSetSettings, seed: int) -> list[Prompt]:
    """The whole choice, once in each process: every part is a slice of it."""
    return choose_prompts(real.open(), name, settings, seed)


def choose_prompts(real: RealImages, name: str, settings: PromptSetSettings, seed: int) -> list[Prompt]:
    """One caption an image, no two alike, from the test split and then the validation split.

    Raises UserError when there are too few, saying how many of which kind there are.
    """
    candidates = list(_candidates(real, settings, seed, name))
    wanted = (
        {1: settings.captions - settings.two_object, 2: settings.two_object}
        if real.has_attributes
        else {0: settings.captions}
    )
    chosen: list[Prompt] = []
    for objects, count in wanted.items():
        found: dict[str, Prompt] = {}
        for prompt in candidates:
            if prompt.objects == objects and len(found) < count:
                found.setdefault(prompt.caption, prompt)
        if len(found) < count:
            kind = (
                f" of {objects} object{'s' * (objects > 1)} that name {' and '.join(settings.must_name)}"
                if objects
                else ""
            )
            raise UserError(
                f"prompt set {name!r} needs {count} distinct held-out captions{kind}, there are {len(found)} "
                f"({len(real.splits['test'])} test and {len(real.splits['val'])} val images): "
                f"lower eval.{name}, or raise dataset.split.test or the number of samples", Code.EMPTY,
            )  # fmt: skip
        chosen += found.values()
    return sorted(chosen, key=lambda p: p.prompt_id)


def _candidates(real: RealImages, settings: PromptSetSettings, seed: int, name: str) -> Iterator[Prompt]:
    for key in real.held_out(seed, f"prompts/{name}"):
        meta = real.meta[key]
        attributes = dict(meta.get("attributes") or {})
        all_named = attributes.pop("named", None)
        for index in real.captions[key]:
            named = all_named[index] if all_named else {}
            if not named or names_all(named, settings.must_name):
                yield Prompt(f"{key}-{index}", meta["captions"][index], key, index, meta["split"], attributes, named)
                break


def names_all(named: Mapping[str, Any], attributes: tuple[str, ...]) -> bool:
    """Does a caption name each of these attributes, of the scene or of every object in it?"""
    return all(a in named or (named["objects"] and all(a in thing for thing in named["objects"])) for a in attributes)
