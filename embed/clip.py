"""A CLIP of the run: its folder format, loading, tokenizer, and the digest by which caches and checkpoints name it.

The folder is open_clip's own local format (`open_clip_config.json`, `open_clip_model.safetensors`), plus `bpe.txt.gz` where
the vocabulary was shrunk. A folder's weights are safetensors; pretrained tags go through open_clip's own loader, which unpickles
nothing but tensors (`weights_only`).
"""

import gzip
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_pairs
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from data.artifacts import canonical_json, fingerprint, publish_bytes
from data.errors import UserError
from data.run import Run
from embed.settings import ClipSettings

CONFIG_FILE, WEIGHTS_FILE, BPE_FILE = "open_clip_config.json", "open_clip_model.safetensors", "bpe.txt.gz"


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with everything that decides its embeddings.

    `identity` (sha256 hex) covers architecture, weights, preprocessing and tokenizer: equal identity, equal embeddings.
    """

    model: Any
    config: Mapping[str, Any]
    preprocess_config: Mapping[str, Any]
    tokenizer: Any
    tokenizer_digest: str
    name: str
    identity: str
    batch: int = 64

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])

    @property
    def context_length(self) -> int:
        return int(self.model.context_length)

    @property
    def vocab_size(self) -> int:
        return int(self.model.vocab_size)

    @property
    def text_width(self) -> int:
        return int(self.model.ln_final.normalized_shape[0])

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def preprocess_digest(self) -> str:
        return fingerprint([dict(self.preprocess_config), "PIL"])

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """int64 (n, context_length), zero-padded; a long caption is cut and keeps its end-of-text."""
        if not captions:
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        ids: torch.Tensor = self.tokenizer(list(captions), context_length=self.context_length)
        return ids

    def token_counts(self, ids: torch.Tensor) -> torch.Tensor:
        """Number of ids up to and including the end-of-text, which is the largest id of a row. int64 (n,)."""
        return ids.argmax(dim=1) + 1

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 (3, size, size), resized, cropped and normalised as this CLIP was trained."""
        transform = image_transform_v2(PreprocessCfg(**self.preprocess_config), is_train=False)
        pixels: torch.Tensor = transform(image)
        return pixels

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Preprocessed float32 (n, 3, size, size) -> raw (not unit length) float32 (n, d)."""
        return torch.cat([self.model.encode_image(b).float() for b in pixels.split(self.batch)])

    def encode_images(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (n, h, w, 3) -> float32 (n, d) of unit length."""
        found = [
            self.encode_pixels(
                torch.stack([self.preprocess(Image.fromarray(image)) for image in images[start : start + self.batch]])
            )
            for start in range(0, len(images), self.batch)
        ]
        return normalize(torch.cat(found), dim=-1) if found else torch.zeros(0, self.embed_dim)

    @torch.inference_mode()
    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> raw (not unit length) float32 (n, d)."""
        if not len(ids):
            return torch.zeros(0, self.embed_dim)
        return torch.cat([self.model.encode_text(b).float() for b in ids.split(self.batch)])

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> float32 (n, d) of unit length."""
        return normalize(self.encode_ids(ids), dim=-1)

    @torch.inference_mode()
    def token_states(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (n, context_length) -> float32 (n, context_length, text width): the text tower's states after its last norm."""
        found = self.model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        states: torch.Tensor = found["text_intermediates"][0].float()
        return states


def save_clip(
    folder: Path, model: torch.nn.Module, config: Mapping[str, Any], preprocess: Mapping[str, Any] | None = None
) -> None:
    """Write a CLIP into `folder` (where a shrunk `bpe.txt.gz` may already lie).

    `config` is open_clip's model config (`embed_dim`, `vision_cfg`, `text_cfg`); `preprocess` defaults to open_clip's at the tower's size.
    """
    size = config["vision_cfg"]["image_size"]
    chosen = preprocess or _preprocess_dict(PreprocessCfg(size=size))
    publish_bytes(folder / CONFIG_FILE, canonical_json({"model_cfg": dict(config), "preprocess_cfg": dict(chosen)}))
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_clip(run: Run, batch: int = 64) -> Clip:
    """The CLIP that the run's config names. Raises UserError when it is not there or does not fit its description."""
    settings = run.config[ClipSettings]
    if settings.source == "run":
        return load_clip_folder(run.clip.require("make clip").folder, batch)
    if settings.source == "checkpoint":
        return load_clip_folder(Path(settings.path or ""), batch)
    return _load_named(settings, run.seed, batch)


def load_clip_folder(folder: Path, batch: int = 64) -> Clip:
    """Load strictly from a local folder: config, every tensor and its shape must fit."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a CLIP folder: {name} is missing; it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        content = json.loads((folder / CONFIG_FILE).read_bytes())
        config, preprocess = content["model_cfg"], content["preprocess_cfg"]
        model = open_clip.CLIP(**config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} does not describe an open_clip model: {type(error).__name__}: {error}"
        ) from None
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True)
    except Exception as error:
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {str(error)[:300]}") from None
    bpe = folder / BPE_FILE
    tokenizer = tokenizer_for(config, bpe if bpe.exists() else None)
    return _frozen(
        model, config, preprocess, tokenizer, str(bpe if bpe.exists() else default_bpe()), folder.name, batch
    )


def tokenizer_for(config: Mapping[str, Any], bpe: Path | None) -> SimpleTokenizer:
    """CLIP's tokenizer over the given merges (default: CLIP's own), at the model's context length."""
    tokenizer = SimpleTokenizer(bpe_path=str(bpe or default_bpe()), context_length=config["text_cfg"]["context_length"])
    if tokenizer.vocab_size != config["text_cfg"]["vocab_size"]:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's text_cfg.vocab_size is {config['text_cfg']['vocab_size']}"
        )
    return tokenizer


def shrink_bpe(captions: Sequence[str], destination: Path) -> int:
    """Write CLIP's merges restricted to those that `captions` use; returns the vocabulary size.

    The captions keep their segmentation, other words fall back to smaller pieces, and the end-of-text id stays the largest,
    which open_clip's pooling relies on. Most of a tiny CLIP's weights would otherwise be rows that never see a gradient.
    """
    full = SimpleTokenizer()
    words = {
        "".join(full.byte_encoder[b] for b in word.encode())
        for caption in set(captions)
        for word in full.pat.findall(full.clean_fn(caption))
    }
    used: set[tuple[str, str]] = set()
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            first, second = min(get_pairs(tuple(pieces)), key=lambda pair: full.bpe_ranks.get(pair, float("inf")))
            if (first, second) not in full.bpe_ranks:
                break
            used.add((first, second))
            pieces = _merge(pieces, first, second)
    merges = sorted(used, key=full.bpe_ranks.__getitem__)
    # No newline at the end: open_clip would read an empty merge.
    text = "\n".join(["#version: 0.2, merges used by this run's captions", *(" ".join(m) for m in merges)])
    publish_bytes(destination, gzip.compress(text.encode(), mtime=0))
    return SimpleTokenizer(bpe_path=str(destination)).vocab_size


def _merge(pieces: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        if pieces[i : i + 2] == [first, second]:
            merged.append(first + second)
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def _load_named(settings: ClipSettings, seed: int, batch: int) -> Clip:
    """An open_clip model by name, with a pretrained tag or seeded random weights."""
    name, tag = settings.model or "", settings.tag
    if name not in open_clip.list_models():
        raise UserError(f"clip.model: open_clip knows no model {name!r}; see open_clip.list_models(), e.g. ViT-L-14")
    tokenizer = _named_tokenizer(name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        torch.manual_seed(seed)
        try:
            model = open_clip.create_model(name, pretrained=tag)
        except UserWarning as warning:
            raise UserError(
                f"clip.model: {warning} Name the variant that was trained: {name}-quickgelu or {name.removesuffix('-quickgelu')}"
            ) from None
        except Exception as error:
            raise UserError(f"clip: open_clip cannot load {name} with tag {tag!r}: {str(error)[:300]}") from None
    preprocess = dict(
        getattr(model.visual, "preprocess_cfg", None) or _preprocess_dict(PreprocessCfg(size=model.visual.image_size))
    )
    config = open_clip.get_model_config(name)
    return _frozen(model, config, preprocess, tokenizer, default_bpe(), f"{name}/{tag or 'random'}", batch)


def _named_tokenizer(name: str) -> SimpleTokenizer:
    """The tokenizer of an open_clip model, loaded before its weights are. Raises UserError unless it is CLIP's own."""
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"clip: open_clip cannot load the tokenizer of {name}: {first_line[:300]}") from None
    if not isinstance(tokenizer, SimpleTokenizer):
        raise UserError(
            f"clip.model: {name} uses {type(tokenizer).__name__}, whose padding and end-of-text are not CLIP's; "
            "choose a model with CLIP's own tokenizer, e.g. ViT-L-14"
        )
    return tokenizer


def _frozen(
    model: Any,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    tokenizer: Any,
    bpe: str,
    name: str,
    batch: int,
) -> Clip:
    model.eval().requires_grad_(False)
    tokenizer_digest = fingerprint([type(tokenizer).__name__, hashlib.sha256(Path(bpe).read_bytes()).hexdigest()])
    identity = fingerprint([dict(config), dict(preprocess), tokenizer_digest, weights_digest(model.state_dict())])
    return Clip(model, config, preprocess, tokenizer, tokenizer_digest, name, identity, batch)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of all tensors in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _preprocess_dict(config: PreprocessCfg) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
