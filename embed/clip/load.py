"""CLIPs from disk and from open_clip: building, strict loading, and refusing what would give other embeddings than the training's.

The folder is open_clip's own local format (`open_clip_config.json`, `open_clip_model.safetensors`), plus `bpe.txt.gz` where
the vocabulary was shrunk, or a Hugging Face tokenizer's files. A folder's weights are safetensors; pretrained tags go through
open_clip's own loader, which unpickles nothing but tensors (`weights_only`).
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save_file

from data.pipeline.artifacts import canonical_json, publish_bytes
from data.pipeline.errors import UserError
from embed.clip.tokens import CaptionTokenizer, hugging_face_tokenizer, tokenizer_for
from embed.settings import ClipSettings

CONFIG_FILE, WEIGHTS_FILE, BPE_FILE = "open_clip_config.json", "open_clip_model.safetensors", "bpe.txt.gz"


@dataclass(frozen=True)
class Loaded:
    """A float32 open_clip model on the CPU with the facts that decide its embeddings."""

    model: Any
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tokenizer: CaptionTokenizer
    name: str


def save_clip(
    folder: Path,
    model: torch.nn.Module,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> None:
    """Write a CLIP into `folder` (where a shrunk `bpe.txt.gz` may already lie).

    `config` is open_clip's model config (`embed_dim`, `vision_cfg`, `text_cfg`, ...); `preprocess` defaults to open_clip's at the
    tower's size; `tokenizer` is open_clip's wrapper of a Hugging Face one, for a model that needs it.
    """
    chosen = preprocess or _plain(vars(PreprocessCfg(size=config["vision_cfg"]["image_size"])))
    publish_bytes(folder / CONFIG_FILE, canonical_json({"model_cfg": dict(config), "preprocess_cfg": dict(chosen)}))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_folder(folder: Path) -> Loaded:
    """Load strictly from a local folder: config, every tensor and its shape must fit."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a CLIP folder: {name} is missing; it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        content = json.loads((folder / CONFIG_FILE).read_bytes())
        config, recorded = content["model_cfg"], content["preprocess_cfg"]
        model = _build(config, folder)
    except Exception as error:  # open_clip, timm and transformers raise whatever they like
        raise UserError(
            f"{folder / CONFIG_FILE} does not describe an open_clip model: {type(error).__name__}: {_first_line(error)}"
        ) from None
    try:
        state = load_file(folder / WEIGHTS_FILE)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        model.load_state_dict(state, strict=True)
    except Exception as error:
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {str(error)[:300]}") from None
    preprocess = _recorded_preprocessing(recorded, model, folder / CONFIG_FILE)
    return Loaded(model, config, preprocess, _folder_tokenizer(config, folder), folder.name)


def load_named(settings: ClipSettings, seed: int) -> Loaded:
    """An open_clip model by name, with a pretrained tag or seeded random weights."""
    name, tag = settings.model or "", settings.tag
    if name not in open_clip.list_models():
        raise UserError(f"clip.model: open_clip knows no model {name!r}; see open_clip.list_models(), e.g. ViT-L-14")
    config = open_clip.get_model_config(name)
    declared = _tag_facts(name, tag, config) if tag else None
    tokenizer = _named_tokenizer(name)
    with torch.random.fork_rng(devices=[]), nullcontext() if tag else _random_as_asked():
        torch.manual_seed(seed)
        try:
            # Without `pretrained_text=False` a random model's Hugging Face tower would fetch weights of its own.
            model = open_clip.create_model(name, pretrained=tag, pretrained_text=False)
        except Exception as error:
            raise UserError(f"clip: open_clip cannot load {name} with tag {tag!r}: {_first_line(error)}") from None
    attached = _plain(
        getattr(model.visual, "preprocess_cfg", None) or vars(PreprocessCfg(size=model.visual.image_size))
    )
    preprocess = _plain(vars(PreprocessCfg(**attached)))
    for field, value in _plain(declared or {}).items():
        if field in preprocess and _comparable(preprocess[field]) != _comparable(value):
            raise UserError(
                f"clip.tag: {name} with {tag!r} was trained with preprocessing {field} = {value}, but open_clip would use "
                f"{preprocess[field]}; choose another tag, or its weights as a checkpoint folder that records the right one"
            )
    return Loaded(model, config, preprocess, tokenizer, f"{name}/{tag or 'random'}")


@contextmanager
def _random_as_asked() -> Iterator[None]:
    """Without open_clip's warning that the weights are random, which the config asked for."""

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of all tensors in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _build(config: Mapping[str, Any], folder: Path) -> Any:
    """The model that open_clip's factory would build from this config; a Hugging Face tower's config may lie in the folder."""
    built: dict[str, Any] = deepcopy(dict(config))
    custom, hugging_face = built.pop("custom_text", False), built["text_cfg"].get("hf_model_name")
    if hugging_face:
        inside = folder / hugging_face
        built["text_cfg"] |= {
            "hf_model_name": str(inside) if inside.is_dir() else hugging_face,
            "hf_model_pretrained": False,
        }
    if not (custom or hugging_face):
        return open_clip.CLIP(**built)
    return (CoCa if "multimodal_cfg" in built else CustomTextCLIP)(**built)


def _recorded_preprocessing(recorded: Mapping[str, Any], model: Any, where: Path) -> dict[str, Any]:
    """What the folder says its images go through. Raises UserError when it leaves the colours open or does not fit the tower."""
    known = _plain(vars(PreprocessCfg()))
    unknown, lacking = sorted(set(recorded) - set(known)), [name for name in ("mean", "std") if name not in recorded]
    if unknown or lacking:
        raise UserError(
            f"{where}: preprocess_cfg {f'has unknown {unknown}' if unknown else f'lacks {lacking}'}; it takes {', '.join(known)}, "
            "and mean and std must be those of the CLIP's training"
        )
    size = _plain({"size": model.visual.image_size})["size"]
    preprocess = known | {"size": size} | _plain(recorded)
    if _comparable(preprocess["size"]) != _comparable(size):
        raise UserError(
            f"{where}: preprocess_cfg makes images of size {preprocess['size']}, the image tower takes {size}; "
            "correct whichever of the two was not used in training"
        )
    allowed = {
        "mode": ("RGB",),
        "interpolation": ("bicubic", "bilinear"),
        "resize_mode": ("shortest", "longest", "squash"),
    }
    for field, values in allowed.items():
        if preprocess[field] not in values:
            raise UserError(
                f"{where}: preprocess_cfg.{field} = {preprocess[field]!r} is not one of {', '.join(values)}"
            )
    return preprocess


def _tag_facts(name: str, tag: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What open_clip knows of a pretrained tag, before anything is downloaded. Raises UserError on a QuickGELU mismatch."""
    facts: Mapping[str, Any] | None = get_pretrained_cfg(name, tag)
    if not facts:
        raise UserError(
            f"clip.tag: open_clip knows no tag {tag!r} of {name}; it knows {', '.join(list_pretrained_tags_by_model(name)) or 'none'}. "
            "For weights of your own use clip.source = 'checkpoint', whose folder also records their preprocessing"
        )
    trained, built = bool(facts.get("quick_gelu", False)), bool(config.get("quick_gelu", False))
    if trained != built:
        other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        advice = f"use clip.model = {other!r}" if other in open_clip.list_models() else "choose another tag"
        raise UserError(
            f"clip.tag: QuickGELU mismatch: {tag!r} was trained with{'' if trained else 'out'} QuickGELU, the model {name} is built "
            f"with{'' if built else 'out'} it, which would give other embeddings; {advice}"
        )
    return facts


def _named_tokenizer(name: str) -> CaptionTokenizer:
    """The tokenizer of an open_clip model, loaded before its weights are."""
    try:
        return CaptionTokenizer(open_clip.get_tokenizer(name))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"clip: open_clip cannot load the tokenizer of {name}: {_first_line(error)}") from None


def _folder_tokenizer(config: Mapping[str, Any], folder: Path) -> CaptionTokenizer:
    named = config["text_cfg"].get("hf_tokenizer_name")
    if not named:
        bpe = folder / BPE_FILE
        return CaptionTokenizer(tokenizer_for(config, bpe if bpe.exists() else None), bpe if bpe.exists() else None)
    source = str(folder) if (folder / "tokenizer_config.json").exists() else named
    try:
        return CaptionTokenizer(hugging_face_tokenizer(config, source))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"clip: the tokenizer {named!r} is not in {folder} and cannot be loaded: {_first_line(error)}; save it there with "
            "save_pretrained"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _comparable(value: Any) -> Any:
    """A side alone means a square, in sizes."""
    return [value, value] if isinstance(value, int) else value
