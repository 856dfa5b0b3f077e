"""Intervals and moments."""
