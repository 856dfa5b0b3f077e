"""Systems: what turns captions into images. A run has two, unCLIP and the GLIDE baseline, behind one method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.artifacts import fingerprint
from data.pipeline.run import Run
from eval.settings import EvalSettings
from training.systems import SamplingOptions, TextToImage, load_system

MODELS = {"unclip": ("prior", "decoder"), "glide": ("glide",)}
MEMORY_LIMIT = 256 * 2**20  # bytes of z_i kept


class System(Protocol):
    """`inputs` are the digests of all that shapes an image besides its caption, seed and settings; `sampling` are those
    settings, the decoder's guidance apart; `guidance_prior` is None for a system without a prior."""

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
    def inputs(self) -> Mapping[str, str]: ...

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        """uint8 (n, side, side, 3); image i depends on captions[i], seeds[i] and guidance alone."""
        ...


@dataclass(frozen=True)
class RunSystem:
    """A system of this run. `guidance` moves the decoder's scale; the prior's stays fixed (paper, figure 11), so its draws are
    kept and serve every scale."""

    model: TextToImage
    options: SamplingOptions
    inputs: Mapping[str, str]
    _latents: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def side(self) -> int:
        return self.model.side

    @property
    def steps(self) -> int:
        return self.options.steps_decoder

    @property
    def guidance_prior(self) -> float | None:
        return None if self.model.prior is None else self.options.guidance_prior

    @property
    def sampling(self) -> Mapping[str, float]:
        prior = {"steps_prior": self.options.steps_prior, "candidates": self.options.candidates}
        return {"batch": self.options.batch} | ({} if self.model.prior is None else prior)

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        z_i = None if self.model.prior is None else self._embed(captions, seeds)
        return self.model.decode(captions, z_i, seeds, replace(self.options, guidance_decoder=guidance))

    def _embed(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """z_i (n, d), from memory where these captions and seeds were drawn before. What is full takes no more in: scales come
        one after the other over the same captions, so throwing the oldest out would leave nothing to find."""
        key = fingerprint([list(captions), list(seeds)])
        if key in self._latents:
            return self._latents[key]
        z_i = self.model.embed(captions, seeds, self.options)
        if sum(kept.nbytes for kept in self._latents.values()) + z_i.nbytes <= MEMORY_LIMIT:
            self._latents[key] = z_i
        return z_i


def open_system(run: Run, name: str) -> System:
    """A system of the run with its models loaded. Raises UserError for another name, or models that are not there."""
    model, s = load_system(run, name), run.config[EvalSettings]
    options = SamplingOptions(
        guidance_prior=s.prior_guidance, steps_prior=s.prior_steps, steps_decoder=s.steps,
        candidates=s.prior_candidates, batch=s.batch,
    )  # fmt: skip
    return RunSystem(model, options, system_inputs(run, name, model.clip.identity))


def system_inputs(run: Run, name: str, clip_identity: str) -> dict[str, str]:
    """Digests of all weights behind a system's images, as they stand today; no network is loaded."""
    return {"clip": clip_identity} | {m: run.model(m).require("make train").digest() for m in MODELS[name]}
