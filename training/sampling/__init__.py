"""Drawing z_i from a prior and images from a decoder, in batches of one size."""
