"""What a run has, what is incomplete or stale and why, and which command comes next."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Artifact
from data.pipeline.run import Run
from data.pipeline.runner import lost_file
from data.upkeep.staleness import clip_changed, refusal, stale

# In the order they are made; the command that makes each.
ORDER = (
    ("dataset", "make dataset"),
    ("scores/basic", "make dataset"),
    ("scores/duplicates", "make dataset"),
    ("views/base", "make dataset"),
    ("clip", "make clip"),
    ("embeddings", "make embeddings"),
    ("scores/similarity", "make embeddings"),
    ("scores/aesthetic", "make embeddings"),
    ("scores/semantic", "make embeddings"),
    ("views/train", "make embeddings"),
    ("models/prior", "make train"),
    ("models/decoder", "make train"),
    ("models/glide", "make train"),
    ("samples", "make eval"),
    ("humaneval/study", "make eval"),
    ("eval", "make eval"),
)
# Stages that a config may not ask for: whether it does, from its tables.
ASKED_FOR: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "clip": lambda tables: tables["clip"]["source"] == "run",
    "scores/aesthetic": lambda tables: "aesthetic" in tables["embeddings"],
    "scores/semantic": lambda tables: "semantic" in tables["embeddings"],
}


@dataclass(frozen=True)
class StageStatus:
    name: str
    state: str  # complete | incomplete | missing | stale
    detail: str
    command: str


def run_status(run: Run) -> list[StageStatus]:
    """One line per stage that the config asks for."""
    tables = run.config.to_dict()
    asked = [stage for stage in ORDER if ASKED_FOR.get(stage[0], lambda _: True)(tables)]
    return [_status(run, name, command) for name, command in asked]


def run_notes(run: Run) -> list[str]:
    """What stands beside the stages: removed samples, retries that wait, where a resharded dataset came from."""
    from data.dataset.ledger import dropped_counts
    from data.dataset.origin import describe, is_resharded
    from data.dataset.retries import frozen_retries, waiting_retries
    from data.fetch.reasons import TRANSIENT
    from data.views.removal import removed_keys

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
    from data.upkeep.retry import refuse_changed_source

    # The input is read as `make dataset` reads it.
    if why := _other_config(run, name) or (refusal(refuse_changed_source, run) if name == "dataset" else ""):
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
    why = why or (clip_changed(run) if name == "embeddings" else "")
    if why:
        return StageStatus(name, "stale", why, command)
    return StageStatus(name, "complete", _counts(artifacts), command)


def _lost(artifact: Artifact) -> Path | None:
    """The first file of a complete artifact that is not there as recorded, by its size."""
    manifest = artifact.manifest()
    recorded = [manifest["files"], *(part["files"] for part in manifest["parts"])]
    return next((lost for files in recorded if (lost := lost_file(artifact.folder, files))), None)


def _other_config(run: Run, name: str) -> str:
    """Which setting of the config is not what it was when the stage was made, and what to do."""
    for change in run.changes():
        if any(name == owned or owned.startswith(f"{name}/") or name.startswith(f"{owned}/") for owned in change.owned):
            return run.explain(change)
    return ""


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
