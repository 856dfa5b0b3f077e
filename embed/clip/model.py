"""A frozen CLIP: images and token ids to embeddings, and the digest by which caches and checkpoints name it.

Where it comes from is `embed/clip/load.py`, how captions become ids `embed/clip/tokens.py`, how its text tower is run
`embed/clip/towers.py`, how many captions are encoded `embed/clip/captions.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize

from data.pipeline.artifacts import fingerprint
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.load import (
    BPE_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Loaded,
    load_folder,
    load_named,
    save_clip,
    weights_digest,
)
from embed.clip.tokens import CaptionTokenizer, shrink_bpe, tokenizer_for
from embed.clip.towers import COMPARED_CAPTIONS, TextTower, encode_ids, text_tower
from embed.settings import ClipSettings

__all__ = [
    "BPE_FILE", "CONFIG_FILE", "WEIGHTS_FILE", "Clip", "ClipSource", "load_clip", "load_clip_folder", "save_clip", "shrink_bpe",
    "tokenizer_for", "weights_digest",
]  # fmt: skip

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with everything that decides its embeddings.

    `identity` (sha256 hex) covers architecture, float32 weights, preprocessing and tokenizer: equal identity and `precision`, equal
    embeddings. Inputs and results are on the CPU, wherever the model is.
    """

    model: Any
    text: TextTower
    config: Mapping[str, Any]
    preprocess_config: Mapping[str, Any]
    tokenizer: CaptionTokenizer
    name: str
    identity: str
    batch: int
    precision: Precision
    device: torch.device

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])

    @property
    def context_length(self) -> int:
        return self.tokenizer.context_length

    @property
    def vocab_size(self) -> int:
        return int(getattr(self.model, "text", self.model).vocab_size)

    @property
    def text_width(self) -> int:
        tower = getattr(self.model, "text", self.model)
        return int(tower.ln_final.normalized_shape[0] if hasattr(tower, "ln_final") else tower.config.hidden_size)

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def pooling_at_end(self) -> bool:
        """Whether captions run without their padding, which a causal tower that pools at the end of the text allows."""
        return self.text.pooling_at_end

    @property
    def preprocess_digest(self) -> str:
        return fingerprint([dict(self.preprocess_config), "PIL"])

    @property
    def tokenizer_digest(self) -> str:
        return self.tokenizer.digest

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """int64 (n, context_length), padded; a long caption is cut and keeps its end-of-text."""
        return self.tokenizer(captions)

    def token_counts(self, ids: torch.Tensor) -> torch.Tensor:
        """Number of ids up to and including the end-of-text, int64 (n,), on the ids' device. So `arange(context_length) < counts[:, None]`
        marks what is caption, whatever the tokenizer pads with."""
        return self.tokenizer.counts(ids)

    @cached_property
    def _transform(self) -> Any:
        return image_transform_v2(PreprocessCfg(**self.preprocess_config), is_train=False)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 (3, size, size), resized, cropped and normalised as this CLIP was trained."""
        pixels: torch.Tensor = self._transform(image)
        return pixels

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Preprocessed float32 (n, 3, size, size) -> raw (not unit length) float32 (n, d)."""
        if not len(pixels):
            return torch.zeros(0, self.embed_dim)
        dtype = DTYPES[self.precision]
        # CoCa would return unit vectors if it was not asked.
        found = [
            self.model.encode_image(b.to(self.device, dtype), normalize=False).float() for b in pixels.split(self.batch)
        ]
        return torch.cat(found).cpu()

    def encode_images(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (n, h, w, 3) -> float32 (n, d) of unit length."""
        found = [
            self.encode_pixels(
                torch.stack([self.preprocess(Image.fromarray(image)) for image in images[start : start + self.batch]])
            )
            for start in range(0, len(images), self.batch)
        ]
        return normalize(torch.cat(found), dim=-1) if found else torch.zeros(0, self.embed_dim)

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> raw (not unit length) float32 (n, d)."""
        return encode_ids(self.text, ids.cpu(), self.batch, self.embed_dim)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> float32 (n, d) of unit length."""
        return normalize(self.encode_ids(ids), dim=-1)

    @torch.no_grad()
    def token_states(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> float32 (n, context_length, text width): the text tower's states after its last norm.

        What stands after the end-of-text (`token_counts`) means nothing: zeros where `pooling_at_end`. The states are frozen inputs to
        whatever is trained: without a gradient, yet plain tensors that a trained layer may save for its own backward, and in this CLIP's
        precision also where autocast is on around the call.
        """
        if not len(ids):
            return torch.zeros(0, ids.shape[1], self.text_width)
        with torch.autocast(self.device.type, enabled=False):
            return self.text.states(ids.cpu()).cpu()


@dataclass(frozen=True)
class ClipSource:
    """Where a CLIP is loaded from, in any process: the config's section, the folder (absolute; None for one by name), the seed of
    random weights."""

    settings: ClipSettings
    folder: Path | None
    seed: int

    @classmethod
    def of(cls, run: Run) -> "ClipSource":
        """The source that the run's config names. Raises UserError when the run's own CLIP is not trained yet."""
        settings, folder = run.config[ClipSettings], None
        if settings.source == "run":
            folder = run.clip.require("make clip").folder
        elif settings.source == "checkpoint":
            folder = Path(settings.path or "").absolute()
        return cls(settings, folder, run.seed)

    def load(self, batch: int = 64, precision: Precision = "fp32", device: str = "cpu") -> Clip:
        """Raises UserError when it is not there or does not fit its description."""
        loaded = load_named(self.settings, self.seed) if self.folder is None else load_folder(self.folder)
        return _frozen(loaded, batch, precision, device)


def load_clip(run: Run, batch: int = 64, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """The CLIP that the run's config names. Raises UserError when it is not there or does not fit its description."""
    return ClipSource.of(run).load(batch, precision, device)


def load_clip_folder(folder: Path, batch: int = 64, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """Load strictly from a local folder: config, every tensor and its shape must fit."""
    return _frozen(load_folder(folder), batch, precision, device)


def _frozen(loaded: Loaded, batch: int, precision: Precision, device: str) -> Clip:
    """Identity and the check of the text tower come from the float32 weights; only then are they held in another precision."""
    model, tokenizer, config = loaded.model.eval().requires_grad_(False), loaded.tokenizer, dict(loaded.config)
    _check_ids(model, tokenizer, loaded.name)
    hugging_face = getattr(getattr(model, "text", None), "config", None)
    if hugging_face is not None:  # the text tower's shape, which open_clip's config only names
        facts = hugging_face.to_dict()
        config["hf_text_config"] = {
            k: v for k, v in facts.items() if k not in ("_name_or_path", "transformers_version")
        }
    identity = fingerprint([config, dict(loaded.preprocess), tokenizer.digest, weights_digest(model.state_dict())])
    text = text_tower(model, tokenizer(COMPARED_CAPTIONS))
    if precision != "fp32":
        text.hold_in(DTYPES[precision])
        model.visual.to(DTYPES[precision])
    if precision == "fp16" and device == "cpu":
        logging.getLogger(__name__).warning(
            "fp16 on a CPU is right but slow (about a fifth of fp32's speed without AVX512-FP16): use bf16 or fp32, or a GPU"
        )
    return Clip(
        model.to(device), text, loaded.config, loaded.preprocess, tokenizer, loaded.name, identity, batch, precision, torch.device(device)
    )  # fmt: skip


def _check_ids(model: Any, tokenizer: CaptionTokenizer, name: str) -> None:
    """Refuse a tokenizer whose ids or length the text tower cannot take."""
    tower = getattr(model, "text", model)
    largest = int(tokenizer(COMPARED_CAPTIONS).max())
    if largest >= tower.vocab_size or tokenizer.context_length > tower.context_length > 0:
        raise UserError(
            f"clip: {name}'s tokenizer gives ids up to at least {largest} and rows of {tokenizer.context_length}, its text tower takes "
            f"ids below {tower.vocab_size} and rows of {tower.context_length}; they are not of one model"
        )
