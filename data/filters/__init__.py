"""Filters: columns about pairs that need no CLIP, and the recipes that compare them."""
