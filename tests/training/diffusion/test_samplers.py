"""Samplers with exact scores, guidance, and noise that belongs to its sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from training.diffusion.guidance import guided
from training.diffusion.process import Process
from training.diffusion.samplers import NoiseStream, ancestral, ddim
from training.tables import DiffusionSettings

MEAN, STD = 0.7, 0.4


class GaussianDenoiser:
    """The exact E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        a, s = self.process.coefficients(t, x)
        return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN)


def gaussian() -> tuple[Process, GaussianDenoiser]:
    process = Process(DiffusionSettings(prediction="x0"))
    return process, GaussianDenoiser(process)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_the_exact_score_reproduces_the_gaussian(eta: float) -> None:
    process, model = gaussian()
    noise = NoiseStream([0], "test")
    x = noise.draw(8_000)[0][:, None]

    class Shared:
        def draw(self, *shape: int) -> Tensor:
            return noise.draw(len(x), *shape)[0]

    out = ddim(model, process, x, None, 120, Shared(), eta)  # type: ignore[arg-type]
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.05)


def test_deterministic_ddim_is_the_linear_map_of_the_probability_flow() -> None:
    process, model = gaussian()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(ddim(model, process, x, None, 1000), MEAN + STD * x, atol=0.01)


def test_x0_is_clipped_at_every_step() -> None:
    process, model = gaussian()
    seen = []

    def clip(x0: Tensor) -> Tensor:
        seen.append(len(x0))
        return x0.clamp(-0.1, 0.1)

    out = ddim(model, process, torch.randn(3, 2), None, 7, clip_x0=clip)
    assert len(seen) == 7 and out.abs().max() <= 0.1


def test_guidance_scales_one_and_zero_cost_a_single_call_and_others_extrapolate() -> None:
    calls: list[float] = []

    def model(x: Tensor, t: Tensor, cond: float) -> Tensor:
        calls.append(cond)
        return torch.full_like(x, cond)

    x, t = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    values = {scale: guided(model, 1.0, scale)(x, t, 3.0)[0].item() for scale in (1.0, 0.0, 2.5)}
    assert values == {1.0: 3.0, 0.0: 1.0, 2.5: 6.0}
    assert calls == [3.0, 1.0, 1.0, 3.0]


def test_a_sample_keeps_its_noise_in_any_batch() -> None:
    process, model = gaussian()

    def draw(seeds: list[int]) -> Tensor:
        noise = NoiseStream(seeds, "test")
        return ancestral(model, process, noise.draw(3), None, 6, noise)

    together = draw([5, 6, 7])
    assert torch.equal(together[[2, 0]], draw([7, 5]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(NoiseStream([5], "prior").draw(3), NoiseStream([5], "decoder").draw(3))
