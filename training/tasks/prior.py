"""Training the diffusion prior: caption and z_t -> z_i, from the embedding cache alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from data.pipeline.run import Run
from data.pipeline.stage import Input, PartSpec, Stage
from embed.clip.model import ClipSource
from embed.reading.reader import EmbeddingReader, PairBatch
from training.checkpoints import Trained, write_model
from training.diffusion.losses import loss_by_bucket, losses
from training.diffusion.process import Process
from training.loop.trainer import Trainer
from training.networks.conditions import ClipShape, PriorCondition
from training.networks.prior import Prior
from training.sampling.prior import sample_prior
from training.seeds import derived_seed, seeded
from training.settings import PriorSettings
from training.tasks.pairs import captions_in, described, read_pairs, spread
from training.tasks.part import Work, references, training_alone, training_stage

STAGE_VERSION = 2
VALIDATION_STEPS = 16


class PriorTask:
    """Regress the scaled z_i from its noised self (x_0-prediction, MSE)."""

    name = "prior"

    def __init__(
        self, settings: PriorSettings, clip: ClipShape, train: EmbeddingReader, val: EmbeddingReader, seed: int
    ) -> None:
        self.settings, self.seed = settings, seed
        self.train, self.val, self.size = train, val, len(train)
        self.process = Process(settings.diffusion)
        with seeded("init", seed, self.name):
            self.network = Prior(settings.architecture, clip)

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self.train.order(self.seed, epoch)

    def fetch(self, items: NDArray[np.int64]) -> PairBatch:
        return self.train.fetch(items)

    def loss(self, model: nn.Module, batch: PairBatch, generator: torch.Generator, device: torch.device) -> Tensor:
        drop = torch.rand(len(batch.keys), generator=generator) < self.settings.drop
        return self._losses(model, batch, drop, generator, device)[0].mean()

    def _losses(
        self, model: nn.Module, pairs: PairBatch, drop: Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Loss of each pair at a random timestep, and the timesteps."""
        x0 = self.network.scale(pairs.image_embedding.to(device))
        t = self.process.draw_t(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        cond = PriorCondition(captions_in(pairs).to(device), pairs.text_embedding.to(device), drop.to(device))
        output = model(self.process.q_sample(x0, t, eps), t.to(device), cond)
        return losses(output, self.process.target(x0, t, eps)), t

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss by quarter of the timesteps, and cosines to the true z_i beside those of controls."""
        pairs = self.val.fetch(spread(len(self.val), self.settings.validation_samples))
        generator = torch.Generator().manual_seed(derived_seed("validate", self.seed))
        loss, t = self._losses(network, pairs, torch.zeros(len(pairs.keys), dtype=torch.bool), generator, device)
        trained = Trained("prior", network, self.process, self.settings.optimiser.precision, "", {})
        drawn = sample_prior(
            trained, captions_in(pairs), pairs.text_embedding, list(range(len(pairs.keys))), 1.0, VALIDATION_STEPS, 1
        )
        return loss_by_bucket(loss, t, self.process.T) | cosines(drawn, pairs, self.train.images()[1].mean(0))


def cosines(drawn: Tensor, pairs: PairBatch, mean: Tensor) -> dict[str, float]:
    """Mean cosine to the true z_i of the prior's draws and of what needs no prior: z_t, the mean embedding, another caption's draw."""
    truth = pairs.image_embedding
    # Half way round: the neighbouring row is often another caption of the same image.
    other = drawn.roll(len(drawn) // 2, 0)
    against = {
        "drawn": drawn,
        "text": pairs.text_embedding,
        "mean": mean.expand_as(truth),
        "shuffled": other,
    }
    return {
        f"cosine_{name}": cosine_similarity(z.double(), truth.double()).mean().item() for name, z in against.items()
    }


def prior_stage(run: Run) -> Stage:
    """`models/prior`, from the cache and the view `train`. Raises UserError for what is missing or stale."""
    made = references(run, "embeddings", "views/train")
    source = ClipSource.of(run)
    inputs = (*made, Input("@clip", source.load().identity))
    folder, settings = run.model("prior").folder, run.config[PriorSettings]
    return training_stage(run, "prior", folder, STAGE_VERSION, settings, inputs, make_prior, source)


def make_prior(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    """Train, and write the model's files into `attempt`."""
    work: Work = spec.work
    settings, seed = work.run.config[PriorSettings], work.run.seed
    with training_alone(work.state) as device:
        pairs = read_pairs(work, device)
        task = PriorTask(settings, pairs.shape, pairs.train, pairs.val, seed)
        average, log = Trainer(task, settings.optimiser, seed, work.state, settings.checkpoint_seconds).run()
        write_model(attempt, described(work.name, settings, pairs.shape, spec), average, log)
        return {"pairs": len(pairs.train), "parameters": sum(p.numel() for p in task.network.parameters())}
