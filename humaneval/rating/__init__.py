"""Raters, leases and answers."""
