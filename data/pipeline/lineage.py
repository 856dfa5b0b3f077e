"""Lineage: which artifact was made from which, read from what every part recorded; why an artifact is stale.

Each room lists its stages in a table of `StageRow`s (`data.pipeline.rooms.STAGES`). Status, the report's graph and the search for
who saw a removed sample read the tables and the recorded inputs; nothing about staleness is listed by hand.
"""

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

Holds = Literal["rows by part", "keys", "bytes"]


@dataclass(frozen=True)
class StageRow:
    """One kind of artifact. `name` is its folder in the run; `generations/*/*` names a family of them.

    `command` makes it; `remedy` rids it of samples that must not be used any more. `asked_for(config)` says whether a run makes it,
    `count(config)` how many a family has. `follows` names the artifact of which it has a part for each part. `settings` is the table
    of the config whose values stand in its manifest and may move (a view's thresholds). `holds` says how its files hold samples.
    `costly` facts are asked by `make status` alone. `after` names the stage behind which this one is made, where that is not its
    room's order. A `precious` artifact (downloads, weights) is made again by hand alone: what is made from it follows it, and is not
    stale because it is.
    """

    name: str
    command: str
    remedy: str
    asked_for: Callable[[Config], bool] = lambda config: True
    count: Callable[[Config], int] = lambda config: 1
    follows: str | None = None
    settings: str | None = None
    holds: Holds | None = None
    costly: tuple[str, ...] = ()
    after: str | None = None
    precious: bool = False

    @property
    def is_family(self) -> bool:
        return "*" in self.name

    def artifacts(self, run: Run) -> list[Artifact]:
        """What stands of it, complete or not, in a fixed order."""
        return [Artifact(path.parent) for path in sorted(run.folder.glob(f"{self.name}/plan.json"))]


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


class Lineage:
    """What stands in a run, as it stands now. Answers are remembered: ask a new one after something was made."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stale: dict[str, str | None] = {}
        self._digests: dict[str, str | None] = {}

    def why_stale(self, name: str, thorough: bool = False) -> str | None:
        """Why a complete artifact no longer is what it would be made of today; None when it is, or when it is not there.

        `thorough` also asks what is costly to tell (whether the user's own files changed)."""
        if name not in self._stale:
            self._stale[name] = None  # what is asked about on the way: no artifact is made from itself
            self._stale[name] = self._why(name)
        row = row_of(name)
        why = self._stale[name]
        return why or (self._costly(row) if thorough and row is not None else None)

    def require(self, name: str, command: str | None = None) -> Artifact:
        """The artifact, complete and not stale. Raises UserError naming the command that makes it."""
        row = row_of(name)
        command = command or (row.command if row else "the command that makes it")
        artifact = self.run.artifact(name).require(command)
        if why := self.why_stale(name):
            raise UserError(f"{artifact.folder} is stale ({why}); run `{command}` first", Code.STALE)
        return artifact

    def made_from(self, name: str) -> dict[str, str]:
        """Of every input of an artifact, parts and facts apart: its name -> the digest it had. Of a part's, the first."""
        found: dict[str, str] = {}
        for inputs in self.run.artifact(name).inputs().values():
            for of, digest in inputs:
                found.setdefault(of, digest)
        return found

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
            told: str | None = load(FACTS[name[1:]][0])(self.run, part)
            return told
        artifact = self.run.artifact(name)
        if part:
            return artifact.part_digest(part)
        return artifact.digest() if artifact.is_complete() else None

    def _why(self, name: str) -> str | None:
        artifact, row = self.run.artifact(name), row_of(name)
        try:
            parts = artifact.inputs()
        except UserError as error:
            return str(error)
        if row is not None and (why := self._moved(row, artifact)):
            return why
        for part, inputs in parts.items():
            for of, recorded in inputs:
                if why := self._changed(row, part, of, recorded):
                    return why
        for other in self.upstream(name):
            above = row_of(other)
            if (above is None or not above.precious) and (why := self.why_stale(other)):
                return f"{other} is stale ({why})"
        return self._lacks(row, set(parts)) if row is not None and row.follows else None

    def _changed(self, row: StageRow | None, part: str, of: str, recorded: str) -> str | None:
        fact = of.partition(":")[0]
        if fact.startswith("@") and fact[1:] not in FACTS:
            return f"it was made by another version of the toolkit, which names the input {of}"
        if row is not None and fact in row.costly:
            return None
        now = self.digest(of)
        if now == recorded or (now is None and of.startswith("@")):  # a fact that cannot be told is taken to stand
            return None
        return f"{_changed_words(of)} (part {part})"

    def _moved(self, row: StageRow, artifact: Artifact) -> str | None:
        """Which setting has moved since the artifact was made."""
        if row.settings is None:
            return None
        made = (artifact.plan_json() or {"settings": {}})["settings"]
        table = f"{row.settings}.{artifact.folder.name}" if row.is_family else row.settings
        says = self.run.config.at(table)  # None: a view that somebody's own code made
        for key, value in says.model_dump(mode="json").items() if says is not None else ():
            if made.get(key) != value:
                return f"{table}.{key} was {made.get(key)!r} when it was made, {self.run.config.source} says {value!r}"
        return None

    def _lacks(self, row: StageRow, names: set[str]) -> str | None:
        """A retry appends shards: what is made shard by shard must follow."""
        plan = self.run.artifact(row.follows or "").plan_json() or {"parts": []}
        lacking = [part["name"] for part in plan["parts"] if part["name"] not in names]
        return f"{row.follows} has new parts since ({', '.join(lacking[:3])})" if lacking else None

    def _costly(self, row: StageRow) -> str | None:
        for part, inputs in self.run.artifact(row.name).inputs().items():
            for of, recorded in inputs:
                if of.partition(":")[0] in row.costly:
                    try:
                        if self.digest(of) != recorded:
                            return f"{_changed_words(of)} (part {part})"
                    except UserError as error:
                        return str(error)
        return None


def _changed_words(of: str) -> str:
    name = of.partition(":")[0]
    return FACTS[name[1:]][1] if name.startswith("@") else f"{of} has changed since"


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
    """(row, name, artifact) of everything that a run holds."""
    for row in stage_rows():
        for artifact in row.artifacts(run):
            yield row, artifact.folder.relative_to(run.folder).as_posix(), artifact
