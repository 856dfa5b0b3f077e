"""Decoding, resizing and comparing images."""
