"""Presets: plain rows of numbers for each network; `paper` is Table 3 of arXiv 2204.06125."""

from collections.abc import Mapping
from typing import Any

CLIP_DEFAULTS: dict[str, Any] = {
    "optimiser": {"steps": 400, "batch": 128, "lr": 2e-3, "beta2": 0.98, "weight_decay": 0.05, "ema": 0.9},
}

PRIOR_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"optimiser": {"steps": 500, "batch": 128, "lr": 1e-3, "ema": 0.99}},
    "small": {
        "architecture": {"width": 512, "depth": 8, "heads": 8},
        "optimiser": {
            "steps": 100_000, "batch": 1024, "lr": 1.1e-4, "warmup": 1000, "beta2": 0.96, "eps": 1e-6, "weight_decay": 6e-2,
            "ema": 0.9999, "log_every": 100, "validate_every": 5000,
        },
    },
    "paper": {
        "architecture": {"width": 2048, "depth": 24, "heads": 32},
        "optimiser": {
            "steps": 600_000, "batch": 4096, "lr": 1.1e-4, "warmup": 1000, "schedule": "constant", "beta2": 0.96, "eps": 1e-6,
            "weight_decay": 6e-2, "ema": 0.9999, "log_every": 100, "validate_every": 10_000,
        },
    },
}  # fmt: skip

DECODER_PRESETS: dict[str, dict[str, Any]] = {
    # x_0-prediction learns visibly faster than v at 16 pixels and a few hundred steps.
    "tiny": {
        "diffusion": {"prediction": "x0"},
        "optimiser": {"steps": 900, "batch": 32, "lr": 2e-3, "warmup": 100},
    },
    "small": {
        "architecture": {
            "side": 64, "channels": (128, 256, 384, 512), "depth": 2, "norm_groups": 32,
            "text": {"width": 512, "depth": 8, "heads": 8},
        },
        "optimiser": {
            "steps": 200_000, "batch": 256, "lr": 1.2e-4, "warmup": 1000, "beta2": 0.999, "weight_decay": 0.01,
            "ema": 0.9999, "log_every": 100, "validate_every": 10_000,
        },
    },
    "paper": {
        "diffusion": {"prediction": "eps"},
        "architecture": {
            "side": 64, "channels": (512, 1024, 1536, 2048), "depth": 3, "norm_groups": 32, "dropout": 0.1,
            "text": {"width": 2048, "depth": 24, "heads": 32},
        },
        "optimiser": {
            "steps": 800_000, "batch": 2048, "lr": 1.2e-4, "warmup": 1000, "schedule": "constant", "beta2": 0.999,
            "weight_decay": 0.0, "ema": 0.9999, "log_every": 100, "validate_every": 20_000,
        },
    },
}  # fmt: skip


def over_preset(presets: Mapping[str, Any], given: Any, always: dict[str, Any]) -> Any:
    """`given` laid over its preset's row; what is not a table, or names no preset, is left to the model to refuse."""
    if not isinstance(given, Mapping) or given.get("preset", "tiny") not in presets:
        return given
    return merged(merged(always, presets[given.get("preset", "tiny")]), given)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table."""
    found = dict(below)
    for key, value in above.items():
        both_tables = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both_tables else value
    return found
