"""Textual Inversion on latent diffusion: networks, samplers, training, drawing and measuring."""
