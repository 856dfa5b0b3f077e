"""What a run has, what is incomplete or stale and why, and which command comes next."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.artifacts import Artifact, read_json
from data.errors import UserError
from data.filters.settings import ViewsSettings
from data.run import Run
from data.runner import lost_file

# In the order they are made; the command that makes each.
ORDER = (
    ("dataset", "make dataset"),
    ("scores/basic", "make dataset"),
    ("scores/duplicates", "make dataset"),
    ("views/base", "make dataset"),
    ("clip", "make clip"),
    ("embeddings", "make embeddings"),
    ("scores/similarity", "make embeddings"),
    ("views/train", "make embeddings"),
    ("models/prior", "make train"),
    ("models/decoder", "make train"),
    ("models/glide", "make train"),
    ("samples", "make eval"),
    ("humaneval/study", "make eval"),
    ("eval", "make eval"),
)
# What today's digest of an input is, as the part `name` of the stage recorded it.
Current = Callable[[Run, str], str | None]


@dataclass(frozen=True)
class StageStatus:
    name: str
    state: str  # complete | incomplete | missing | stale
    detail: str
    command: str


def run_status(run: Run, without: frozenset[str] = frozenset()) -> list[StageStatus]:
    """One line per stage. `without` names stages that the config does not ask for (a CLIP that is not trained here)."""
    return [_status(run, name, command) for name, command in ORDER if name not in without]


def run_notes(run: Run) -> list[str]:
    """What stands beside the stages: removed samples, retries that wait, where a resharded dataset came from."""
    from data.fetch.reasons import TRANSIENT
    from data.ledger import dropped_counts
    from data.upkeep.removal import removed_keys
    from data.upkeep.reshard import describe, is_resharded
    from data.upkeep.retry import frozen_retries, waiting_retries

    notes = []
    if is_resharded(run.dataset):
        notes.append(describe(run.dataset))
    retries, waiting = frozen_retries(run.dataset.folder), waiting_retries(run.dataset)
    if waiting:
        notes.append(
            f"retries: {len(waiting)} of {len(retries)} retry shards wait to be downloaded; run `make dataset`"
        )
    if run.dataset.is_complete():
        dropped = dropped_counts(run.dataset.manifest()["counts"], "samples")
        passing = sum(n for reason, n in dropped.items() if reason in TRANSIENT)
        if passing:
            notes.append(
                f"retries: {passing:,} samples failed for reasons that may pass; `python -m data retry-failed` asks again"
            )
    if removed := removed_keys(run):
        notes.append(
            f"removed: {len(removed):,} keys are left out of every view; `python -m data reshard` takes them out of the bytes"
        )
    return notes


def next_command(statuses: list[StageStatus]) -> str | None:
    return next((s.command for s in statuses if s.state != "complete"), None)


def _status(run: Run, name: str, command: str) -> StageStatus:
    if name == "eval":
        state, detail = _report_state(run)
        why = _other_config(run, name) if state == "complete" else ""
        return StageStatus(name, "stale" if why else state, why or detail, command)
    folders = (
        sorted(p.parent for p in (run.folder / name).glob("*/*/plan.json"))
        if name == "samples"
        else [run.folder / name]
    )
    artifacts = [Artifact(folder) for folder in folders if (folder / "plan.json").exists()]
    if not artifacts:
        return StageStatus(name, "missing", "", command)
    if why := _other_config(run, name) or (_other_source(run) if name == "dataset" else ""):
        return StageStatus(name, "stale", why, command)
    for artifact in artifacts:
        if not artifact.is_complete():
            parts = (artifact.plan_json() or {"parts": []})["parts"]
            done = sum(artifact.standing(part["name"]) is not None for part in parts)
            return StageStatus(name, "incomplete", f"{done} of {len(parts)} parts of {artifact.folder}", command)
        if lost := _lost(artifact):
            return StageStatus(name, "incomplete", f"{lost} is missing or of another size than recorded", command)
    wanted = _expected_samples(run) if name == "samples" else 1
    if len(artifacts) < wanted:
        return StageStatus(name, "incomplete", f"{len(artifacts)} of {wanted} sets", command)
    why = next((w for artifact in artifacts if (w := stale(run, name, artifact))), "")
    why = why or (_clip_changed(run) if name == "embeddings" else "")
    if why:
        return StageStatus(name, "stale", why, command)
    return StageStatus(name, "complete", _counts(artifacts), command)


def _lost(artifact: Artifact) -> Path | None:
    """The first file of a complete artifact that is not there as recorded, by its size."""
    manifest = artifact.manifest()
    recorded = [manifest["files"], *(part["files"] for part in manifest["parts"])]
    return next((lost for files in recorded if (lost := lost_file(artifact.folder, files))), None)


def stale(run: Run, name: str, artifact: Artifact) -> str:
    """Why a complete artifact no longer matches what it was made from; empty when it does."""
    checks = dict(_CHECKS.get(name, {}))
    if name.startswith("views/"):  # whichever scores the view's rules read
        checks |= {path.name: _scored(path.name) for path in (run.folder / "scores").glob("*")}
    if name == "scores/duplicates" and (why := _old_duplicates(run)):
        return why
    parts = (artifact.plan_json() or {"parts": []})["parts"]
    for part in parts:
        for input_name, recorded in part["inputs"].items():
            if input_name in checks and checks[input_name](run, part["name"]) != recorded:
                return (
                    f"{artifact.folder.name}: the {input_name} it was made from has changed since (part {part['name']})"
                )
    if name.startswith("views/"):
        if why := _other_thresholds(run, name, artifact):
            return why
        if name == "views/train" and (why := run.view("base").stale):
            return f"the view base is stale ({why})"
        if _keeps_removed(run, artifact):
            return f"{artifact.folder.name}: it keeps samples that were removed since"
        for other in sorted({other for part in parts for other in part["inputs"]} & checks.keys() - {"base", "ledger"}):
            if why := stale(run, f"scores/{other}", run.scores(other)):
                return f"{artifact.folder.name}: scores/{other} is stale ({why})"
    return _lacks(run, artifact, {part["name"] for part in parts}) if name in _BY_SHARD else ""


def _other_config(run: Run, name: str) -> str:
    """Which setting of the config is not what it was when the stage was made, and what to do."""
    for change in run.changes():
        if any(name == owned or owned.startswith(f"{name}/") or name.startswith(f"{owned}/") for owned in change.owned):
            return run.explain(change)
    return ""


def _other_source(run: Run) -> str:
    """How the input differs from the one that the dataset was planned from. Reads what `make dataset` reads of it."""
    from data.upkeep.retry import refuse_changed_source

    try:
        refuse_changed_source(run)
        return ""
    except UserError as error:
        return str(error)


def _other_thresholds(run: Run, name: str, view: Artifact) -> str:
    """Which setting of a view has moved since it was made."""
    view_name = name.removeprefix("views/")
    made = (view.plan_json() or {"settings": {}})["settings"]
    says = getattr(run.config[ViewsSettings], view_name, None)  # None: a view that somebody's own code made
    for key, value in says.model_dump(mode="json").items() if says is not None else ():
        if made.get(key) != value:
            return f"views.{view_name}.{key} was {made.get(key)!r} when it was made, {run.config.source} says {value!r}"
    return ""


def _old_duplicates(run: Run) -> str:
    from data.filters.duplicates import require_fresh_duplicates

    try:
        require_fresh_duplicates(run)
        return ""
    except UserError as error:
        return str(error)


def _keeps_removed(run: Run, view: Artifact) -> bool:
    from data.upkeep.removal import removed_keys, removed_path

    if not removed_path(run).exists():
        return False
    import pyarrow as pa
    import pyarrow.compute as pc

    from data.views import kept_pairs

    found = pc.any(pc.is_in(kept_pairs(view)["key"], pa.array(sorted(removed_keys(run)), pa.string())))
    return bool(found.as_py())


def _lacks(run: Run, artifact: Artifact, names: set[str]) -> str:
    """A retry appends shards: what is made shard by shard must follow."""
    plan = run.dataset.plan_json() or {"parts": []}
    lacking = [part["name"] for part in plan["parts"] if part["name"] not in names]
    return f"{artifact.folder.name}: the dataset has new shards since ({', '.join(lacking[:3])})" if lacking else ""


def _file(relative: str, pattern: str) -> Current:
    """sha256 of the file of the same part in another artifact."""

    def current(run: Run, part: str) -> str | None:
        standing = run.artifact(relative).standing(part)
        file = pattern.format(part)
        return standing.files[file]["sha256"] if standing and file in standing.files else None

    return current


def _digest(relative: str) -> Current:
    def current(run: Run, _: str) -> str | None:
        artifact = run.artifact(relative)
        return artifact.digest() if artifact.is_complete() else None

    return current


def _planned(run: Run, part: str) -> str | None:
    path = run.dataset.folder / "plan.json"
    return _planned_digests(path, path.stat().st_mtime_ns).get(part) if path.exists() else None


@lru_cache(maxsize=2)
def _planned_digests(path: Path, _changed: int) -> dict[str, str]:
    """Digest of every part's plan rows; read once, since a plan may name ten thousand parts."""
    return {part["name"]: part["inputs"]["plan"] for part in read_json(path, "plan")["parts"]}


def _scored(scores: str) -> Current:
    """Digest of the same part of some scores."""

    def current(run: Run, part: str) -> str | None:
        standing = run.scores(scores).standing(part)
        return run.scores(scores).part_digest(standing) if standing else None

    return current


# Made shard by shard: one part for each of the dataset's.
_BY_SHARD = frozenset({"scores/basic", "views/base", "embeddings", "scores/similarity", "views/train"})
_CHECKS: Mapping[str, Mapping[str, Current]] = {
    "scores/basic": {
        "shard": _file("dataset", "shards/{}.tar"),
        "ledger": _file("dataset", "ledger/{}.parquet"),
        "plan": _planned,
    },
    "views/base": {"ledger": _file("dataset", "ledger/{}.parquet")},
    "clip": {"dataset": _digest("dataset"), "view": _digest("views/base")},
    "embeddings": {"shard": _file("dataset", "shards/{}.tar")},
    "scores/similarity": {"embeddings": _file("embeddings", "{}.parquet")},
    "views/train": {"base": _file("views/base", "{}.parquet")},
    "models/prior": {"embeddings": _digest("embeddings"), "view": _digest("views/train")},
    "models/decoder": {
        "dataset": _digest("dataset"),
        "embeddings": _digest("embeddings"),
        "view": _digest("views/train"),
    },
    "models/glide": {
        "dataset": _digest("dataset"),
        "embeddings": _digest("embeddings"),
        "view": _digest("views/train"),
    },
    "samples": {name: _digest(f"models/{name}") for name in ("prior", "decoder", "glide")},
}


def _clip_changed(run: Run) -> str:
    """Why the embeddings do not belong to the run's own CLIP, where the run trains one; empty when they do."""
    trained, cache = run.clip.folder / "metrics.json", run.embeddings.plan_json()
    if not trained.exists() or cache is None:
        return ""
    identity = json.loads(trained.read_bytes())["identity"]
    recorded = {part["inputs"]["clip"] for part in cache["parts"]}
    return "" if recorded == {identity} else "embeddings: the clip they were made with has been replaced since"


def _expected_samples(run: Run) -> int:
    """Two systems at every guidance scale, and their grids."""
    return 2 * (len(run.config.to_dict()["eval"]["guidance"]) + 1)


def _report_state(run: Run) -> tuple[str, str]:
    folder = run.folder / "eval"
    lacking = [name for name in ("metrics.parquet", "report.json", "report.html") if not (folder / name).exists()]
    if lacking:
        return ("incomplete" if folder.exists() else "missing"), ", ".join(
            lacking
        ) + " missing" if folder.exists() else ""
    recorded: dict[str, Any] = json.loads((folder / "report.json").read_bytes()).get("artifacts", {})
    for name, digest in sorted(recorded.items()):
        artifact = run.artifact(name)
        if not artifact.is_complete() or artifact.digest() != digest:
            return "stale", f"report: {name} has changed since"
    return "complete", str(folder / "report.html")


def _counts(artifacts: list[Artifact]) -> str:
    if len(artifacts) > 1:
        return f"{len(artifacts)} sets"
    counts = artifacts[0].manifest()["counts"]
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if not name.startswith("dropped"))
