"""The part runner: every stage of every room is made here, one independent part at a time.

A stage is a pure function `make(spec, attempt) -> counts` mapped over its parts. It writes files under `attempt` at the
paths they will have in the artifact. The runner publishes them: moved into place, then the receipt; the manifest last.
So a kill at any point leaves a whole part or none, and a task that runs twice publishes the same bytes twice.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import (
    Artifact,
    PartSpec,
    Plan,
    Receipt,
    file_facts,
    fsync_path,
    is_volatile,
    publish_json,
    raise_if_full,
    sum_counts,
)
from data.pipeline.errors import DiskFull, StageFailed, ToolkitError, UserError
from data.pipeline.executors import Executor, WorkerDied
from data.pipeline.faults import boundary
from data.pipeline.progress import progress

MakePart = Callable[[PartSpec, Path], Mapping[str, int]]
MAX_DEATHS = 3
RECORDED_LIBRARIES = ("torch", "open_clip_torch", "img2dataset", "diffusers", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class Stage:
    """A stage ready to run. `version` is raised whenever the code's output changes for equal settings and inputs.

    `finish(folder, receipts)` may write files about the whole artifact (a dataset card) and returns their relative paths.
    A `precious` stage (downloads, trained weights) refuses to remake finished parts whose inputs or stage version changed,
    instead of replacing them.
    """

    name: str
    version: int
    folder: Path
    settings: Mapping[str, Any]
    parts: Sequence[PartSpec]
    make: MakePart
    finish: Callable[[Path, list[Receipt]], Sequence[str]] | None = None
    unit: str = "parts"
    precious: bool = False

    @property
    def plan(self) -> Plan:
        return Plan(self.name, self.version, json.loads(json.dumps(self.settings)), tuple(self.parts))


def run_stage(stage: Stage, executor: Executor, logs: Path | None = None) -> Artifact:
    """Make what is missing or stale, keep the rest, and publish the manifest.

    Raises UserError when finished parts were made with other settings, StageFailed when parts could not be made (the others
    are), DiskFull when the disk is full.
    """
    artifact = Artifact(stage.folder)
    try:
        with locked(stage.folder):
            return _run_locked(stage, artifact, executor, logs)
    except OSError as error:
        raise_if_full(error, stage.folder)
        raise


def _run_locked(stage: Stage, artifact: Artifact, executor: Executor, logs: Path | None) -> Artifact:
    plan = stage.plan
    _refuse_mixed_settings(artifact, plan)
    fingerprints = {part.name: plan.fingerprint_of(part) for part in plan.parts}
    if stage.precious:
        _refuse_stale(artifact, fingerprints)
    _discard_stale(artifact, fingerprints)
    if artifact.plan_json() != json.loads(json.dumps(plan.to_json())):
        publish_json(stage.folder / "plan.json", plan.to_json())
    boundary("plan")
    missing = [part for part in plan.parts if artifact.standing(part.name) is None]
    if missing:
        artifact.manifest_path.unlink(missing_ok=True)
        _make_parts(stage, missing, fingerprints, executor, logs)
    if missing or not artifact.is_complete() or lost_file(stage.folder, artifact.manifest()["files"]):
        _publish_manifest(stage, plan, artifact)
    return artifact


def _make_parts(
    stage: Stage, missing: list[PartSpec], fingerprints: dict[str, str], executor: Executor, logs: Path | None
) -> None:
    """Run the missing parts; those whose worker died run again, alone, until the third death."""
    deaths = {part.name: 0 for part in missing}
    failures: dict[str, str] = {}
    waiting, alone = list(missing), False
    # A stage of one part shows what happens inside it, if anything (a training's steps).
    with progress(stage.name, len(missing), stage.unit, quiet=len(stage.parts) == 1) as bar:
        while waiting:
            batches = [[part] for part in waiting] if alone else [waiting]
            suspects = []
            for batch in batches:
                tasks = [(part, fingerprints[part.name]) for part in batch]
                for part, outcome in executor.run(
                    stage.name, make_part, [(stage.folder, stage.make, *t) for t in tasks], batch
                ):
                    _log(logs, stage.name, part.name, outcome)
                    if isinstance(outcome, WorkerDied):
                        deaths[part.name] += 1
                        if deaths[part.name] < MAX_DEATHS:
                            print(
                                f"{stage.name}: the worker of part {part.name} died; it is made again", file=sys.stderr
                            )
                            suspects.append(part)
                            continue
                        failures[part.name] = f"its worker died {MAX_DEATHS} times (out of memory, or killed)"
                    elif isinstance(outcome, OSError | DiskFull):
                        if isinstance(outcome, DiskFull):
                            raise outcome
                        raise_if_full(outcome, stage.folder)
                        failures[part.name] = f"{type(outcome).__name__}: {outcome}"
                    elif isinstance(outcome, UserError):
                        raise outcome
                    elif isinstance(outcome, BaseException):
                        failures[part.name] = (
                            str(outcome)
                            if isinstance(outcome, ToolkitError)
                            else f"{type(outcome).__name__}: {outcome}"
                        )
                    bar.advance()
            waiting, alone = suspects, True
    if failures:
        shown = "; ".join(f"part {name}: {why}" for name, why in sorted(failures.items())[:5])
        raise StageFailed(
            f"{stage.name}: {len(failures)} of {len(stage.parts)} parts failed, the others are complete. {shown}. "
            f"Details in {logs or 'the log'}; running the same command again makes only what is missing"
        )


def make_part(folder: Path, make: MakePart, part: PartSpec, fingerprint: str) -> dict[str, Any]:
    """Make and publish one part (runs inside a worker). Returns volatile facts for the log."""
    start = time.perf_counter()
    attempt = folder / "attempts" / f"{part.name}.{uuid.uuid4().hex}"
    try:
        attempt.mkdir(parents=True)
        counts = make(part, attempt)
        boundary("attempt", part.name)
        _publish_part(folder, attempt, part, fingerprint, counts)
    except OSError as error:
        raise_if_full(error, folder)
        raise
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return {"seconds": round(time.perf_counter() - start, 3), "pid": os.getpid(), "host": platform.node()}


def _publish_part(folder: Path, attempt: Path, part: PartSpec, fingerprint: str, counts: Mapping[str, int]) -> None:
    files = {}
    for path in sorted(p for p in attempt.rglob("*") if p.is_file()):
        relative = path.relative_to(attempt).as_posix()
        fsync_path(path)
        if not is_volatile(relative):
            files[relative] = file_facts(path)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        fsync_path(target.parent)
        boundary(relative.split("/")[0] if "/" in relative else "part", part.name)
    boundary("receipt", part.name)
    publish_json(
        folder / "parts" / f"{part.name}.json",
        Receipt(part.name, fingerprint, files, dict(sorted(counts.items()))).to_json(),
    )


def _refuse_mixed_settings(artifact: Artifact, plan: Plan) -> None:
    old = artifact.plan_json()
    if old is None or not any((artifact.folder / "parts").glob("*.json")):
        return
    if old["stage"] != plan.stage:
        raise UserError(f"{artifact.folder} belongs to stage {old['stage']}, not {plan.stage}; choose another run.name")
    before, now = flatten(old["settings"]), flatten(plan.settings)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"{artifact.folder} was made with {key} = {before.get(key)!r}, this config says {now.get(key)!r}"
            f"{f' ({len(changed) - 1} more settings differ)' if len(changed) > 1 else ''}; "
            f"use another run.name, or delete {artifact.folder} to start over"
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, so that a difference can be named."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _refuse_stale(artifact: Artifact, fingerprints: Mapping[str, str]) -> None:
    for path in sorted((artifact.folder / "parts").glob("*.json")):
        if fingerprints.get(path.stem) != Receipt.read(path).fingerprint:
            raise UserError(
                f"{artifact.folder} was made from inputs that have changed since, or by an older version of this stage; "
                f"delete {artifact.folder} to make it again"
            )


def _discard_stale(artifact: Artifact, fingerprints: Mapping[str, str]) -> None:
    """Remove receipts (first) and files of parts that are not what the plan asks for now, and leftovers of killed attempts."""
    shutil.rmtree(artifact.folder / "attempts", ignore_errors=True)
    for temporary in artifact.folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)
    for path in sorted((artifact.folder / "parts").glob("*.json")):
        receipt = Receipt.read(path)
        if lost_file(artifact.folder, receipt.files) is None and fingerprints.get(receipt.name) == receipt.fingerprint:
            continue
        artifact.manifest_path.unlink(missing_ok=True)
        path.unlink()
        for relative in receipt.files:
            (artifact.folder / relative).unlink(missing_ok=True)


def lost_file(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The first of a receipt's or a manifest's files that is missing or of another size than recorded; None when all stand."""
    for relative, facts in files.items():
        path = folder / relative
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return path
    return None


def _publish_manifest(stage: Stage, plan: Plan, artifact: Artifact) -> None:
    receipts = [receipt for part in plan.parts if (receipt := artifact.standing(part.name))]
    lost = sorted({part.name for part in plan.parts} - {receipt.name for receipt in receipts})
    if lost:
        raise StageFailed(
            f"{stage.name}: the workers report success, but {len(lost)} receipts are not in {stage.folder}/parts, "
            f"e.g. {lost[0]}.json; do the workers see this folder under the same path?"
        )
    whole = list(stage.finish(stage.folder, receipts)) if stage.finish else []
    files = {relative: file_facts(stage.folder / relative) for relative in sorted(whole)}
    boundary("manifest")
    publish_json(stage.folder / "provenance.json", provenance())
    publish_json(
        artifact.manifest_path,
        {
            "stage": stage.name, "stage_version": stage.version, "settings": plan.settings, "files": files,
            "parts": [receipt.to_json() for receipt in receipts], "counts": sum_counts(receipts),
        },
    )  # fmt: skip


def provenance() -> dict[str, Any]:
    """Who made this, with what, when: recorded, never hashed."""
    libraries = {}
    for name in RECORDED_LIBRARIES:
        try:
            libraries[name] = installed_version(name)
        except ImportError:
            continue
    return {
        "libraries": libraries, "python": platform.python_version(), "host": platform.node(), "machine": platform.machine(),
        "command": " ".join(sys.argv), "commit": git_commit(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it, or "unknown"."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        here = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@contextmanager
def locked(folder: Path) -> Any:
    """One driver per artifact; the kernel drops the lock when the process dies, however it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command is working on {folder}; wait for it, or stop it") from None
        yield


def _log(logs: Path | None, stage: str, part: str, outcome: Any) -> None:
    if logs is None:
        return
    line: dict[str, Any] = {"time": time.time(), "part": part}
    if isinstance(outcome, BaseException):
        line["error"] = "".join(traceback.format_exception(outcome))
    else:
        line |= outcome
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
