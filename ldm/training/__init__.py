"""Training: configuration, data, latents, callbacks, the run."""
