"""Samplers. One knows only `model(x, t, cond)`: x (n, ...), t int64 (n,), cond opaque; guidance is a wrapper of the same shape.

Noise is drawn for each row from its own generator, so that what is drawn depends on its seed and not on its neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.diffusion.guidance import Denoiser
from training.diffusion.process import Process
from training.seeds import derived_seed


class NoiseStream:
    """Standard normal noise for a batch, row i from a generator of its own seeded by (`purpose`, seeds[i]); drawn on the CPU."""

    def __init__(self, seeds: Sequence[int], purpose: str) -> None:
        self._generators = [torch.Generator().manual_seed(derived_seed(purpose, int(seed))) for seed in seeds]

    def draw(self, *shape: int) -> Tensor:
        """float32 (n, *shape)."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])


def ddim(
    model: Denoiser,
    process: Process,
    x: Tensor,
    cond: Any,
    steps: int,
    noise: NoiseStream | None = None,
    eta: float = 0.0,
    clip_x0: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) from x_T = `x` to x_0 over `steps` strided timesteps.

    eta 0 is deterministic; eta 1 has DDPM's posterior variance and needs `noise`. `clip_x0` is applied to each estimate of x_0.
    """
    ladder = process.timesteps(steps)
    for i, step in enumerate(ladder):
        t = torch.full((len(x),), step, dtype=torch.int64)
        x0 = process.to_x0(model(x, t.to(x.device), cond), x, t)
        x0 = clip_x0(x0) if clip_x0 else x0
        if i + 1 == len(ladder):
            return x0
        abar, abar_next = float(process.abar[step]), float(process.abar[ladder[i + 1]])
        sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)) ** 0.5
        x = abar_next**0.5 * x0 + max(1 - abar_next - sigma**2, 0.0) ** 0.5 * process.to_eps(x0, x, t)
        if eta > 0:
            assert noise is not None, "eta > 0 needs a noise stream"
            x = x + sigma * noise.draw(*x.shape[1:]).to(x)
    return x


def ancestral(model: Denoiser, process: Process, x: Tensor, cond: Any, steps: int, noise: NoiseStream) -> Tensor:
    """DDPM's ancestral sampler on strided timesteps, with the posterior variance beta-tilde ("fixed small").

    This is DDIM at eta = 1 (Song et al. 2021, section 4.1). The paper's prior uses Analytic-DPM's variance instead, which
    differs where steps are few; the mean is the same.
    """
    return ddim(model, process, x, cond, steps, noise, eta=1.0)
