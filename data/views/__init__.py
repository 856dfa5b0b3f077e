"""Decisions about pairs."""
