"""The noise process against closed forms."""

import math

import pytest
import torch

from training.diffusion.losses import loss_by_bucket, losses
from training.diffusion.process import Process
from training.tables import DiffusionSettings

PREDICTIONS = ("eps", "x0", "v")


def process(prediction: str = "eps", schedule: str = "cosine", steps: int = 1000) -> Process:
    return Process(DiffusionSettings(steps=steps, schedule=schedule, prediction=prediction))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_abar_falls_from_one_to_zero(schedule: str) -> None:
    abar = process(schedule=schedule).abar
    assert abar[0] > 0.999 and abar[-1] < 1e-4
    assert (abar.diff() < 0).all()


def test_schedules_have_published_values() -> None:
    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    # Where no beta is capped, abar is the closed form itself (Nichol & Dhariwal 2021, eq. 17).
    assert process().abar[499].item() == pytest.approx(f(0.5) / f(0), rel=1e-12)
    linear = process(schedule="linear")
    assert linear.betas[0].item() == pytest.approx(1e-4) and linear.betas[-1].item() == pytest.approx(0.02)


def test_q_sample_has_the_stated_moments() -> None:
    p, n = process(), 200_000
    generator = torch.Generator().manual_seed(0)
    t = torch.full((n,), 400)
    x = p.q_sample(torch.full((n, 1), 2.0), t, torch.randn(n, 1, generator=generator))
    abar = p.abar[400].item()
    assert x.mean().item() == pytest.approx(2 * abar**0.5, abs=0.01)
    assert x.var().item() == pytest.approx(1 - abar, rel=0.01)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_invert_the_process(prediction: str) -> None:
    p = process(prediction)
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 990, (50,), generator=generator)
    x = p.q_sample(x0, t, eps)
    assert torch.allclose(p.to_x0(p.target(x0, t, eps), x, t), x0)
    assert torch.allclose(p.to_eps(x0, x, t), eps)


def test_timesteps_are_strided_from_pure_noise() -> None:
    p = process()
    assert p.timesteps(5) == [999, 799, 599, 399, 199]
    assert p.timesteps(1) == [999]
    assert p.timesteps(5000) == list(range(999, -1, -1))
    for n in (2, 3, 27, 64, 250):
        steps = p.timesteps(n)
        assert len(set(steps)) == n and steps == sorted(steps, reverse=True)
        gaps = {a - b for a, b in zip(steps, [*steps[1:], -1], strict=True)}
        assert max(gaps) - min(gaps) <= 1


def test_loss_is_a_mean_per_sample_and_by_quarter() -> None:
    output, target = torch.zeros(4, 2, 3), torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1).expand(4, 2, 3)
    assert losses(output, target).tolist() == [0, 1, 4, 9]
    found = loss_by_bucket(losses(output, target), torch.tensor([0, 249, 250, 999]), 1000)
    assert found == {"loss": 3.5, "loss_t0": 0.5, "loss_t1": 4.0, "loss_t3": 9.0}
