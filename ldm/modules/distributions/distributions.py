"""The autoencoder's posterior: a Gaussian with diagonal covariance."""

from __future__ import annotations

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """N(mean, std²), independent in every element of a latent.

    Args:
        parameters: mean and log-variance stacked along channels, [b, 2c, h, w]. The log-variance is
            clamped to [−30, 20].
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.mean = mean
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return mean + std·noise, [b, c, h, w]. The default noise is torch's N(0, 1)."""
        if noise is None:
            noise = torch.randn_like(self.mean)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """Return the most probable latent, [b, c, h, w]."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence to N(0, 1), summed over a latent's elements: nats, [b]."""
        return 0.5 * (self.mean**2 + self.std**2 - 1.0 - self.logvar).flatten(1).sum(1)

    def nll(self, sample: Tensor) -> Tensor:
        """Negative log-likelihood of `sample` [b, c, h, w]: nats, [b]."""
        log_two_pi = 1.8378770664093453
        squares = ((sample - self.mean) / self.std) ** 2
        return 0.5 * (log_two_pi + self.logvar + squares).flatten(1).sum(1)
