"""A training as a stage of one part: what travels to the worker, and how it is trained there."""

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data.pipeline.artifacts import Receipt, fingerprint
from data.pipeline.errors import UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import locked
from data.pipeline.stage import Input, MakePart, PartSpec, Stage
from embed.clip.model import ClipSource
from embed.encoding.devices import choose_device
from embed.encoding.threads import one_thread
from training.loop.precision import plain_attention
from training.loop.ranks import local_rank, rank_and_ranks
from training.settings import TrainingSection

_alone = threading.Lock()  # global generators and the number of threads belong to one training at a time


@dataclass(frozen=True)
class Work:
    """What a training's part travels with: the run, the training's name, the folder of its working state, and where the CLIP is that
    it trains beside (None: CLIP's own training)."""

    run: Run
    name: str
    state: Path
    clip: ClipSource | None = None


def references(run: Run, *names: str) -> tuple[Input, ...]:
    """References to whole artifacts of a run. Raises UserError for one that is missing or stale."""
    lineage = Lineage(run)
    return tuple(Input(name, lineage.require(name).digest()) for name in names)


def training_stage(
    run: Run, name: str, folder: Path, version: int, settings: TrainingSection, inputs: Sequence[Input], make: MakePart,
    clip: ClipSource | None = None,
) -> Stage:  # fmt: skip
    """A training as a stage of one part that is made from `inputs`. A killed one goes on from its working state in the run's scratch,
    under as many processes as before (another number draws other noise and so has a state of its own); a finished one is kept, and
    refused (not replaced) when its settings or inputs have changed."""
    shaping = {"seed": run.seed, name: settings.shaping()}
    digests = {one.of: one.digest for one in inputs}
    state = run.scratch / "train" / name / fingerprint([version, shaping, digests, rank_and_ranks()[1]])[:16]
    part = PartSpec("model", tuple(inputs), Work(run, name, state, clip))
    return Stage(
        f"train-{name}", version, folder, shaping, [part], make, finish=partial(_drop_state, state), unit="models",
        precious=True,
    )  # fmt: skip


def _drop_state(state: Path, folder: Path, receipts: list[Receipt]) -> Sequence[str]:
    """The weights are published: what was kept in order to go on is of no more use."""
    shutil.rmtree(state, ignore_errors=True)
    return ()


@contextlib.contextmanager
def training_alone(state: Path) -> Iterator[torch.device]:
    """One training at a time in this process, on one thread and by one attention kernel, so that the bytes do not depend on where it
    runs; and one at a time anywhere that works in the folder `state`. Gives the device: a GPU that this process claims, or that a
    launcher of several processes deals out, where there is one. Raises UserError where another training holds the folder."""
    with _held(state), _alone, one_thread():
        device = _device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with plain_attention(device):
            yield device


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """The lock of a state folder; of a launcher's processes the first, which alone writes there, takes it for all."""
    with contextlib.ExitStack() as stack:
        if rank_and_ranks()[0] == 0:
            try:
                stack.enter_context(locked(state))
            except UserError as error:
                raise UserError(
                    f"this training still runs elsewhere (a worker of an earlier command?) and keeps its state in {state}; wait for "
                    "it, or stop that worker",
                    error.code,
                ) from None
        yield


def _device() -> torch.device:
    if rank_and_ranks()[1] == 1:
        return choose_device("auto")
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
