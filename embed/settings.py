"""Which CLIP the run stands on, and how embeddings are computed."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data.config import Section


class ClipSettings(Section):
    """The run's CLIP. `run`: trained by `make clip` from this run's own images. `pretrained`: an open_clip model name and
    tag (open_clip downloads it). `checkpoint`: a local folder (`open_clip_config.json` + `open_clip_model.safetensors`).
    `random`: an open_clip model with seeded random weights, for trying the machinery; its numbers mean nothing."""

    section: ClassVar[str] = "clip"
    owns: ClassVar[tuple[str, ...]] = ("clip", "embeddings")
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


class EmbeddingsSettings(Section):
    """`batch` images or captions at a time; part of the fingerprint, since the last bits of a float depend on it."""

    section: ClassVar[str] = "embeddings"
    owns: ClassVar[tuple[str, ...]] = ("embeddings", "scores/similarity")
    batch: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    row_group: int = Field(default=8192, ge=1)
