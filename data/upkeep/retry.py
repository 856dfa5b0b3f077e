"""Retrying what failed: the same keys once more, in new shards behind the others. Nothing that stands is touched."""

from collections.abc import Sequence

from data.dataset.build import build_dataset, refuse_changed_source
from data.dataset.origin import describe, is_resharded, require_written
from data.dataset.plan import read_plan
from data.dataset.retries import freeze_retry, waiting_retries
from data.dataset.settings import DatasetSettings
from data.fetch.reasons import TRANSIENT, Reason
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.terminal import counted
from data.views.removal import removed_keys

# Nothing was asked for these, and asking again would not change that.
NEVER_ASKED = frozenset({Reason.NO_CAPTION, Reason.EXCLUDED_URL, Reason.EXCLUDED_DOMAIN})


def reasons_to_retry(names: Sequence[str]) -> frozenset[Reason]:
    """Reasons by name; the transient ones when none is named. Raises UserError for an unknown one, and where asking is no use."""
    if not names:
        return TRANSIENT
    allowed = sorted(reason for reason in Reason if reason not in NEVER_ASKED)
    for name in names:
        if name not in allowed:
            why = "was never asked for" if name in set(Reason) else "is not a reason"
            raise UserError(f"--reason {name} {why}; reasons that can be retried: {', '.join(allowed)}")
    return frozenset(Reason(name) for name in names)


def retry(run: Run, reasons: frozenset[Reason], executor: Executor) -> str:
    """Finish what was begun, or else freeze and download a retry; returns what was done, in a line.

    A retry that was killed is finished before another may begin: that is how the same command, repeated, ends in the same bytes.
    """
    dataset = run.dataset
    if dataset.plan_json() is None:
        dataset.require("make dataset")
    if is_resharded(dataset):
        return describe(require_written(dataset))
    refuse_changed_source(run)
    if not dataset.is_complete() or waiting_retries(dataset):
        build_dataset(run, executor)
        return "finished what an earlier command had begun; run retry-failed again to retry what still failed"
    new = freeze_retry(dataset, reasons, run.config[DatasetSettings].samples_per_shard, removed_keys(run))
    if not new:
        return f"nothing to retry: no candidate failed with {', '.join(sorted(reasons))}"
    build_dataset(run, executor)
    counts = [dataset.receipt(retry.name) for retry in new]
    stored = sum(receipt.counts["stored_samples"] for receipt in counts if receipt is not None)
    rows = sum(len(read_plan(dataset.folder, int(retry.name), ["key"])) for retry in new)
    return f"retried {counted(rows, 'sample')} in {counted(len(new), 'new shard')}, stored now: {stored:,}"
