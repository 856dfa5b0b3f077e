"""Systems: what turns captions into images. unCLIP and the GLIDE baseline of a run, behind one method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.run import Run
from embed.clip import Clip, load_clip
from eval.settings import EvalSettings
from training.checkpoints import load_decoder, load_prior
from training.sample import sample_decoder, sample_prior

SYSTEMS = ("unclip", "glide")


class System(Protocol):
    """`inputs` are the digests of everything that shapes an image besides its caption, seed and guidance;
    `guidance_prior` is nan for a system without a prior."""

    name: str
    side: int
    steps: int
    guidance_prior: float
    inputs: Mapping[str, str]

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        """uint8 (n, side, side, 3); image i depends on captions[i], seeds[i] and guidance alone."""
        ...


@dataclass(frozen=True)
class UnClip:
    """Caption -> prior -> z_i -> decoder. `guidance` is the decoder's; the prior's own stays fixed (paper, figure 11)."""

    clip: Clip
    prior: Any
    decoder: Any
    inputs: Mapping[str, str]
    settings: EvalSettings
    name: str = "unclip"

    @property
    def side(self) -> int:
        return int(self.decoder.side)

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def guidance_prior(self) -> float:
        return self.settings.prior_guidance

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        s = self.settings
        z_i = sample_prior(self.prior, self.clip, captions, seeds, s.prior_guidance, s.prior_steps, s.prior_candidates)
        return sample_decoder(self.decoder, self.clip.tokenize(captions), z_i, seeds, guidance, s.steps, s.batch)


@dataclass(frozen=True)
class Glide:
    """Caption -> decoder: the same network, trained without z_i."""

    clip: Clip
    decoder: Any
    inputs: Mapping[str, str]
    settings: EvalSettings
    name: str = "glide"
    guidance_prior: float = float("nan")

    @property
    def side(self) -> int:
        return int(self.decoder.side)

    @property
    def steps(self) -> int:
        return self.settings.steps

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> NDArray[np.uint8]:
        s = self.settings
        return sample_decoder(self.decoder, self.clip.tokenize(captions), None, seeds, guidance, s.steps, s.batch)


def open_system(run: Run, name: str) -> System:
    """A system of the run with its models loaded. Raises UserError for another name, or models that are not there."""
    if name not in SYSTEMS:
        raise UserError(f"there is no system {name!r}; systems: {', '.join(SYSTEMS)}")
    clip, settings = load_clip(run), run.config[EvalSettings]
    models = ("prior", "decoder") if name == "unclip" else ("glide",)
    inputs = {"clip": clip.identity} | {m: run.model(m).require("make train").digest() for m in models}
    if name == "unclip":
        return UnClip(clip, load_prior(run.model("prior"), clip), load_decoder(run.model("decoder"), clip), inputs, settings)
    return Glide(clip, load_decoder(run.model("glide"), clip), inputs, settings)
