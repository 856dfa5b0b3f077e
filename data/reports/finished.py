"""A dataset as far as it is: the shards that are finished, so that a run that stopped can be looked at before it goes on."""

from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Artifact, Receipt, sum_counts
from data.pipeline.errors import UserError
from data.pipeline.run import Run


class FinishedShards(Artifact):
    """The finished parts of a dataset that is not complete, with the faces of one that is."""

    def __init__(self, folder: Path, finished: list[Receipt], planned: int) -> None:
        super().__init__(folder)
        self.finished, self.planned = finished, planned

    def __str__(self) -> str:
        return f"dataset is not complete: {len(self.finished):,} of {self.planned:,} shards; `make dataset` goes on"

    def require(self, make: str) -> Artifact:
        return self

    def receipts(self) -> list[Receipt]:
        return self.finished

    def manifest(self) -> dict[str, Any]:
        return {"parts": [receipt.to_json() for receipt in self.finished], "counts": sum_counts(self.finished)}


def finished_dataset(run: Run) -> Artifact:
    """The dataset where it is complete, else its FinishedShards. Raises UserError where not even one shard is finished."""
    plan = run.dataset.plan_json()
    if run.dataset.is_complete() or plan is None:
        return run.dataset.require("make dataset")
    receipts = [receipt for part in plan["parts"] if (receipt := run.dataset.receipt(part["name"]))]
    if not receipts:
        raise UserError(
            f"{run.dataset.folder} is not complete: none of {len(plan['parts']):,} shards is finished yet; run `make dataset`"
        )
    return FinishedShards(run.dataset.folder, receipts, len(plan["parts"]))
