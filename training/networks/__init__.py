"""Networks, on diffusers' model classes."""
