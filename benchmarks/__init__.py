"""Ours beside a peer: `python -m benchmarks.<name> [--quick]` prints lines for people and one JSON line last."""

from pathlib import Path

SHARED = (
    Path(__file__).resolve().parents[2] / "shared" / "data"
)  # real photographs and captions, beside a checkout that has them
