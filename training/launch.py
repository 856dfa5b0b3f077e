"""Where trainings run: in this process, side by side on workers, or each in all the processes of a launcher."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.pipeline.artifacts import Artifact
from data.pipeline.executors import InProcess, open_executor
from data.pipeline.run import Run
from data.pipeline.runner import lost_file, run_stage, run_stages
from data.pipeline.settings import ClusterSettings
from data.pipeline.stage import Stage
from embed.encoding.devices import gpus
from training.loop.ranks import rank_and_ranks


def train(run: Run, stage: Stage) -> Artifact:
    """One training, in this process, or in all of a launcher's processes. Raises as `run_stage`.

    Under a launcher the first process makes and publishes the artifact; the others train along, and what they write is thrown away.
    """
    rank, ranks = rank_and_ranks()
    if ranks == 1 or rank == 0:
        return run_stage(stage, InProcess(), run.logs)
    if not _part_is_made(stage):  # else the first process trains nothing either
        run.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{stage.name}-rank-{rank}-", dir=run.scratch) as attempt:
            stage.make(stage.parts[0], Path(attempt))
    return Artifact(stage.folder)


def train_together(run: Run, stages: Sequence[Stage]) -> list[Artifact]:
    """Independent trainings, side by side on the workers of the run's cluster, in the order given; with GPUs one on each. A single one
    that is missing runs in this process. Under a launcher one after the other. Raises as `run_stages`."""
    if rank_and_ranks()[1] > 1:
        return [train(run, stage) for stage in stages]
    cluster, here = run.config[ClusterSettings], len(gpus("auto"))
    resource = "GPU" if here or cluster.address is not None else None
    with open_executor(cluster, run.scratch, resource, here, at_least=2, bounded=False) as executor:
        return run_stages(stages, executor, run.logs)


def _part_is_made(stage: Stage) -> bool:
    """Whether the trained part is already published: just what the first process finds when it begins."""
    part = stage.parts[0]
    receipt = Artifact(stage.folder).receipt(part.name)
    if receipt is None or receipt.fingerprint != stage.plan.fingerprint_of(part):
        return False
    return lost_file(stage.folder, receipt.files) is None
