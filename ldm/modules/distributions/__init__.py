"""Probability distributions of the latents."""
