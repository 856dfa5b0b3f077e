"""Columns about pairs that need a CLIP."""
