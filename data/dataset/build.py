"""The dataset stage: plan -> download -> shards and ledger, one shard a part, then the shards of frozen retries."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from data.dataset.breaker import Breaker
from data.dataset.download import ShardWork, make_shard
from data.dataset.ledger import dropped_counts, read_ledger
from data.dataset.origin import is_resharded
from data.dataset.plan import PLAN_FILE, SOURCE_FILE, FrozenPlan, freeze_plan
from data.dataset.retries import RETRIES_FILE, frozen_retries
from data.dataset.settings import DatasetSettings
from data.fetch.reasons import Reason
from data.fetch.settings import HOW_TO_ASK, FetchSettings
from data.pipeline.artifacts import Artifact, Receipt
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.sources.candidates import Served
from data.sources.settings import ExcludeSettings
from data.sources.source import open_source

STAGE_VERSION = 2
# Decided before anything is asked for: they say nothing about how downloads go.
BEFORE_ASKING = frozenset({Reason.NO_CAPTION, Reason.EXCLUDED_URL, Reason.EXCLUDED_DOMAIN})
T = TypeVar("T")


def build_dataset(run: Run, executor: Executor) -> Artifact:
    """Download what is missing of the planned shards and of frozen retries, and publish the dataset.

    Raises UserError when the source changed since the plan was frozen, and (SuccessCollapsed) when hardly any download succeeds.
    A resharded dataset is handed back as it stands.
    """
    settings = run.config[DatasetSettings]
    folder = run.dataset.folder
    if is_resharded(run.dataset):
        return run.dataset.require(f"python -m data reshard --to {run.folder.name}")
    source = open_source(settings, run.seed)
    plan = freeze_plan(folder, source, settings, run.seed)
    with source.serving() as served:
        if served.kind == "web" and settings.fetch.contact is None:
            print(
                "warning: dataset.fetch.contact is not set: an address in the user agent lets site owners ask rather than block",
                file=sys.stderr,
            )
        parts, shaped = dataset_parts(run.dataset, plan, settings, served), shaping(settings, run.seed)
        stage = Stage("dataset", STAGE_VERSION, folder, shaped, parts, make_shard, finish, "shards", precious=True)
        return run_stage(stage, WithBreaker(executor, run.dataset, settings.fetch), run.logs)


def refuse_changed_source(run: Run) -> None:
    """Raise UserError when the input cannot be read, or differs from the one whose plan finished parts were made from."""
    folder, settings = run.dataset.folder, run.config[DatasetSettings]
    # With finished parts, freezing only compares.
    if any((folder / "parts").glob("*.json")) and not is_resharded(run.dataset):
        freeze_plan(folder, open_source(settings, run.seed), settings, run.seed)


def shaping(settings: DatasetSettings, seed: int) -> dict[str, Any]:
    """The settings that shape the dataset's bytes. Paths of inputs are not among them: what is in the files is, in `source.json`."""
    files: Any = {"folder": True, "table": True, "coco": True, "webdataset": True}
    files["exclude"] = {"urls", "domains", "sha256", "phash"}
    return settings.model_dump(mode="json", exclude={"fetch": set(HOW_TO_ASK), **files}) | {"seed": seed}


def dataset_parts(dataset: Artifact, plan: FrozenPlan, settings: DatasetSettings, served: Served) -> list[PartSpec]:
    """Planned shards, then the shards of retries, which also know in which parts their keys failed before."""
    work = ShardWork(dataset.folder, served, settings.fetch, settings.image, _absolute(settings.exclude))
    planned = [(f"{shard:05d}", digest, work) for shard, digest in enumerate(plan.shards)]
    retries = [(r.name, r.digest, replace(work, earlier=r.earlier)) for r in frozen_retries(dataset.folder)]
    return [PartSpec(name, (Input(f"@source:{name}", digest),), own) for name, digest, own in planned + retries]


def _absolute(lists: ExcludeSettings) -> ExcludeSettings:
    """Workers may have another working directory."""
    paths = {name: getattr(lists, name) for name in ("urls", "domains", "sha256", "phash")}
    return lists.model_copy(
        update={name: str(Path(path).resolve()) for name, path in paths.items() if path is not None}
    )


@dataclass
class WithBreaker:
    """An executor that stops the run when the downloads of finished shards, taken together, hardly succeed any more.

    Retries do not count: they hold what failed before."""

    inner: Executor
    dataset: Artifact
    settings: FetchSettings

    def run(
        self, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], labels: Sequence[T]
    ) -> Iterator[tuple[T, Any]]:
        breaker = Breaker(self.settings.breaker_window, self.settings.breaker_min_success)
        for label, outcome in self.inner.run(name, function, calls, labels):
            yield label, outcome
            assert isinstance(label, tuple)
            part = label[1]
            if not isinstance(outcome, BaseException) and part.work.earlier is None:
                self._add(breaker, part.name)

    def _add(self, breaker: Breaker, part: str) -> None:
        for value in read_ledger(self.dataset, part, ["reason"])["reason"].to_pylist():
            reason = None if value is None else Reason(value)
            if reason not in BEFORE_ASKING:
                breaker.add(reason)


def finish(folder: Path, receipts: list[Receipt]) -> list[str]:
    """Whole-artifact files: the frozen plan, what it was made from, and retries."""
    retries = [f"retries/{retry.name}.parquet" for retry in frozen_retries(folder)]
    return [PLAN_FILE, SOURCE_FILE, *([RETRIES_FILE, *retries] if retries else [])]


def require_stored(artifact: Artifact) -> None:
    """Raise UserError when nothing was stored, naming the commonest reason."""
    counts = artifact.manifest()["counts"]
    if counts.get("stored_samples", 0):
        return
    dropped = dropped_counts(counts, "samples")
    worst = max(dropped, key=lambda name: dropped[name])
    raise UserError(
        f"no image was stored: {dropped[worst]} of {counts['planned_samples']} were dropped as {worst}; see `python -m data funnel`",
        Code.NOTHING_STORED,
    )
