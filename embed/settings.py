"""Which CLIP the run stands on, how embeddings are computed, and what their settings may not say together with others."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data.pipeline.config import Config, Section, Settings
from data.views.settings import ViewsSettings

# Scores that are made when their table stands in the config, and what that table says.
OPTIONAL_SCORES = {
    "aesthetic": "with `head`, the file of a linear head",
    "semantic": "with `threshold`, the cosine from which an image is a copy",
}
# LAION's aesthetic heads by the names under which it gives them, and whose embeddings they were trained on.
LAION_HEADS_BY_NAME = {
    f"sa_0_4_vit_{short}_linear.pth": clip
    for short, clip in (("b_32", "ViT-B-32"), ("b_16", "ViT-B-16"), ("l_14", "ViT-L-14"))
}


class ClipSettings(Section):
    """The run's CLIP. `run`: trained by `make clip` from this run's own images. `pretrained`: an open_clip model name and
    tag (open_clip downloads it). `checkpoint`: a local folder (`open_clip_config.json` + `open_clip_model.safetensors`).
    `random`: an open_clip model with seeded random weights, for trying the machinery; its numbers mean nothing."""

    section: ClassVar[str] = "clip"
    owns: ClassVar[tuple[str, ...]] = ("clip", "embeddings")
    # A folder may be moved or copied: what is made with its CLIP is guarded by the CLIP's identity.
    volatile: ClassVar[tuple[str, ...]] = ("path",)
    source: Literal["run", "pretrained", "checkpoint", "random"] = "run"
    model: str | None = None
    tag: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _names_what_its_source_needs(self) -> "ClipSettings":
        needed = {"run": (), "pretrained": ("model", "tag"), "checkpoint": ("path",), "random": ("model",)}[self.source]
        lacking = [name for name in needed if getattr(self, name) is None]
        unused = [name for name in ("model", "tag", "path") if name not in needed and getattr(self, name) is not None]
        if lacking or unused:
            raise ValueError(
                f"source = {self.source!r} takes {' and '.join(needed) or 'no further key'};"
                f"{' missing ' + ', '.join(lacking) if lacking else ''}{' unused ' + ', '.join(unused) if unused else ''}"
            )
        return self


class AestheticSettings(Settings):
    """`scores/aesthetic` by a linear head on image embeddings: `head` is one of LAION's `sa_0_4_*_linear.pth`, or another file of
    that form. A head of LAION's is refused on another CLIP than its own, unless `any_clip`; the manifest records that it did not fit."""

    head: str
    any_clip: bool = False


class SemanticSettings(Settings):
    """`scores/semantic`: near duplicates among images by cosine >= `threshold`. Up to `exact_up_to` images are compared exactly, more
    through an index (the extra `scale`) of which `probes` cells are searched; the manifest records its recall."""

    threshold: float = Field(default=0.98, gt=0, le=1)
    exact_up_to: int = Field(default=100_000, ge=0)
    probes: int = Field(default=16, ge=1)


class EmbeddingsSettings(Section):
    """How pairs are encoded and stored.

    `batch` images or captions at a time; part of the fingerprint, since the last bits of a float depend on it. `precision` in which
    the weights of matrices are held. `reduced_decode` lets a JPEG be decoded at half scale or less where at least twice the CLIP's size
    is left: faster for large photographs, and the vectors move a little (docs/embeddings.md). `threads` batches are encoded at once in
    each worker, each on one thread, so that their number changes no byte; 0 shares the machine's cores among the workers, at
    most 2 each. `decode_threads` decode ahead of the encoder; 0 lets the device decide.
    """

    section: ClassVar[str] = "embeddings"
    owns: ClassVar[tuple[str, ...]] = ("embeddings", "scores/similarity", "scores/aesthetic", "scores/semantic")
    # Scores are guarded by their own stages: another head or threshold need not touch the cache.
    # So is `device` by the cache's: `auto` and what it comes to here are one config.
    volatile: ClassVar[tuple[str, ...]] = ("device", "threads", "decode_threads", "aesthetic", "semantic")
    batch: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reduced_decode: bool = False
    row_group: int = Field(default=8192, ge=1)
    threads: int = Field(default=0, ge=0, le=64)
    decode_threads: int = Field(default=0, ge=0, le=64)
    aesthetic: AestheticSettings | None = None
    semantic: SemanticSettings | None = None


def problem_between_sections(config: Config) -> str | None:
    """What [views], [clip] and [embeddings] must not say together, in one line; None when nothing is wrong."""
    return _scores_that_nothing_makes(config) or _head_of_another_clip(config)


def is_openais(model: str, clip_name: str) -> bool:
    """Whether a CLIP by its name `model/tag` is OpenAI's `model`, with the QuickGELU that it was trained with or without."""
    named, _, tag = clip_name.partition("/")
    return named.removesuffix("-quickgelu") == model and tag == "openai"


def _scores_that_nothing_makes(config: Config) -> str | None:
    settings = config[EmbeddingsSettings]
    for rule in config[ViewsSettings].train.rules:
        if rule.scores in OPTIONAL_SCORES and getattr(settings, rule.scores) is None:
            return (
                f"a rule of [views.train] reads scores/{rule.scores}, which nothing makes: add a table [embeddings.{rule.scores}] "
                f"to the config ({OPTIONAL_SCORES[rule.scores]}), or take the rule out"
            )
    return None


def _head_of_another_clip(config: Config) -> str | None:
    """By the head's file name alone; its digest, and a CLIP from a folder, are looked at when scores are made."""
    head, clip = config[EmbeddingsSettings].aesthetic, config[ClipSettings]
    trained_on = LAION_HEADS_BY_NAME.get(Path(head.head).name) if head is not None else None
    if head is None or head.any_clip or trained_on is None or clip.source == "checkpoint":
        return None
    named = "the run's own" if clip.source == "run" else f"{clip.model}/{clip.tag or 'random'}"
    if is_openais(trained_on, named):
        return None
    return (
        f"embeddings.aesthetic.head: {Path(head.head).name} was trained on embeddings of OpenAI's {trained_on}, [clip] is {named}, on "
        "which its scores mean nothing; set embeddings.aesthetic.any_clip = true to compute them all the same"
    )
