"""Text to image with either system: caption -> prior -> z_i -> decoder (unCLIP), or caption -> decoder (GLIDE).

A sample is a function of its caption and its seed. Batches always have the same size (the last one is padded with copies),
because the last bits of a matrix product may depend on its shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.model import Clip, load_clip
from training.checkpoints import Trained, load_decoder, load_prior
from training.diffusion.guidance import guided
from training.diffusion.samplers import NoiseStream, ancestral, ddim
from training.loop.pixels import to_uint8
from training.loop.precision import computing, device_of
from training.networks.conditions import DecoderCondition, PriorCondition

SYSTEMS = ("unclip", "glide")


def fixed_batches(n: int, size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """(rows, how many of them count) with always `size` rows; the last batch repeats its last row."""
    for start in range(0, n, size):
        count = min(size, n - start)
        yield start + np.minimum(np.arange(size), count - 1), count


@torch.inference_mode()
def sample_prior(
    prior: Trained, token_ids: Tensor, z_t: Tensor, seeds: Sequence[int],
    guidance: float = 1.0, steps: int = 64, candidates: int = 2, batch: int = 64,
) -> Tensor:  # fmt: skip
    """z_i for each caption, float32 (n, d) of unit length. Of `candidates` draws the one with the largest dot product with z_t
    is kept (paper, section 2.2: two). token_ids int64 (n, length), z_t float32 (n, d) of unit length."""
    _check(len(token_ids), z_t=z_t, seeds=seeds)
    device = device_of(prior.network)
    found = []
    for rows, count in fixed_batches(len(token_ids), batch):
        z = z_t[rows].to(device)
        cond = PriorCondition(token_ids[rows].to(device), z, torch.zeros(batch, dtype=torch.bool, device=device))
        draws = []
        for candidate in range(candidates):
            noise = NoiseStream([seeds[row] for row in rows], f"prior {candidate}")
            x = noise.draw(z.shape[1]).to(device)
            with computing(prior.precision, device):
                x = ancestral(guided(prior.network, cond.null(), guidance), prior.process, x, cond, steps, noise)
            draws.append(normalize(prior.network.unscale(x), dim=-1))
        found.append(keep_closest(torch.stack(draws), z)[:count].cpu())
    return torch.cat(found) if found else torch.zeros(0, z_t.shape[1])


def keep_closest(draws: Tensor, z_t: Tensor) -> Tensor:
    """draws (candidates, n, d), z_t (n, d) -> for each row the draw with the largest dot product with z_t, (n, d)."""
    best = (draws * z_t).sum(-1).argmax(0)
    return draws[best, torch.arange(len(z_t), device=draws.device)]


@torch.inference_mode()
def sample_decoder(
    decoder: Trained, token_ids: Tensor, z_i: Tensor | None, seeds: Sequence[int],
    guidance: float = 1.0, steps: int = 50, batch: int = 16, eta: float = 0.0, drop_caption: bool = False,
) -> NDArray[np.uint8]:  # fmt: skip
    """uint8 images (n, side, side, 3) by DDIM. z_i float32 (n, d) of unit length; None drops it (caption only; always for GLIDE).
    `drop_caption` conditions on z_i alone."""
    _check(len(token_ids), z_i=z_i, seeds=seeds)
    device, side = device_of(decoder.network), decoder.network.side
    z = torch.zeros(len(token_ids), decoder.config["clip"]["embed_dim"]) if z_i is None else z_i
    found = []
    for rows, count in fixed_batches(len(token_ids), batch):
        noise = NoiseStream([seeds[row] for row in rows], "decoder")
        cond = DecoderCondition(
            token_ids[rows].to(device), z[rows].to(device),
            torch.full((batch,), drop_caption, device=device), torch.full((batch,), z_i is None, device=device),
        )  # fmt: skip
        with computing(decoder.precision, device):
            model = guided(decoder.network, decoder.network.encode(cond.null()), guidance)
            x = noise.draw(3, side, side).to(device)
            x = ddim(
                model, decoder.process, x, decoder.network.encode(cond), steps, noise, eta, lambda x0: x0.clamp(-1, 1)
            )
        found.append(to_uint8(x[:count]).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, side, side, 3), np.uint8)


def _check(n: int, seeds: Sequence[int], **others: Tensor | None) -> None:
    for name, value in (("seeds", seeds), *others.items()):
        if value is not None and len(value) != n:
            raise UserError(f"{n} captions need as many {name}, got {len(value)}")


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
    """A system of this run: unCLIP (with a prior) or the GLIDE baseline (without)."""

    name: str
    clip: Clip
    prior: Trained | None
    decoder: Trained

    @property
    def side(self) -> int:
        return int(self.decoder.network.side)

    def embed(self, captions: Sequence[str], seeds: Sequence[int], options: SamplingOptions) -> Tensor:
        """z_i drawn by the prior for each caption, float32 (n, d)."""
        assert self.prior is not None, "the GLIDE baseline has no prior"
        ids = self.clip.tokenize(captions)
        # Alone, since a text tower's last bits depend on what it is run beside.
        z_t = [self.clip.encode_text(ids[i : i + 1]) for i in range(len(ids))]
        return sample_prior(
            self.prior, ids, torch.cat(z_t) if z_t else torch.zeros(0, self.clip.embed_dim), seeds,
            options.guidance_prior, options.steps_prior, options.candidates, options.batch,
        )  # fmt: skip

    def decode(
        self, captions: Sequence[str], z_i: Tensor | None, seeds: Sequence[int], options: SamplingOptions
    ) -> NDArray[np.uint8]:
        """uint8 images (n, side, side, 3) of captions and what `embed` gave for them (None: caption only)."""
        ids = self.clip.tokenize(captions)
        return sample_decoder(
            self.decoder, ids, z_i, seeds, options.guidance_decoder, options.steps_decoder, options.batch
        )

    def generate(self, captions: Sequence[str], seeds: Sequence[int], options: SamplingOptions) -> NDArray[np.uint8]:
        """uint8 images (n, side, side, 3), one for each caption and seed."""
        z_i = None if self.prior is None else self.embed(captions, seeds, options)
        return self.decode(captions, z_i, seeds, options)


def load_system(run: Run, name: str, device: torch.device | str | None = None) -> TextToImage:
    """`unclip` or `glide` of a run, on `device` (default: CUDA where there is one)."""
    if name not in SYSTEMS:
        raise UserError(f"unknown system {name!r}; known: {', '.join(SYSTEMS)}")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    clip = load_clip(run)
    prior = load_prior(run.model("prior"), clip.identity).to(place) if name == "unclip" else None
    decoder = load_decoder(run.model("decoder" if name == "unclip" else "glide"), clip.identity).to(place)
    return TextToImage(name, clip, prior, decoder)
