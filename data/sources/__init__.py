"""Where candidate image-text pairs come from."""
