"""Latent diffusion and its samplers."""
