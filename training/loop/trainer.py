"""The one training loop: batches, noise and schedule are pure functions of the step, so that resuming is exact."""

import contextlib
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.pipeline.errors import UserError
from data.pipeline.progress import progress
from training.loop.ema import Ema
from training.loop.precision import computing
from training.loop.schedule import learning_rate
from training.loop.seeds import derived_seed, seeded
from training.loop.state import load_state, parameter_groups, save_state
from training.settings import OptimiserSettings
from training.tasks.task import Task

LogRow = tuple[int, str, float]


class Stream:
    """The endless sequence of items: epoch after epoch, each in its own order. Any stretch of it can be asked for."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        taken = []
        while count > 0:
            epoch, offset = divmod(start, self._task.size)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._task.order(epoch)
            taken.append(self._order[offset : offset + count])
            start, count = start + len(taken[-1]), count - len(taken[-1])
        return np.concatenate(taken)


class Trainer:
    """Trains `task.network` in place and its average beside it, keeping its working state in `folder`."""

    def __init__(
        self, task: Task, settings: OptimiserSettings, seed: int, folder: Path, checkpoint_seconds: float
    ) -> None:
        from accelerate import Accelerator

        if task.size == 0:
            raise UserError(f"{task.name}: there is nothing to train on: the view keeps no pair of the split train")
        self.task, self.settings, self.seed, self.folder = task, settings, seed, folder
        self.checkpoint_seconds = checkpoint_seconds
        self.accelerator = Accelerator(
            mixed_precision="no"
        )  # autocast is ours: accelerate's is one for the whole process
        self.device = self.accelerator.device
        self.network = task.network.to(self.device)
        optimiser = torch.optim.AdamW(
            parameter_groups(self.network, settings.weight_decay), lr=settings.lr,
            betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True,
        )  # fmt: skip
        self.ema = Ema(self.network, settings.ema)
        self.done = load_state(folder, self.network, self.ema, optimiser)
        self.optimiser = optimiser
        self.model, self.prepared = self.accelerator.prepare(self.network, optimiser)
        self.stream = Stream(task)

    def run(self) -> tuple[nn.Module, list[LogRow]]:
        """Train to the last step. Returns the averaged network and the log."""
        saved, settings = time.monotonic(), self.settings
        with progress(self.task.name, settings.steps, "steps") as bar:
            bar.advance(self.done.step)
            while self.done.step < settings.steps:
                loss = self.update(self.done.step)
                self.done.step += 1
                self.record(loss)
                bar.advance(note=f"loss {loss:.4f}")
                last = self.done.step == settings.steps
                if last or (settings.validate_every and self.done.step % settings.validate_every == 0):
                    self.validate()
                if last or time.monotonic() - saved > self.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        return self.ema.module, self.done.log

    def update(self, step: int) -> float:
        """One update of weights and average; returns the batch's mean loss."""
        settings, accelerator = self.settings, self.accelerator
        self.model.train()
        for group in self.prepared.param_groups:
            group["lr"] = learning_rate(step, settings)
        slices, total = self.slices(step), 0.0
        for i, items in enumerate(slices):
            last = i + 1 == len(slices)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.loss(items, step, i)
                accelerator.backward(loss / len(slices))
            total += loss.item() / len(slices)
        if not math.isfinite(total):
            raise UserError(
                f"{self.task.name}: the loss of step {step} is {total}; lower optimiser.lr (now {settings.lr}) or clip_norm"
            )
        accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        self.ema.update(self.network, step)
        return total

    def loss(self, items: NDArray[np.int64], step: int, index: int) -> Tensor:
        """Loss of one slice. Noise and dropout depend on (seed, step, slice, process) alone."""
        parts = ("train", self.seed, step, index, self.accelerator.process_index)
        with seeded(*parts, device=self.device), computing(self.settings.precision, self.device):
            generator = torch.Generator().manual_seed(derived_seed("noise", *parts))
            return self.task.loss(self.model, items, generator, self.device)

    def slices(self, step: int) -> list[NDArray[np.int64]]:
        """This process's share of the step's batch, cut for accumulation."""
        batch = self.stream.take(step * self.settings.batch, self.settings.batch)
        mine = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        return np.array_split(mine, self.settings.accumulation)

    def record(self, loss: float) -> None:
        done = self.done
        done.loss_sum, done.loss_count = done.loss_sum + loss, done.loss_count + 1
        if done.step % self.settings.log_every == 0 or done.step == self.settings.steps:
            done.log.append((done.step, "loss", done.loss_sum / done.loss_count))
            done.loss_sum, done.loss_count = 0.0, 0

    def validate(self) -> None:
        """Validation numbers of the averaged network, under `val/`."""
        with torch.inference_mode(), computing(self.settings.precision, self.device):
            found = self.task.validate(self.ema.module, self.device)
        self.done.log += [(self.done.step, f"val/{name}", value) for name, value in sorted(found.items())]

    def save(self) -> None:
        if self.accelerator.is_main_process:
            save_state(self.folder, self.network, self.ema, self.optimiser, self.done)
        self.accelerator.wait_for_everyone()


def final_numbers(log: list[LogRow]) -> dict[str, float]:
    """The last value of every name in a log."""
    return {name: value for _, name, value in log}
