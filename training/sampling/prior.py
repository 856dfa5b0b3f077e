"""Captions -> z_i, by the diffusion prior."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.pipeline.artifacts import Artifact
from training.checkpoints import Trained, load_trained
from training.diffusion.guidance import guided
from training.diffusion.samplers import NoiseStream, ancestral
from training.loop.precision import computing, device_of, plain_attention
from training.networks.conditions import Captions, PriorCondition
from training.networks.prior import build_prior
from training.sampling.batches import fixed_batches, require_counts

KINDS = {"prior": build_prior}


def load_prior(artifact: Artifact, clip_identity: str | None = None) -> Trained:
    """A prior; refuses like `training.checkpoints.load_trained`."""
    return load_trained(artifact, KINDS, clip_identity)


@torch.inference_mode()
def sample_prior(
    prior: Trained, captions: Captions, z_t: Tensor, seeds: Sequence[int],
    guidance: float = 1.0, steps: int = 64, candidates: int = 2, batch: int = 64,
) -> Tensor:  # fmt: skip
    """z_i for each of n captions, float32 (n, d) of unit length. Of `candidates` draws the one with the largest dot product with z_t
    is kept (paper, section 2.2: two). z_t float32 (n, d) of unit length. Raises UserError where counts differ."""
    n = len(captions.ids)
    require_counts(n, z_t=z_t, seeds=seeds)
    device = device_of(prior.network)
    found = []
    with plain_attention(device):
        for rows, count in fixed_batches(n, batch):
            z = z_t[rows].to(device)
            chosen = Captions(captions.ids[rows], captions.counts[rows]).to(device)
            cond = PriorCondition(chosen, z, torch.zeros(batch, dtype=torch.bool, device=device))
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
