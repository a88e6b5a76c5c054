"""Autoencoders and diffusion models."""
