"""The one training loop: batches, noise and schedule are pure functions of the step, so that resuming is exact."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.pipeline.errors import Code, UserError
from data.pipeline.progress import progress
from training.loop.ema import Ema
from training.loop.feed import Feed
from training.loop.precision import computing
from training.loop.schedule import learning_rate
from training.loop.state import LogRow, load_state, parameter_groups, save_state
from training.loop.task import B, Task
from training.seeds import derived_seed, seeded
from training.tables import OptimiserSettings


class Trainer(Generic[B]):
    """Trains `task.network` in place and its average beside it, keeping its working state in `folder`.

    Raises UserError where there is nothing to train on, or where the batch does not divide evenly among processes and slices.
    """

    def __init__(
        self, task: Task[B], settings: OptimiserSettings, seed: int, folder: Path, checkpoint_seconds: float
    ) -> None:
        if task.size == 0:
            raise UserError(
                f"{task.name}: there is nothing to train on: the view keeps no pair of the split train", Code.EMPTY
            )
        self.task, self.settings, self.seed, self.folder = task, settings, seed, folder
        self.checkpoint_seconds = checkpoint_seconds
        # Autocast is ours: accelerate's is one for the whole process. Without a GPU it joins a launcher's processes only when told so.
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if settings.batch % (ranks * settings.accumulation):
            raise UserError(
                f"{task.name}: optimiser.batch = {settings.batch} does not divide among {ranks} processes with accumulation = "
                f"{settings.accumulation}; make it a multiple of {ranks * settings.accumulation}"
            )
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
        self.feed: Feed[B] = Feed(
            task.order, task.size, task.fetch, settings.batch, rank, ranks, settings.accumulation, steps=settings.steps
        )

    def run(self) -> tuple[nn.Module, list[LogRow]]:
        """Train to the last step. Returns the averaged network and the log."""
        with self.feed:
            self._run()
        return self.ema.module, self.done.log

    def _run(self) -> None:
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

    def update(self, step: int) -> float:
        """One update of weights and average; returns the batch's mean loss."""
        settings, accelerator = self.settings, self.accelerator
        self.model.train()
        for group in self.prepared.param_groups:
            group["lr"] = learning_rate(step, settings)
        slices, total = self.feed.take(step), 0.0
        for i, batch in enumerate(slices):
            last = i + 1 == len(slices)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.loss(batch, step, i)
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

    def loss(self, batch: B, step: int, index: int) -> Tensor:
        """Loss of one slice. Noise and dropout depend on (seed, step, slice, process) alone."""
        parts = ("train", self.seed, step, index, self.accelerator.process_index)
        with seeded(*parts, device=self.device), computing(self.settings.precision, self.device):
            generator = torch.Generator().manual_seed(derived_seed("noise", *parts))
            return self.task.loss(self.model, batch, generator, self.device)

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
        """The first process saves for all, and by its own clock: nobody waits for the others here, whose clocks differ."""
        if self.accelerator.is_main_process:
            save_state(self.folder, self.network, self.ema, self.optimiser, self.done)


def final_numbers(log: Sequence[LogRow]) -> dict[str, float]:
    """The last value of every name in a log."""
    return {name: value for _, name, value in log}
