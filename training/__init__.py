"""Networks, diffusion process, samplers, trainers, checkpoints."""
