"""A plain autoencoder loss: pixels and KL, no second network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class KLReconstruction(nn.Module):
    """`l1_weight`·|x−x̂| + `l2_weight`·(x−x̂)² + `kl_weight`·KL, each averaged over its elements.

    Args:
        l1_weight: weight of the absolute error; images lie in [−1, 1].
        l2_weight: weight of the squared error.
        kl_weight: weight of the KL divergence per latent element, in nats.
    """

    def __init__(
        self, l1_weight: float = 1.0, l2_weight: float = 1.0, kl_weight: float = 1e-6
    ) -> None:
        super().__init__()
        self.l1_weight, self.l2_weight, self.kl_weight = l1_weight, l2_weight, kl_weight

    def forward(
        self, images: Tensor, decoded: Tensor, posterior: DiagonalGaussianDistribution
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its named parts; images and decoded are [b, c, h, w]."""
        l1 = F.l1_loss(decoded, images)
        l2 = F.mse_loss(decoded, images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        rec = self.l1_weight * l1 + self.l2_weight * l2
        loss = rec + self.kl_weight * kl
        # Images span 2, so the peak signal is 2.
        psnr = 10.0 * (4.0 / ((decoded - images) ** 2).flatten(1).mean(1)).log10().mean()
        parts = {"rec_loss": rec, "l1_loss": l1, "l2_loss": l2, "kl_loss": kl, "psnr": psnr}
        return loss, {k: v.detach() for k, v in parts.items()}
