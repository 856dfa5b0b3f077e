"""The dataset stage: plan -> download -> shards and ledger, one shard a part, then the shards of frozen retries."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.dataset.breaker import Breaker
from data.dataset.download import make_shard
from data.dataset.ledger import dropped_counts, read_ledger
from data.dataset.origin import is_resharded
from data.dataset.plan import PLAN_FILE, SOURCE_FILE, FrozenPlan, freeze_plan
from data.dataset.retries import RETRIES_FILE, frozen_retries
from data.dataset.settings import DatasetSettings
from data.fetch.reasons import Reason
from data.fetch.settings import HOW_TO_ASK, FetchSettings
from data.pipeline.artifacts import Artifact, PartSpec, Receipt
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from data.reports.card import write_card
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
    with source.serving() as payload:
        if payload["kind"] == "web" and settings.fetch.contact is None:
            print(
                "warning: dataset.fetch.contact is not set: an address in the user agent lets site owners ask rather than block",
                file=sys.stderr,
            )
        parts = dataset_parts(run.dataset, plan, settings, payload)
        finish, shaped = finish_with(settings), shaping(settings, run.seed)
        stage = Stage("dataset", STAGE_VERSION, folder, shaped, parts, make_shard, finish, "shards", precious=True)
        return run_stage(stage, WithBreaker(executor, run.dataset, settings.fetch), run.logs)


def shaping(settings: DatasetSettings, seed: int) -> dict[str, Any]:
    """The settings that shape the dataset's bytes. Paths of inputs are not among them: what is in the files is, in `source.json`."""
    files: Any = {"folder": True, "table": True, "coco": True, "webdataset": True}
    files["exclude"] = {"urls", "domains", "sha256", "phash"}
    return settings.model_dump(mode="json", exclude={"fetch": set(HOW_TO_ASK), **files}) | {"seed": seed}


def dataset_parts(
    dataset: Artifact, plan: FrozenPlan, settings: DatasetSettings, source: Mapping[str, Any]
) -> list[PartSpec]:
    """Planned shards, then the shards of retries, which also know in which parts their keys failed before."""
    payload = {
        "dataset": str(dataset.folder), "source": dict(source), "fetch": settings.fetch.model_dump(mode="json"),
        "image": settings.image.model_dump(mode="json"), "exclude": _absolute(settings.exclude.model_dump(mode="json")),
    }  # fmt: skip
    names = [f"{shard:05d}" for shard in range(len(plan.shards))]
    parts = [PartSpec(n, {"plan": digest}, payload) for n, digest in zip(names, plan.shards, strict=True)]
    for retry in frozen_retries(dataset.folder):
        parts.append(PartSpec(retry.name, {"plan": retry.digest}, payload | {"earlier": list(retry.earlier)}))
    return parts


def _absolute(paths: dict[str, Any]) -> dict[str, Any]:
    """Workers may have another working directory."""
    return {name: str(Path(value).resolve()) if isinstance(value, str) else value for name, value in paths.items()}


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
            assert isinstance(label, PartSpec)
            if not isinstance(outcome, BaseException) and "earlier" not in label.payload:
                self._add(breaker, label.name)

    def _add(self, breaker: Breaker, part: str) -> None:
        for value in read_ledger(self.dataset, part, ["reason"])["reason"].to_pylist():
            reason = None if value is None else Reason(value)
            if reason not in BEFORE_ASKING:
                breaker.add(reason)


def finish_with(settings: DatasetSettings) -> Callable[[Path, list[Receipt]], list[str]]:
    """Whole-artifact files: the frozen plan, what it was made from, and retries. The card is of its day: no digest covers it."""

    def finish(folder: Path, receipts: list[Receipt]) -> list[str]:
        write_card(folder, receipts, settings.model_dump(mode="json"))
        retries = [f"retries/{retry.name}.parquet" for retry in frozen_retries(folder)]
        return [PLAN_FILE, SOURCE_FILE, *([RETRIES_FILE, *retries] if retries else [])]

    return finish


def require_stored(artifact: Artifact) -> None:
    """Raise UserError when nothing was stored, naming the commonest reason."""
    counts = artifact.manifest()["counts"]
    if counts.get("stored_samples", 0):
        return
    dropped = dropped_counts(counts, "samples")
    worst = max(dropped, key=lambda name: dropped[name])
    raise UserError(
        f"no image was stored: {dropped[worst]} of {counts['planned_samples']} were dropped as {worst}; see `python -m data funnel`"
    )
