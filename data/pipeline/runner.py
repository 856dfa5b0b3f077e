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
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from data.pipeline.artifacts import (
    Artifact,
    Receipt,
    file_facts,
    fsync_path,
    is_volatile,
    lost_file,
    publish_json,
    raise_if_full,
    sum_counts,
)
from data.pipeline.config import flatten
from data.pipeline.errors import Code, DiskFull, StageFailed, ToolkitError, UserError
from data.pipeline.executors import MAX_DEATHS, Executor, WorkerDied
from data.pipeline.faults import boundary
from data.pipeline.memory import keep_freed_memory
from data.pipeline.progress import Bar, progress
from data.pipeline.provenance import provenance
from data.pipeline.stage import MakePart, PartSpec, Plan, Stage

Todo = tuple[Stage, PartSpec]  # a part that is to be made, with its stage


def run_stage(stage: Stage, executor: Executor, logs: Path | None = None) -> Artifact:
    """Make what is missing or stale, keep the rest, and publish the manifest.

    Raises UserError when finished parts were made with other settings, StageFailed when parts could not be made (the others
    are), DiskFull when the disk is full.
    """
    return run_stages([stage], executor, logs)[0]


def run_stages(stages: Sequence[Stage], executor: Executor, logs: Path | None = None) -> list[Artifact]:
    """The same for several stages that do not depend on each other: their parts are made side by side. Raises as `run_stage`, after
    everything that could be made is made."""
    with ExitStack() as locks:
        try:
            for stage in stages:
                locks.enter_context(locked(stage.folder))
            missing = [(stage, part) for stage in stages for part in _prepare(stage)]
            making = _Making(executor, logs, alone=len(stages) == 1)
            making.make(missing)
            made = [_complete(stage) for stage in stages if stage.folder not in making.failures]
            if making.refused is not None:
                raise making.refused
            if making.failures:
                raise making.failed(stages)
            return made
        except OSError as error:
            raise_if_full(error, stages[0].folder)
            raise


def is_current(stage: Stage) -> bool:
    """Whether the artifact is complete and just what the stage would make: then there is nothing to do."""
    artifact, plan = Artifact(stage.folder), stage.plan
    if not artifact.is_complete() or lost_file(stage.folder, artifact.manifest()["files"]):
        return False
    for part in plan.parts:
        receipt = artifact.receipt(part.name)
        if receipt is None or receipt.fingerprint != plan.fingerprint_of(part):
            return False
        if lost_file(stage.folder, receipt.files):
            return False
    return True


def _prepare(stage: Stage) -> list[PartSpec]:
    """Refuse what must not be mixed, discard what is stale, publish the plan. Returns the parts that are to be made."""
    artifact, plan = Artifact(stage.folder), stage.plan
    if stage.movable:
        _discard_other_settings(artifact, plan)
    _refuse_mixed_settings(artifact, plan)
    fingerprints = {part.name: plan.fingerprint_of(part) for part in plan.parts}
    if stage.precious:
        _refuse_stale(artifact, fingerprints)
    _discard_stale(artifact, fingerprints)
    if artifact.plan_json() != json.loads(json.dumps(plan.to_json())):
        publish_json(stage.folder / "plan.json", plan.to_json())
    boundary("plan")
    missing = [part for part in plan.parts if artifact.receipt(part.name) is None]
    if missing:
        artifact.manifest_path.unlink(missing_ok=True)
    return missing


def _complete(stage: Stage) -> Artifact:
    """Publish the manifest, which stands only where nothing was made and nothing of it was lost."""
    artifact = Artifact(stage.folder)
    if not artifact.is_complete() or lost_file(stage.folder, artifact.manifest()["files"]):
        _publish_manifest(stage, stage.plan, artifact)
    return artifact


@dataclass
class _Making:
    """One round of making parts; those whose worker died run again, alone, until the third death."""

    executor: Executor
    logs: Path | None
    deaths: Counter[tuple[Path, str]] = field(default_factory=Counter)
    failures: dict[Path, dict[str, str]] = field(default_factory=dict)  # folder of the stage -> part -> why
    refused: UserError | None = None  # the first, of one stage among several
    alone: bool = True

    def make(self, missing: list[Todo]) -> None:
        if not missing:
            return
        stages = list(dict.fromkeys(stage.name for stage, _ in missing))
        waiting, batches = missing, [missing]
        # A stage of one part shows what happens inside it, if anything (a training's steps).
        quiet = all(len(stage.parts) == 1 for stage, _ in missing)
        what = stages[0] if len(stages) == 1 else f"{stages[0]} and {len(stages) - 1} more"
        with progress(what, len(missing), missing[0][0].unit, quiet=quiet) as bar:
            while waiting:
                waiting = [suspect for batch in batches for suspect in self._run(batch, bar)]
                batches = [[suspect] for suspect in waiting]

    def _run(self, batch: list[Todo], bar: Bar) -> list[Todo]:
        """Make a batch; returns the parts whose worker died."""
        calls = [(stage.folder, stage.make, part, stage.plan.fingerprint_of(part)) for stage, part in batch]
        suspects = []
        names = ", ".join(dict.fromkeys(stage.name for stage, _ in batch))
        for todo, outcome in self.executor.run(names, make_part, calls, batch):
            stage, part = todo
            _log(self.logs, stage.name, part.name, outcome)
            if isinstance(outcome, WorkerDied):
                self.deaths[stage.folder, part.name] += 1
                if self.deaths[stage.folder, part.name] < MAX_DEATHS:
                    print(f"{stage.name}: the worker of part {part.name} died; it is made again", file=sys.stderr)
                    suspects.append(todo)
                    continue
            if isinstance(outcome, BaseException):
                self._failed_part(stage, part, outcome)
            bar.advance()
        return suspects

    def _failed_part(self, stage: Stage, part: PartSpec, error: BaseException) -> None:
        """Note why a part failed. What concerns the whole run (a full disk, a user's mistake) is raised at once."""
        if isinstance(error, DiskFull) or (isinstance(error, UserError) and self.alone):
            raise error
        if isinstance(error, UserError):  # the other stages go on
            self.refused = self.refused or error
        if isinstance(error, OSError):
            raise_if_full(error, stage.folder)
        why = str(error) if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
        if isinstance(error, WorkerDied):
            why = f"its worker died {MAX_DEATHS} times (out of memory, or killed)"
        self.failures.setdefault(stage.folder, {})[part.name] = why

    def failed(self, stages: Sequence[Stage]) -> StageFailed:
        """What failed, in one line."""
        told = []
        for stage in stages:
            if failures := self.failures.get(stage.folder):
                shown = "; ".join(f"part {part}: {why}" for part, why in sorted(failures.items())[:5])
                told.append(
                    f"{stage.name}: {len(failures)} of {len(stage.parts)} parts failed, the others are complete. {shown}"
                )
        return StageFailed(
            f"{'. '.join(told)}. Details in {self.logs or 'the log'}; running the same command again makes only what is missing"
        )


def make_part(folder: Path, make: MakePart, part: PartSpec, fingerprint: str) -> dict[str, Any]:
    """Make and publish one part (runs inside a worker). Returns volatile facts for the log."""
    keep_freed_memory()
    start = time.perf_counter()
    attempt = folder / "attempts" / f"{part.name}.{uuid.uuid4().hex}"
    try:
        attempt.mkdir(parents=True)
        # The last bits of numpy's sums depend on the number of BLAS threads, which differs between a driver and a Dask worker.
        with threadpool_limits(1, user_api="blas"):
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
        raise UserError(
            f"{artifact.folder} belongs to stage {old['stage']}, not {plan.stage}; choose another run.name",
            Code.OTHER_CONFIG,
        )
    before, now = flatten(old["settings"]), flatten(plan.settings)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"{artifact.folder} was made with {key} = {before.get(key)!r}, this config says {now.get(key)!r}"
            f"{f' ({len(changed) - 1} more settings differ)' if len(changed) > 1 else ''}; "
            f"use another run.name, or delete {artifact.folder} to start over",
            Code.OTHER_CONFIG,
        )


def _discard_other_settings(artifact: Artifact, plan: Plan) -> None:
    """Thresholds move in seconds: parts that were made with others go, the manifest first, so that a kill leaves an artifact that is
    visibly incomplete. What was made from it stays, and is stale."""
    made = artifact.plan_json()
    if made is None or made["stage"] != plan.stage or made["settings"] == plan.settings:
        return
    artifact.manifest_path.unlink(missing_ok=True)
    for path in sorted((artifact.folder / "parts").glob("*.json")):
        for relative in Receipt.read(path).files:
            (artifact.folder / relative).unlink(missing_ok=True)
        path.unlink()


def _refuse_stale(artifact: Artifact, fingerprints: Mapping[str, str]) -> None:
    for path in sorted((artifact.folder / "parts").glob("*.json")):
        if fingerprints.get(path.stem) != Receipt.read(path).fingerprint:
            raise UserError(
                f"{artifact.folder} was made from inputs that have changed since, or by an older version of this stage; "
                f"delete {artifact.folder} to make it again",
                Code.STALE,
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


def _publish_manifest(stage: Stage, plan: Plan, artifact: Artifact) -> None:
    receipts = [receipt for part in plan.parts if (receipt := artifact.receipt(part.name))]
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


@contextmanager
def locked(folder: Path) -> Any:
    """One driver per artifact; the kernel drops the lock when the process dies, however it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command is working on {folder}; wait for it, or stop it", Code.BUSY) from None
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
