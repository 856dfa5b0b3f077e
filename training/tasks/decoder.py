"""Training the decoder and its GLIDE twin: the same network, pixels, order and steps; only the conditions differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact, PartSpec
from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.reading.reader import EmbeddingReader, PairBatch
from training.checkpoints import run_of, train_model, write_model
from training.diffusion.losses import loss_by_bucket, losses
from training.diffusion.process import Process
from training.loop.pixels import PixelStore, to_unit
from training.loop.seeds import derived_seed, seeded
from training.loop.trainer import Trainer
from training.networks.conditions import ClipShape, DecoderCondition
from training.networks.unet import Decoder
from training.settings import DecoderSettings
from training.tasks.prior import spread


class DecoderTask:
    """Predict the noise process's target for pixels, given z_i and caption (decoder) or the caption alone (GLIDE)."""

    def __init__(
        self, kind: Literal["decoder", "glide"], settings: DecoderSettings, clip: ClipShape, clip_model: Any,
        train: EmbeddingReader, val: EmbeddingReader, pixels: PixelStore, seed: int,
    ) -> None:  # fmt: skip
        self.name, self.settings, self.seed = kind, settings, seed
        self.train, self.val, self.pixels, self.size = train, val, pixels, len(train)
        self.process = Process(settings.diffusion)
        with seeded("init", seed, kind):
            self.network = Decoder(settings.architecture, clip, use_clip=kind == "decoder")
        if settings.architecture.text.start == "clip":
            self.network.text_encoder.copy_clip(clip_model)

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self.train.order(self.seed, epoch)

    def loss(
        self, model: nn.Module, items: NDArray[np.int64], generator: torch.Generator, device: torch.device
    ) -> Tensor:
        drop_caption, drop_clip = self.draw_drops(len(items), generator)
        return self._losses(model, self.train.fetch(items), drop_caption, drop_clip, generator, device)[0].mean()

    def draw_drops(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Independent masks (caption, z_i), bool (n,); at 50 % and 10 %, the pairs keep both, z_i alone, the caption alone or
        nothing in 45, 45, 5 and 5 % of the cases."""
        glide = self.name == "glide"
        rate = self.settings.drop_caption_glide if glide else self.settings.drop_caption
        drop_caption = torch.rand(n, generator=generator) < rate
        return drop_caption, torch.rand(n, generator=generator) < (1.0 if glide else self.settings.drop_clip)

    def _losses(
        self, model: nn.Module, pairs: PairBatch, drop_caption: Tensor, drop_clip: Tensor,
        generator: torch.Generator, device: torch.device,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss of each pair at a random timestep, and the timesteps."""
        x0 = to_unit(self.pixels.fetch(pairs.keys)).to(device)
        t = self.process.draw_t(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        cond = DecoderCondition(
            pairs.token_ids.to(device), pairs.image_embedding.to(device), drop_caption.to(device), drop_clip.to(device)
        )
        output = model(self.process.q_sample(x0, t, eps), t.to(device), cond)
        return losses(output, self.process.target(x0, t, eps)), t

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss by quarter of the timesteps on held-out pairs, all conditions given, and overall with every condition dropped."""
        pairs = self.val.fetch(spread(len(self.val), self.settings.validation_samples))
        keep = torch.zeros(len(pairs.keys), dtype=torch.bool)
        found: dict[str, float] = {}
        for name, drop in (("", keep), ("null_", ~keep)):
            generator = torch.Generator().manual_seed(derived_seed("validate", self.seed))
            loss, t = self._losses(network, pairs, drop, drop, generator, device)
            found |= {f"{name}{key}": value for key, value in loss_by_bucket(loss, t, self.process.T).items()}
        return {key: value for key, value in found.items() if not key.startswith("null_loss_")}


def train_decoder(run: Run, kind: Literal["decoder", "glide"]) -> Artifact:
    """`models/decoder` or `models/glide`, from pixels, the cache and the view `train`."""
    dataset, embeddings = run.dataset.require("make dataset"), run.embeddings.require("make embeddings")
    view = run.view("train").require("make embeddings")
    inputs = {
        "dataset": dataset.digest(), "embeddings": embeddings.digest(), "view": view.digest(), "clip": load_clip(run).identity,
    }  # fmt: skip
    make = make_decoder if kind == "decoder" else make_glide
    return train_model(run, run.model(kind), kind, run.config[DecoderSettings], inputs, make)


def make_decoder(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    return _make("decoder", spec, attempt)


def make_glide(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    return _make("glide", spec, attempt)


def _make(kind: Literal["decoder", "glide"], spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    run = run_of(spec)
    settings, clip = run.config[DecoderSettings], load_clip(run)
    shape = ClipShape(clip.embed_dim, clip.context_length, clip.vocab_size)
    train, val = (
        EmbeddingReader(run.embeddings, run.view("train"), split, clip.identity) for split in ("train", "val")
    )
    pixels = PixelStore(
        ShardReader(run.dataset), [*train.keys.tolist(), *val.keys.tolist()], settings.architecture.side
    )
    task = DecoderTask(kind, settings, shape, clip.model, train, val, pixels, run.seed)
    trainer = Trainer(task, settings.optimiser, run.seed, Path(spec.payload["work"]), settings.checkpoint_seconds)
    write_model(
        attempt, kind, trainer, settings.model_dump(mode="json", include={"architecture", "diffusion"}), shape, spec
    )
    return {"pairs": len(train), "parameters": sum(p.numel() for p in task.network.parameters())}
