"""Systems: what turns captions into images, behind one method. Which ones a run has, the rows of `[systems]` say.

A system is a small frozen value that travels to any worker; its networks are loaded in the process that draws, once.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.artifacts import fingerprint, publish_bytes
from data.pipeline.errors import UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.stage import Input
from eval.extract.clip import ClipExtractor
from eval.settings import EvalSettings
from training.settings import DecoderSettings, SystemsSettings
from training.systems import SamplingOptions, TextToImage, load_system


class System(Protocol):
    """`inputs` are all that shapes an image besides its caption, seed and settings; `sampling` are those settings, the decoder's
    guidance apart; `guidance_prior` is None for a system without a prior."""

    @property
    def name(self) -> str: ...
    @property
    def side(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance_prior(self) -> float | None: ...
    @property
    def sampling(self) -> Mapping[str, float]: ...
    @property
    def inputs(self) -> tuple[Input, ...]: ...

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        """uint8 (n, side, side, 3); image i depends on captions[i], seeds[i] and guidance alone."""
        ...


@dataclass(frozen=True)
class RunSystem:
    """A row of this run's `[systems]`. `guidance` moves the decoder's scale; the prior's stays fixed (paper, figure 11), so what it
    draws serves every scale: `drawn` is a folder that keeps it (None: it is drawn each time)."""

    run: Run
    name: str
    side: int
    has_prior: bool
    options: SamplingOptions
    inputs: tuple[Input, ...]
    drawn: Path | None = None

    @property
    def steps(self) -> int:
        return self.options.steps_decoder

    @property
    def guidance_prior(self) -> float | None:
        return self.options.guidance_prior if self.has_prior else None

    @property
    def sampling(self) -> Mapping[str, float]:
        prior = {"steps_prior": self.options.steps_prior, "candidates": self.options.candidates}
        return {"batch": self.options.batch} | (prior if self.has_prior else {})

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        z_i = self._embed(captions, seeds) if self.has_prior else None
        return self._model().decode(captions, z_i, seeds, replace(self.options, guidance_decoder=guidance))

    def _embed(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """z_i float32 (n, d), from `drawn` where it was drawn for another scale, in whichever process."""
        if self.drawn is None:
            return self._model().embed(captions, seeds, self.options)
        shaping = [self.name, [one.digest for one in self.inputs], vars(self.options), list(captions), list(seeds)]
        path = self.drawn / f"{fingerprint(shaping)}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        z_i = self._model().embed(captions, seeds, self.options)
        buffer = io.BytesIO()
        np.save(buffer, z_i.numpy(), allow_pickle=False)
        publish_bytes(path, buffer.getvalue())
        return z_i

    def _model(self) -> TextToImage:
        return _loaded(_Models(self.run, self.name, self.inputs))


@dataclass(frozen=True, eq=False)
class _Models:
    """What `_loaded` loads; equal where folder, name and digests are."""

    run: Run
    name: str
    inputs: tuple[Input, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Models) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, str, tuple[Input, ...]]:
        return str(self.run.folder), self.name, self.inputs


@lru_cache(maxsize=1)
def _loaded(models: _Models) -> TextToImage:
    """Once in each process, and anew for another system or other weights."""
    return load_system(models.run, models.name)


def open_system(run: Run, name: str, drawn: Path | None = None) -> RunSystem:
    """A row of `[systems]`; no network is loaded. Raises UserError for a name that has no row, and for models that are not there or
    are stale."""
    rows = run.config[SystemsSettings].rows
    if name not in rows:
        raise UserError(f"unknown system {name!r}; the rows of [systems] are {', '.join(rows)}")
    row, s = rows[name], run.config[EvalSettings]
    lineage = Lineage(run)
    models = [f"models/{model}" for model in (row.prior, row.decoder) if model is not None]
    inputs = [Input(model, lineage.require(model).digest()) for model in models]
    options = SamplingOptions(
        guidance_prior=s.prior_guidance, steps_prior=s.prior_steps, steps_decoder=s.steps,
        candidates=s.prior_candidates, batch=s.batch,
    )  # fmt: skip
    clip = ClipExtractor.open(run).inputs
    return RunSystem(run, name, image_side(run), row.prior is not None, options, (*clip, *inputs), drawn)


def open_systems(run: Run, drawn: Path | None = None) -> list[RunSystem]:
    """Every row, in the order of the config."""
    return [open_system(run, name, drawn) for name in run.config[SystemsSettings].rows]


def image_side(run: Run) -> int:
    """Pixels a side of every image that is drawn, and of the real ones beside them."""
    return run.config[DecoderSettings].architecture.side
