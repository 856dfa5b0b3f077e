"""The learning rate of a step."""

import math

from training.tables import OptimiserSettings


def learning_rate(step: int, settings: OptimiserSettings) -> float:
    """Rate of update number `step` (from 0): linear warm-up, then constant or half a cosine down to final_lr * lr."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))
