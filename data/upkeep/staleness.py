"""Why an artifact is no longer what it would be made of today: its inputs, its thresholds, what was removed since."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from data.pipeline.artifacts import Artifact, read_json
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from data.views.settings import ViewsSettings

# What today's digest of an input is, as the part `name` of the stage recorded it.
Current = Callable[[Run, str], str | None]


def stale(run: Run, name: str, artifact: Artifact) -> str:
    """Why a complete artifact no longer matches what it was made from; empty when it does."""
    checks = dict(_CHECKS.get(name, {}))
    if name.startswith("views/"):  # whichever scores the view's rules read
        checks |= {path.name: _scored(path.name) for path in (run.folder / "scores").glob("*")}
    if name == "scores/duplicates":
        from data.scores.duplicates import require_fresh_duplicates

        if why := refusal(require_fresh_duplicates, run):
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


def refusal(check: Callable[[Run], object], run: Run) -> str:
    """What a check that raises UserError says of the run; empty when it passes."""
    try:
        check(run)
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


def _keeps_removed(run: Run, view: Artifact) -> bool:
    from data.views.removal import removed_keys, removed_path

    if not removed_path(run).exists():
        return False
    import pyarrow as pa
    import pyarrow.compute as pc

    from data.views.reading import kept_pairs

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
_BY_SHARD = frozenset(
    {
        "scores/basic", "views/base", "embeddings", "scores/similarity", "scores/aesthetic", "scores/semantic", "views/train",
    }
)  # fmt: skip
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
    "scores/aesthetic": {"embeddings": _file("embeddings", "{}.parquet")},
    "scores/semantic": {"embeddings": _digest("embeddings"), "base": _digest("views/base")},
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


def clip_changed(run: Run) -> str:
    """Why the embeddings do not belong to the run's own CLIP, where the run trains one; empty when they do."""
    trained, cache = run.clip.folder / "metrics.json", run.embeddings.plan_json()
    if not trained.exists() or cache is None:
        return ""
    identity = json.loads(trained.read_bytes())["identity"]
    recorded = {part["inputs"]["clip"] for part in cache["parts"]}
    return "" if recorded == {identity} else "embeddings: the clip they were made with has been replaced since"
