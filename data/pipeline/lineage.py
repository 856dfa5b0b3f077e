"""Lineage: which artifact was made from which, read from what every part recorded; why an artifact is stale.

Each room lists its stages in a table of `StageRow`s (`data.pipeline.rooms.STAGES`). Status, the report's graph and the search for
who saw a removed sample read the tables and the recorded inputs; nothing about staleness is listed by hand.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from data.pipeline.artifacts import Artifact
from data.pipeline.config import Config
from data.pipeline.errors import Code, UserError
from data.pipeline.rooms import FACTS, STAGES, load
from data.pipeline.run import Run
from data.pipeline.stage import ABSENT

Holds = Literal["rows by part", "keys", "bytes"]


@dataclass(frozen=True)
class StageRow:
    """One kind of artifact. `name` is its folder in the run; `generations/*/*` names a family of them.

    `command` makes it; `remedy` rids it of samples that must not be used any more. `asked_for(config)` says whether a run makes it,
    `count(config)` how many a family has. `follows` names the artifact of which it has a part for each part. `settings` is the table
    of the config whose values stand in its manifest and may move (a view's thresholds). `holds` says how its files hold samples.
    `check(run, name)` says what else makes one stale; `input_changed(run)` what changed in the user's own files, which is costly to
    tell and asked by `make status` alone. `member(config, name)` says whether the config asks for one of a family. `after` names the
    stage behind which this one is made, where that is not its room's order. A `precious` artifact (downloads, weights) is made again
    by hand alone: what is made from it follows it, and is not stale because it is.
    """

    name: str
    command: str
    remedy: str
    asked_for: Callable[[Config], bool] = lambda config: True
    count: Callable[[Config], int] = lambda config: 1
    follows: str | None = None
    settings: str | None = None
    holds: Holds | None = None
    check: Callable[[Run, str], str | None] = lambda run, name: None
    input_changed: Callable[[Run], str | None] = lambda run: None
    member: Callable[[Config, str], bool] = lambda config, name: True
    after: str | None = None
    precious: bool = False

    @property
    def is_family(self) -> bool:
        return "*" in self.name

    def artifacts(self, run: Run) -> list[Artifact]:
        """What stands of it, complete or not, in a fixed order."""
        found = [path.parent for path in sorted(run.folder.glob(f"{self.name}/plan.json"))]
        return [Artifact(folder) for folder in found if row_of(folder.relative_to(run.folder).as_posix()) is self]


@lru_cache(maxsize=1)
def stage_rows() -> tuple[StageRow, ...]:
    """The stages of all rooms, in the order in which they are made: a room's follow those of the rooms below, but for rows that say
    `after` which one they come."""
    rows = [row for table in STAGES for row in load(table)]
    ordered = [row for row in rows if row.after is None]
    for row in rows:
        if row.after is not None:
            ordered.insert(1 + next(i for i, other in enumerate(ordered) if other.name == row.after), row)
    return tuple(ordered)


def row_of(name: str) -> StageRow | None:
    """The row of an artifact by its folder in the run."""
    return next(
        (row for row in stage_rows() if Path(name).match(row.name) and name.count("/") == row.name.count("/")), None
    )


# Of what somebody's own code made.
OTHER = StageRow(
    "*", "the command that made it", "delete it and make it again", asked_for=lambda config: False, holds="keys"
)


class Lineage:
    """What stands in a run, as it stands now. Answers are remembered: ask a new one after something was made."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stale: dict[str, str | None] = {}
        self._digests: dict[str, str | None] = {}
        self._inputs: dict[str, dict[str, list[tuple[str, str]]]] = {}
        self._parts: dict[str, dict[str, str]] = {}

    def why_stale(self, name: str) -> str | None:
        """Why a complete artifact no longer is what it would be made of today; None when it is, or when it is not there."""
        if name not in self._stale:
            self._stale[name] = None  # what is asked about on the way: no artifact is made from itself
            self._stale[name] = self._why(name) if self.run.artifact(name).is_complete() else None
        return self._stale[name]

    def require(self, name: str, command: str | None = None) -> Artifact:
        """The artifact, complete and not stale. Raises UserError naming the command that makes it.

        A stale precious one (a model, after more was downloaded) is handed out with a note: it is what it is until it is deleted."""
        row = row_of(name)
        command = command or (row.command if row else "the command that makes it")
        artifact = self.run.artifact(name).require(command)
        why = self.why_stale(name)
        if why and row is not None and row.precious:
            print(
                f"note: {name} is used as it is, though {why}; delete {artifact.folder} to make it again",
                file=sys.stderr,
            )
        elif why:
            raise UserError(f"{artifact.folder} is stale ({why}); run `{command}` first", Code.STALE)
        return artifact

    def made_from(self, name: str) -> dict[str, str]:
        """Of every input of an artifact, parts and facts apart: its name -> the digest it had. Of a part's, the first."""
        found: dict[str, str] = {}
        for inputs in self.inputs(name).values():
            for of, digest in inputs:
                found.setdefault(of, digest)
        return found

    def inputs(self, name: str) -> dict[str, list[tuple[str, str]]]:
        """Part -> (of, digest) of its inputs. Raises UserError for a plan of an earlier version of the toolkit."""
        if name not in self._inputs:
            self._inputs[name] = self.run.artifact(name).inputs()
        return self._inputs[name]

    def upstream(self, name: str) -> list[str]:
        """Names of the artifacts that an artifact was made from directly, in the order of its inputs."""
        return list(dict.fromkeys(of.partition(":")[0] for of in self.made_from(name) if not of.startswith("@")))

    def digest(self, of: str) -> str | None:
        """Today's digest of an input; None where it is not there, or (a fact) cannot be told."""
        if of not in self._digests:
            self._digests[of] = self._digest(of)
        return self._digests[of]

    def _digest(self, of: str) -> str | None:
        name, _, part = of.partition(":")
        if name.startswith("@"):
            teller = FACTS[name[1:]].told_by
            return load(teller)(self.run, part) if teller is not None else None
        artifact = self.run.artifact(name)
        if not part:
            return artifact.digest() if artifact.is_complete() else None
        if name not in self._parts:  # one file for all parts, where there is one
            self._parts[name] = artifact.part_digests() if artifact.is_complete() else {}
        return self._parts[name].get(part) or artifact.part_digest(part)

    def _why(self, name: str) -> str | None:
        row = row_of(name)
        try:
            parts = self.inputs(name)
        except UserError as error:
            return str(error)
        if row is not None and (why := self._moved(row) or row.check(self.run, name)):
            return why
        for part, inputs in parts.items():
            for of, recorded in inputs:
                if why := self._changed(part, of, recorded):
                    return why
        for other in self.upstream(name):
            above = row_of(other)
            if (above is None or not above.precious) and (why := self.why_stale(other)):
                return why if " is stale (" in why else f"{other} is stale ({why})"  # the root of it, told once
        return self._lacks(row, set(parts)) if row is not None and row.follows else None

    def _changed(self, part: str, of: str, recorded: str) -> str | None:
        fact = of.partition(":")[0]
        if fact.startswith("@") and fact[1:] not in FACTS:
            return f"it was made by another version of the toolkit, which names the input {of}"
        now = self.digest(of)
        absent = fact.startswith("@") or recorded == ABSENT  # a fact that cannot be told is taken to stand
        if now == recorded or (now is None and absent):
            return None
        return f"{_changed_words(of)} (part {part})"

    def _moved(self, row: StageRow) -> str | None:
        """Which setting has moved since the artifact was made."""
        if row.settings is None:
            return None
        made = (self.run.artifact(row.name).plan_json() or {"settings": {}})["settings"]
        says = self.run.config.at(row.settings)
        for key, value in says.model_dump(mode="json").items() if says is not None else ():
            if made.get(key) != value:
                return f"{row.settings}.{key} was {made.get(key)!r} when it was made, {self.run.config.source} says {value!r}"
        return None

    def _lacks(self, row: StageRow, names: set[str]) -> str | None:
        """A retry appends shards: what is made shard by shard must follow."""
        plan = self.run.artifact(row.follows or "").plan_json() or {"parts": []}
        lacking = [part["name"] for part in plan["parts"] if part["name"] not in names]
        return f"{row.follows} has new parts since ({', '.join(lacking[:3])})" if lacking else None


def _changed_words(of: str) -> str:
    name = of.partition(":")[0]
    return FACTS[name[1:]].changed if name.startswith("@") else f"{of} has changed since"


@dataclass(frozen=True)
class Node:
    """An artifact of the graph. `made_from` are names of nodes."""

    name: str
    digest: str | None
    command: str
    stale: str | None
    made_from: tuple[str, ...]


def graph(run: Run) -> list[Node]:
    """Every artifact that stands in a run, complete or not, in the order in which they are made."""
    lineage = Lineage(run)
    return [
        Node(
            name,
            a.digest() if a.is_complete() else None,
            row.command,
            lineage.why_stale(name),
            _drawn_from(lineage, name),
        )
        for row, name, a in artifacts_of(run)
    ]


def _drawn_from(lineage: Lineage, name: str) -> tuple[str, ...]:
    """Artifacts that an artifact was made from, also where it recorded a fact that an artifact tells (the identity of the run's CLIP)."""
    try:
        inputs = lineage.made_from(name)
    except UserError:  # of a version that named them otherwise: its node says so
        return ()
    told = [of[1:] for of in inputs if of.startswith("@") and row_of(of[1:])]
    own = [other for other in told if lineage.run.artifact(other).is_complete()]
    return tuple(dict.fromkeys([*lineage.upstream(name), *own]))


def artifacts_of(run: Run) -> Iterator[tuple[StageRow, str, Artifact]]:
    """(row, name, artifact) of everything that a run holds; what stands in no table (somebody's own code made it) comes last."""
    known = set()
    for row in stage_rows():
        for artifact in row.artifacts(run):
            known.add(artifact.folder)
            yield row, artifact.folder.relative_to(run.folder).as_posix(), artifact
    for path in sorted(run.folder.glob("**/plan.json")):
        if path.parent not in known and not path.is_relative_to(run.scratch):
            yield OTHER, path.parent.relative_to(run.folder).as_posix(), Artifact(path.parent)
