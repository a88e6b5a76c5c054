"""Textual Inversion on latent diffusion: networks, samplers, training, generation, scores."""
