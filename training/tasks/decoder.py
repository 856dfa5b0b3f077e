"""Training the decoder and its GLIDE twin: the same network, pixels, order and steps; only the conditions differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.dataset.shards import ShardReader
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from data.pipeline.stage import Input, PartSpec, Stage
from embed.clip.model import Clip, ClipSource
from embed.reading.reader import EmbeddingReader
from training.checkpoints import write_model
from training.diffusion.losses import loss_by_bucket, losses
from training.diffusion.process import Process
from training.loop.pixels import Pixels, Share, to_unit
from training.loop.ranks import rank_and_ranks
from training.loop.trainer import Trainer
from training.networks.conditions import Captions, DecoderCondition
from training.networks.unet import Decoder
from training.seeds import derived_seed, seeded
from training.settings import DecoderSettings
from training.tasks.pairs import TrainingPairs, captions_in, described, read_pairs, spread
from training.tasks.part import Work, references, training_alone, training_stage

STAGE_VERSION = 2


@dataclass(frozen=True)
class DecoderBatch:
    """n pairs: pixels uint8 (n, 3, side, side), captions, z_i float32 (n, d) of unit length."""

    pixels: Tensor
    captions: Captions
    z_i: Tensor


class DecoderTask:
    """Predict the noise process's target for pixels, given z_i and caption (decoder) or the caption alone (GLIDE)."""

    def __init__(self, name: str, settings: DecoderSettings, pairs: TrainingPairs, pixels: Pixels, seed: int) -> None:
        self.name, self.settings, self.seed = name, settings, seed
        self.train, self.val, self.pixels, self.size = pairs.train, pairs.val, pixels, len(pairs.train)
        self.process = Process(settings.diffusion)
        with seeded("init", seed, name):
            self.network = Decoder(settings.architecture, pairs.shape, use_clip=name == "decoder")
        self.clip = pairs.clip if self.network.reads_states else None

    def order(self, epoch: int) -> NDArray[np.int64]:
        shard_by_shard = self.pixels.order(self.seed, epoch)
        return self.train.order(self.seed, epoch) if shard_by_shard is None else shard_by_shard

    def fetch(self, items: NDArray[np.int64]) -> DecoderBatch:
        return self._fetch(self.train, items)

    def _fetch(self, reader: EmbeddingReader, items: NDArray[np.int64]) -> DecoderBatch:
        pairs = reader.fetch(items)
        return DecoderBatch(self.pixels.fetch(pairs.keys), captions_in(pairs, self.clip), pairs.image_embedding)

    def loss(self, model: nn.Module, batch: DecoderBatch, generator: torch.Generator, device: torch.device) -> Tensor:
        drop_caption, drop_clip = self.draw_drops(len(batch.z_i), generator)
        return self._losses(model, batch, drop_caption, drop_clip, generator, device)[0].mean()

    def draw_drops(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Independent masks (caption, z_i), bool (n,); at 50 % and 10 %, the pairs keep both, z_i alone, the caption alone or
        nothing in 45, 45, 5 and 5 % of the cases."""
        glide = self.name == "glide"
        rate = self.settings.drop_caption_glide if glide else self.settings.drop_caption
        drop_caption = torch.rand(n, generator=generator) < rate
        return drop_caption, torch.rand(n, generator=generator) < (1.0 if glide else self.settings.drop_clip)

    def _losses(
        self, model: nn.Module, batch: DecoderBatch, drop_caption: Tensor, drop_clip: Tensor,
        generator: torch.Generator, device: torch.device,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss of each pair at a random timestep, and the timesteps."""
        x0 = to_unit(batch.pixels).to(device)
        t = self.process.draw_t(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        cond = DecoderCondition(
            batch.captions.to(device), batch.z_i.to(device), drop_caption.to(device), drop_clip.to(device)
        )
        output = model(self.process.q_sample(x0, t, eps), t.to(device), cond)
        return losses(output, self.process.target(x0, t, eps)), t

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss by quarter of the timesteps on held-out pairs, all conditions given, and overall with every condition dropped."""
        batch = self._fetch(self.val, spread(len(self.val), self.settings.validation_samples))
        keep = torch.zeros(len(batch.z_i), dtype=torch.bool)
        found: dict[str, float] = {}
        for name, drop in (("", keep), ("null_", ~keep)):
            generator = torch.Generator().manual_seed(derived_seed("validate", self.seed))
            loss, t = self._losses(network, batch, drop, drop, generator, device)
            found |= {f"{name}{key}": value for key, value in loss_by_bucket(loss, t, self.process.T).items()}
        return {key: value for key, value in found.items() if not key.startswith("null_loss_")}


def decoder_stage(run: Run) -> Stage:
    """`models/decoder`, from pixels, the cache and the view `train`. Raises UserError for what is missing or stale."""
    return _stage(run, "decoder")


def glide_stage(run: Run) -> Stage:
    """`models/glide`, likewise."""
    return _stage(run, "glide")


def _stage(run: Run, name: str) -> Stage:
    made = references(run, "dataset", "embeddings", "views/train")
    settings, source = run.config[DecoderSettings], ClipSource.of(run)
    clip = source.load()
    require_text_width(settings, clip)
    inputs = (*made, Input("@clip", clip.identity))
    return training_stage(run, name, run.model(name).folder, STAGE_VERSION, settings, inputs, make_decoder, source)


def require_text_width(settings: DecoderSettings, clip: Clip) -> None:
    """Raises UserError where the decoder is to read the states of a text tower of another width."""
    text = settings.architecture.text
    if text.start == "clip" and text.width != clip.text_width:
        raise UserError(
            f"decoder.architecture.text.start = 'clip' reads the CLIP's own text tower, whose width is {clip.text_width}; "
            f"decoder.architecture.text.width = {text.width}: set it to the CLIP's, or start = 'random'"
        )


def make_decoder(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    """Train the decoder or its twin, by `work.name`, and write the model's files into `attempt`."""
    work: Work = spec.work
    settings, seed = work.run.config[DecoderSettings], work.run.seed
    with training_alone(work.state) as device:
        pairs = read_pairs(work, device)
        with open_pixels(work.run, pairs, settings) as pixels:
            task = DecoderTask(work.name, settings, pairs, pixels, seed)
            average, log = Trainer(task, settings.optimiser, seed, work.state, settings.checkpoint_seconds).run()
        write_model(attempt, described(work.name, settings, pairs.shape, spec), average, log)
        return {"pairs": len(pairs.train), "parameters": sum(p.numel() for p in task.network.parameters())}


def open_pixels(run: Run, pairs: TrainingPairs, settings: DecoderSettings) -> Pixels:
    """The images of the pairs trained on, and of those that the validation looks at."""
    train, val = pairs.train, pairs.val
    validated = val.keys[spread(len(val), settings.validation_samples)].tolist()
    return Pixels(
        ShardReader(run.dataset), train.keys.tolist(), settings.architecture.side, also=validated,
        share=Share(settings.optimiser.batch, *rank_and_ranks()), beside=0 if train.in_memory else train.parts.row_bytes,
    )  # fmt: skip
