"""What a run has, what is incomplete or stale and why, and which command comes next."""

from dataclasses import dataclass
from pathlib import Path

from data.dataset.ledger import dropped_counts
from data.dataset.origin import describe, is_resharded
from data.dataset.retries import frozen_retries, waiting_retries
from data.fetch.reasons import TRANSIENT
from data.pipeline.artifacts import Artifact, lost_file
from data.pipeline.lineage import Lineage, StageRow, stage_rows
from data.pipeline.run import Run
from data.views.removal import removed_keys


@dataclass(frozen=True)
class StageStatus:
    name: str
    state: str  # complete | incomplete | missing | stale
    detail: str
    command: str
    precious: bool = False


def run_status(run: Run) -> list[StageStatus]:
    """One line per stage that the config asks for, in the order in which they are made."""
    lineage = Lineage(run)
    return [_status(run, row, lineage) for row in stage_rows() if row.asked_for(run.config)]


def run_notes(run: Run) -> list[str]:
    """What stands beside the stages: removed samples, retries that wait, where a resharded dataset came from."""
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
    """The command that makes what is not complete. What is precious and stale is made again by nobody until it is deleted."""
    return next(
        (s.command for s in statuses if s.state != "complete" and not (s.precious and s.state == "stale")), None
    )


def _status(run: Run, row: StageRow, lineage: Lineage) -> StageStatus:
    found = {artifact.folder.relative_to(run.folder).as_posix(): artifact for artifact in row.artifacts(run)}
    names = [name for name in found if row.member(run.config, name)]
    artifacts = [found[name] for name in names]

    def said(state: str, detail: str) -> StageStatus:
        return StageStatus(row.name, state, detail, row.command, row.precious)

    if not artifacts:
        return said("missing", "")
    # Another config, or other files of the user's own, are said of an incomplete artifact as well: making it would be refused.
    other = _other_config(run, row.name)
    changed = row.input_changed(run)
    if other or changed:
        return said("stale", other or changed or "")
    for artifact in artifacts:
        if lacking := _lacking(artifact):
            return said("incomplete", lacking)
    wanted = row.count(run.config)
    if len(artifacts) < wanted:
        return said("incomplete", f"{len(artifacts)} of {wanted} sets")
    why = next((why for name in names if (why := lineage.why_stale(name))), None)
    if why and row.precious:
        why += f"; it is used as it is until {artifacts[0].folder} is deleted"
    return said("stale", why) if why else said("complete", _counts(artifacts))


def _lacking(artifact: Artifact) -> str | None:
    """Which part or file of an artifact is not there."""
    if not artifact.is_complete():
        parts = (artifact.plan_json() or {"parts": []})["parts"]
        done = sum(artifact.receipt(part["name"]) is not None for part in parts)
        return f"{done} of {len(parts)} parts of {artifact.folder}"
    lost = _lost(artifact)
    return f"{lost} is missing or of another size than recorded" if lost else None


def _lost(artifact: Artifact) -> Path | None:
    """The first file of a complete artifact that is not there as recorded, by its size."""
    manifest = artifact.manifest()
    recorded = [manifest["files"], *(part["files"] for part in manifest["parts"])]
    return next((lost for files in recorded if (lost := lost_file(artifact.folder, files))), None)


def _other_config(run: Run, name: str) -> str | None:
    """Which setting of the config is not what it was when the stage was made, and what to do."""
    top = name.removesuffix("/*/*").removesuffix("/*")
    for change in run.changes():
        if any(top == owned or owned.startswith(f"{top}/") or top.startswith(f"{owned}/") for owned in change.owned):
            return run.explain(change)
    return None


def _counts(artifacts: list[Artifact]) -> str:
    if len(artifacts) > 1:
        return f"{len(artifacts)} sets"
    counts = artifacts[0].manifest()["counts"]
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if not name.startswith("dropped"))
