"""Columns about pairs that need no CLIP."""
