"""Training a small CLIP from scratch on the run's own images, for runs without a pretrained one.

It reads the view `base` (never a view made of its own scores) and is written in the format that `embed/clip/model.py` owns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.dataset.plan import read_plan
from data.dataset.shards import ShardReader
from data.pipeline.artifacts import canonical_json
from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from data.pipeline.stage import PartSpec, Stage
from data.views.reading import kept_pairs
from embed.clip.model import BPE_FILE, load_clip_folder, save_clip, shrink_bpe, tokenizer_for
from training.checkpoints import LOG, write_log
from training.loop.pixels import Pixels, Share
from training.loop.ranks import of_all_ranks, rank_and_ranks
from training.loop.state import LogRow
from training.loop.trainer import Trainer, final_numbers
from training.seeds import seeded
from training.settings import ClipTrainingSettings
from training.tables import ClipArchitecture
from training.tasks.part import Work, references, training_alone, training_stage

STAGE_VERSION = 1
MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021, section 2.5


@dataclass(frozen=True)
class CaptionedImages:
    """Distinct images of a split, in order of key, each with its kept captions."""

    keys: list[str]
    captions: list[list[str]]


def model_config(settings: ClipArchitecture, vocab_size: int) -> dict[str, Any]:
    """open_clip's model config."""
    vision: dict[str, Any] = {
        "image_size": settings.image_size,
        "width": settings.width,
        "head_width": settings.head_width,
    }
    if settings.patch is None:
        vision |= {"layers": list(settings.layers)}
    else:
        vision |= {"layers": settings.depth, "patch_size": settings.patch}
    text = {
        "context_length": settings.context_length, "vocab_size": vocab_size, "width": settings.text_width,
        "heads": settings.text_heads, "layers": settings.text_layers,
    }  # fmt: skip
    return {"embed_dim": settings.embed_dim, "vision_cfg": vision, "text_cfg": text}


def clip_pixels(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """What the saved CLIP's own preprocessing makes of an image, before normalisation: uint8 (size, size, 3)."""
    config = PreprocessCfg(size=size)
    tensor = image_transform_v2(config, is_train=False)(Image.fromarray(image))
    pixels: Tensor = (tensor * _column(config.std) + _column(config.mean)) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, size, size) -> the float32 input of the image tower."""
    config = PreprocessCfg(size=pixels.shape[-1])
    return (pixels.float() / 255 - _column(config.mean)) / _column(config.std)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


@dataclass(frozen=True)
class ClipBatch:
    """n images of the split train: their numbers int64 (n,), and pixels uint8 (n, 3, size, size)."""

    items: NDArray[np.int64]
    pixels: Tensor


class ClipTask:
    """Symmetric contrastive loss over a batch of images, each with one of its captions."""

    name = "clip"

    def __init__(
        self, settings: ClipTrainingSettings, config: Mapping[str, Any], tokenizer: Any,
        train: CaptionedImages, val: CaptionedImages, pixels: Pixels, seed: int,
    ) -> None:  # fmt: skip
        self.settings, self.seed, self.pixels = settings, seed, pixels
        self.train, self.val, self.size = train, val, len(train.keys)
        self.counts = torch.tensor([len(captions) for captions in train.captions])
        self.first = torch.cumsum(self.counts, 0) - self.counts
        self.ids: Tensor = tokenizer([caption for captions in train.captions for caption in captions])
        self.val_ids: Tensor = tokenizer([captions[0] for captions in val.captions])
        with seeded("init", seed, self.name):
            self.network = CLIP(**config)

    def order(self, epoch: int) -> NDArray[np.int64]:
        shard_by_shard = self.pixels.order(self.seed, epoch)
        if shard_by_shard is not None:
            return shard_by_shard
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)

    def fetch(self, items: NDArray[np.int64]) -> ClipBatch:
        return ClipBatch(items, self.pixels.fetch([self.train.keys[i] for i in items]))

    def loss(self, model: nn.Module, batch: ClipBatch, generator: torch.Generator, device: torch.device) -> Tensor:
        with torch.no_grad():
            self.network.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
        items = batch.items
        drawn = (torch.rand(len(items), generator=generator) * self.counts[items]).long()
        images = normalised(batch.pixels).to(device)
        z_i, z_t, scale = model(images, self.ids[self.first[items] + drawn].to(device))
        return contrastive(z_i.float(), z_t.float(), scale.float())

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Retrieval among distinct held-out images, each with its first caption."""
        z_i, z_t = [], []
        for rows in torch.arange(len(self.val.keys)).split(self.settings.optimiser.batch):
            images = normalised(self.pixels.fetch([self.val.keys[i] for i in rows])).to(device)
            found = network(images, self.val_ids[rows].to(device))
            z_i.append(found[0].double().cpu())
            z_t.append(found[1].double().cpu())
        return retrieval(torch.cat(z_i), torch.cat(z_t))


def contrastive(z_i: Tensor, z_t: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy among all pairs of unit vectors (n, d), those of a launcher's other processes included. The mean of the
    processes' gradients is then that of one process with all the pairs."""
    z_i, z_t = of_all_ranks(z_i), of_all_ranks(z_t)
    logits = scale * z_i @ z_t.T
    truth = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, truth) + cross_entropy(logits.T, truth)) / 2


def retrieval(z_i: Tensor, z_t: Tensor) -> dict[str, float]:
    """Share of rows whose own partner is among the 1 or 5 nearest, in both directions, for unit vectors (n, d); and n."""
    found: dict[str, float] = {"images": float(len(z_i))}
    for name, similarity in (("image_to_text", z_i @ z_t.T), ("text_to_image", z_t @ z_i.T)):
        # Ties (equal captions) count against us: a rank is the number of others at least as near.
        rank = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
        found |= {f"{name}_r{k}": (rank < k).double().mean().item() for k in (1, 5)}
    return found


def clip_stage(run: Run) -> Stage:
    """`clip/`, from pixels and the view `base`. Raises UserError for what is missing or stale."""
    inputs, settings = references(run, "dataset", "views/base"), run.config[ClipTrainingSettings]
    return training_stage(run, "clip", run.clip.folder, STAGE_VERSION, settings, inputs, make_clip)


def make_clip(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    """Train, and write a CLIP's files into `attempt`."""
    work: Work = spec.work
    run, settings = work.run, work.run.config[ClipTrainingSettings]
    with training_alone(work.state):
        train, val = captioned_images(run, "train"), captioned_images(run, "val", settings.validation_samples)
        vocab_size = shrink_bpe([caption for captions in train.captions for caption in captions], attempt / BPE_FILE)
        config, size = model_config(settings.architecture, vocab_size), settings.architecture.image_size
        share = Share(settings.optimiser.batch, *rank_and_ranks())
        with Pixels(ShardReader(run.dataset), train.keys, size, clip_pixels, also=val.keys, share=share) as pixels:
            task = ClipTask(settings, config, tokenizer_for(config, attempt / BPE_FILE), train, val, pixels, run.seed)
            average, log = Trainer(task, settings.optimiser, run.seed, work.state, settings.checkpoint_seconds).run()
        write_clip(attempt, average, config, log)
        return {"images": len(train.keys), "parameters": sum(p.numel() for p in average.parameters())}


def write_clip(attempt: Path, average: nn.Module, config: Mapping[str, Any], log: Sequence[LogRow]) -> None:
    """Write what a finished training gives: the CLIP in its own format, its log, and its last numbers beside its identity."""
    save_clip(attempt, average, config)
    write_log(attempt / LOG, log)
    identity = {"identity": load_clip_folder(attempt).identity}
    (attempt / "metrics.json").write_bytes(canonical_json(final_numbers(log) | identity))


def captioned_images(run: Run, split: str, limit: int | None = None) -> CaptionedImages:
    """What the view `base` keeps of a split; with `limit` an evenly spaced choice. Raises UserError when that is nothing."""
    plan = read_plan(run.dataset.folder).select(["key", "captions", "split"]).to_pylist()
    captions_of = {row["key"]: row["captions"] for row in plan if row["split"] == split}
    kept: dict[str, list[str]] = {}
    for pair in kept_pairs(run.view("base")).to_pylist():
        if pair["key"] in captions_of:
            kept.setdefault(pair["key"], []).append(captions_of[pair["key"]][pair["caption_index"]])
    if not kept:
        raise UserError(
            f"the view base keeps no image of the split {split}; loosen [views.base] or use more images", Code.EMPTY
        )
    keys = sorted(kept)
    if limit is not None and limit < len(keys):
        keys = [keys[i * len(keys) // limit] for i in range(limit)]
    return CaptionedImages(keys, [kept[key] for key in keys])
