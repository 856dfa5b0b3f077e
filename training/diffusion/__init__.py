"""Noise process, losses, samplers, guidance."""
