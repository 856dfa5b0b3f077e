"""Which CLIP the run stands on, and how embeddings are computed."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data.pipeline.config import Section, Settings


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
