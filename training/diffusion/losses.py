"""Losses of a diffusion model, by pair and by timestep."""

from torch import Tensor

BUCKETS = 4


def losses(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row in float32, (n,)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def loss_by_bucket(loss: Tensor, t: Tensor, T: int) -> dict[str, float]:
    """Mean loss overall and within each quarter of the timesteps (0: nearly clean, 3: nearly noise); empty quarters are left out."""
    bucket = t.cpu() * BUCKETS // T
    found = {"loss": loss.double().mean().item()}
    for b in range(BUCKETS):
        if (bucket == b).any():
            found[f"loss_t{b}"] = loss.cpu()[bucket == b].double().mean().item()
    return found
