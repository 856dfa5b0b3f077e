"""Classifier-free guidance: wrappers of the same shape as a model."""

from typing import Any, Protocol

from torch import Tensor


class Denoiser(Protocol):
    """Predicts, at x_t, whatever its process says (eps, x_0 or v)."""

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


def guided(model: Denoiser, null: Any, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): null + scale * (conditional - null). Scale 1 is the conditional model
    and scale 0 the unconditional one, each at the cost of a single call."""

    def wrapped(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if scale == 1.0:
            return model(x, t, cond)
        unconditional = model(x, t, null)
        return unconditional if scale == 0.0 else unconditional + scale * (model(x, t, cond) - unconditional)

    return wrapped
