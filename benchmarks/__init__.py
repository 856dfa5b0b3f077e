"""Ours beside a peer: `python -m benchmarks.<name> [--quick]` prints lines for people and one JSON line last."""
