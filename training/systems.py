"""Text to image by a row of `[systems]`: caption -> prior -> z_i -> decoder, or caption -> decoder where the row has no prior.

An image is a function of its caption and its seed, whatever is drawn beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.model import Clip, load_clip
from embed.encoding.devices import choose_device
from training.checkpoints import Trained
from training.sampling.batches import captions_of
from training.sampling.decoder import load_decoder, sample_decoder
from training.sampling.prior import load_prior, sample_prior
from training.settings import SystemsSettings


@dataclass(frozen=True)
class SamplingOptions:
    """Guidance scales (1: the conditional model), sampling steps, draws of the prior, and images a batch."""

    guidance_prior: float = 1.0
    guidance_decoder: float = 2.0
    steps_prior: int = 64
    steps_decoder: int = 50
    candidates: int = 2
    batch: int = 16


@dataclass(frozen=True)
class TextToImage:
    """A system of this run; `prior` is None where images are drawn from captions alone."""

    name: str
    clip: Clip
    prior: Trained | None
    decoder: Trained

    @property
    def side(self) -> int:
        return int(self.decoder.network.side)

    def embed(self, captions: Sequence[str], seeds: Sequence[int], options: SamplingOptions) -> Tensor:
        """z_i drawn by the prior for each caption, float32 (n, d)."""
        assert self.prior is not None, f"the system {self.name} has no prior"
        ids = self.clip.tokenize(captions)
        # Alone, since a text tower's last bits depend on what it is run beside.
        z_t = [self.clip.encode_text(ids[i : i + 1]) for i in range(len(ids))]
        return sample_prior(
            self.prior, captions_of(self.clip, ids), torch.cat(z_t) if z_t else torch.zeros(0, self.clip.embed_dim), seeds,
            options.guidance_prior, options.steps_prior, options.candidates, options.batch,
        )  # fmt: skip

    def decode(
        self, captions: Sequence[str], z_i: Tensor | None, seeds: Sequence[int], options: SamplingOptions
    ) -> NDArray[np.uint8]:
        """uint8 images (n, side, side, 3) of captions and what `embed` gave for them (None: caption only)."""
        ids = self.clip.tokenize(captions)
        return sample_decoder(
            self.decoder, self.clip, ids, z_i, seeds, options.guidance_decoder, options.steps_decoder, options.batch
        )

    def generate(self, captions: Sequence[str], seeds: Sequence[int], options: SamplingOptions) -> NDArray[np.uint8]:
        """uint8 images (n, side, side, 3), one for each caption and seed."""
        z_i = None if self.prior is None else self.embed(captions, seeds, options)
        return self.decode(captions, z_i, seeds, options)


def load_system(run: Run, name: str, device: torch.device | str | None = None) -> TextToImage:
    """A row of the run's `[systems]`, on `device` (default: a GPU that this process claims, where there is one).

    Raises UserError for a name that has no row, and for models that are not there or were trained beside another CLIP."""
    rows = run.config[SystemsSettings].rows
    if name not in rows:
        raise UserError(f"unknown system {name!r}; the rows of [systems] are {', '.join(rows)}")
    row, place = rows[name], device or choose_device("auto")
    clip = load_clip(run)
    prior = None if row.prior is None else load_prior(run.model(row.prior), clip.identity).to(place)
    return TextToImage(name, clip, prior, load_decoder(run.model(row.decoder), clip.identity).to(place))
