"""Stages and their parts: what is going to be made, from what, and by which function."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Receipt, fingerprint

ABSENT = "none"  # the digest of an input that was not there, and need not be


@dataclass(frozen=True)
class Input:
    """Something that a part is made from. `of` names it, `digest` (hex) is what it was when the part was planned.

    `views/base` is a whole artifact by its folder in the run (digest of its manifest), `views/base:00042` one of its parts
    (digest of the part's files), and `@clip` a fact that no artifact holds, which a room tells by name (`data.pipeline.rooms`).
    """

    of: str
    digest: str


@dataclass(frozen=True)
class PartSpec:
    """One unit of work, ready to travel to any worker. `inputs` decide whether the part is still fresh; `work` is a frozen,
    picklable value that tells the function where to find things and how to make them, and is not hashed."""

    name: str
    inputs: tuple[Input, ...] = ()
    work: Any = None

    def digest_of(self, of: str) -> str:
        """The digest of the input called `of`. Raises KeyError where there is none."""
        for one in self.inputs:
            if one.of == of:
                return one.digest
        raise KeyError(of)


MakePart = Callable[[PartSpec, Path], Mapping[str, int]]
Finish = Callable[[Path, list[Receipt]], Sequence[str]]


@dataclass(frozen=True)
class Plan:
    """What an artifact is going to be, written before any part."""

    stage: str
    version: int
    settings: Mapping[str, Any]
    parts: tuple[PartSpec, ...]

    def fingerprint_of(self, part: PartSpec) -> str:
        """Changes when the settings, the stage's version or the digests of the part's inputs change; not with what inputs are called."""
        return fingerprint([self.stage, self.version, self.settings, part.name, [one.digest for one in part.inputs]])

    def to_json(self) -> dict[str, Any]:
        parts = [
            {"name": p.name, "inputs": [vars(one) for one in p.inputs], "fingerprint": self.fingerprint_of(p)}
            for p in self.parts
        ]
        return {"stage": self.stage, "stage_version": self.version, "settings": self.settings, "parts": parts}


@dataclass(frozen=True)
class Stage:
    """A stage ready to run. `version` is raised whenever the code's output changes for equal settings and inputs.

    `make(spec, attempt) -> counts` is a function of a module, so that any worker finds it. It writes files under `attempt` at the
    paths they will have in the artifact. `finish(folder, receipts)` runs in the driver, may write files about the whole artifact
    and returns their relative paths. A `precious` stage (downloads, trained weights) refuses to remake finished parts whose
    inputs or stage version changed, instead of replacing them. A `movable` stage (thresholds) discards parts that were made with
    other settings, where others refuse to mix them.
    """

    name: str
    version: int
    folder: Path
    settings: Mapping[str, Any]
    parts: Sequence[PartSpec]
    make: MakePart
    finish: Finish | None = None
    unit: str = "parts"
    precious: bool = False
    movable: bool = False

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.name, self.version, json.loads(json.dumps(self.settings)), tuple(self.parts))
