"""The diffusion process in the paper's symbols: schedules, q(x_t | x_0), predictions, loss, posterior.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with t = 0 .. T-1 and abar decreasing. Schedules and coefficients are float64;
tensors keep their own type. Sources: Ho et al. 2020, Nichol & Dhariwal 2021 (cosine), Salimans & Ho 2022 (v).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from training.tables import DiffusionSettings


def cosine_betas(T: int) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17, betas capped at 0.999. float64 (T,)."""

    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - abar((t + 1) / T) / abar(t / T), 0.999) for t in range(T)], dtype=torch.float64)


def linear_betas(T: int) -> Tensor:
    """Ho et al. 2020: 1e-4 to 0.02 at T = 1000, scaled to other T. float64 (T,)."""
    return torch.linspace(1e-4 * 1000 / T, min(0.02 * 1000 / T, 0.999), T, dtype=torch.float64)


class Process:
    """A noise process of T steps and the meaning of the network's output."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self.T = settings.steps
        self.prediction: Literal["eps", "x0", "v"] = settings.prediction
        self.betas = cosine_betas(self.T) if settings.schedule == "cosine" else linear_betas(self.T)
        self.abar = torch.cumprod(1 - self.betas, dim=0)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `like` (n, ...)."""
        abar = self.abar[t.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like), (1 - abar).sqrt().to(like)

    def draw_t(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform timesteps, int64 (n,)."""
        return torch.randint(self.T, (n,), generator=generator)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """A draw from q(x_t | x_0) with the given noise."""
        a, s = self.coefficients(t, x0)
        return a * x0 + s * eps

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should output at (x_t, t)."""
        if self.prediction == "x0":
            return x0
        if self.prediction == "eps":
            return eps
        a, s = self.coefficients(t, x0)
        return a * eps - s * x0

    def to_x0(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that the network's output at (x_t, t) stands for."""
        a, s = self.coefficients(t, x)
        if self.prediction == "x0":
            return output
        if self.prediction == "eps":
            return (x - s * output) / a
        return a * x - s * output

    def to_eps(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        a, s = self.coefficients(t, x)
        return (x - a * x0) / s

    def timesteps(self, n: int) -> list[int]:
        """n of the T timesteps, evenly spaced, T-1 the first: each is the noisy end of one of n equal stretches, so that no
        call is spent on the nearly clean t = 0 (the "trailing" spacing of Lin et al. 2023)."""
        n = min(n, self.T)
        return [round(self.T * (n - i) / n) - 1 for i in range(n)]
