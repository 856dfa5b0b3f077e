"""Prompt sets: held-out captions, chosen once by seed, on which every system is judged.

`prompts/<name>/prompts.parquet` has one row a prompt: `prompt_id, caption, caption_key, caption_index, split, attributes,
named` (the last two JSON: what the scene shows, what this caption names of it; "" where the dataset does not know).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import Artifact, PartSpec
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from eval.real_images import RealImages
from eval.settings import PromptSetSettings

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
    table = pq.read_table(artifact.require("python -m eval sample").folder / "prompts.parquet", schema=PROMPTS_SCHEMA)
    return [Prompt(**row | {n: json.loads(row[n]) for n in ("attributes", "named")}) for row in table.to_pylist()]


def make_prompts(run: Run, real: RealImages, name: str, settings: PromptSetSettings) -> Artifact:
    """Choose the prompt set `name`, or keep the one that stands."""
    chosen = settings.model_dump(mode="json") | {"prompt_set": name, "seed": run.seed}
    part = PartSpec("00000", {"dataset and view": real.digest})
    make = partial(_write_prompts, real, name, settings, run.seed)
    stage = Stage(f"prompts-{name}", 1, run.folder / "prompts" / name, chosen, [part], make)
    return run_stage(stage, InProcess(), run.logs)


def _write_prompts(
    real: RealImages, name: str, settings: PromptSetSettings, seed: int, spec: PartSpec, attempt: Path
) -> dict[str, int]:
    prompts = choose_prompts(real, name, settings, seed)
    pq.write_table(pa.Table.from_pylist([p.row() for p in prompts], PROMPTS_SCHEMA), attempt / "prompts.parquet")
    return {"prompts": len(prompts)}


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
                f"lower eval.{name}, or raise dataset.split.test or the number of samples"
            )
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
