"""The published autoencoders' loss: pixels, perception, KL, and a discriminator of patches.

After "Taming Transformers" (Esser et al. 2021, §3.1) and "Latent Diffusion" (Rombach et al. 2022,
appendix G). State-dict names (`discriminator.main.*`, `logvar`, `perceptual_loss.*`) are those of
published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import UserError, one_of


class PatchDiscriminator(nn.Module):
    """Convolutions that classify each patch of an image: [b, c, h, w] → logits [b, 1, h', w'].

    The discriminator of "pix2pix" (Isola et al. 2017, appendix 6.1.2).

    Args:
        in_channels: channels of the images.
        num_layers: convolutions that halve the image; three see patches of 70 pixels.
        width: channels of the first convolution; each next has twice as many, at most 8 · width.
    """

    def __init__(self, in_channels: int = 3, num_layers: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, num_layers + 1):
            out, stride = width * min(2**i, 8), 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(channels, out, 4, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            channels = out
        self.main = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)

    def frozen(self, images: Tensor) -> Tensor:
        """Return the logits, with gradients for the images and none for the weights."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, weights, (images,))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return half the sum of the means of max(0, 1 − real) and max(0, 1 + fake)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return half the cross-entropy of logits of real and reconstructed images."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def _perceptual_loss() -> nn.Module:
    try:
        from taming.modules.losses.lpips import LPIPS
    except ImportError as error:
        raise UserError(
            f"perceptual_weight > 0 needs LPIPS from taming-transformers ({error}): install it "
            "with pip install taming-transformers-rom1504 torchvision, or set perceptual_weight: 0"
        ) from error
    return LPIPS().eval().requires_grad_(False)


class LPIPSWithDiscriminator(nn.Module):
    """The losses of the autoencoder and of the discriminator, in a sum for one optimizer.

    In the loss of the autoencoder the weights of the discriminator are constants, and in the loss
    of the discriminator the reconstruction is. So no gradient of one reaches the weights of the
    other. Adam moves each weight by itself, so one optimizer does the work of two with the same
    settings. Both losses share one reconstruction; the original decoded twice.

    Args:
        disc_start: optimizer step from which the discriminator takes part.
        logvar_init: log-variance of the pixels; constant, as in the original.
        kl_weight: weight of the KL divergence, in nats an image.
        pixelloss_weight: weight of |x − x̂|, summed over the elements of an image.
        perceptual_weight: weight of LPIPS, summed over the elements of an image.
        disc_num_layers: convolutions of the discriminator that halve the image.
        disc_in_channels: channels of the images that the discriminator reads.
        disc_factor: weight of both adversarial losses.
        disc_weight: weight of the autoencoder's adversarial loss, beside the adaptive weight.
        disc_loss: loss of the discriminator, `hinge` or `vanilla`.
    """

    # The autoencoder passes `step` and `last_layer` to an adversarial loss.
    adversarial = True
    logvar: Tensor

    def __init__(
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        disc_loss: str = "hinge",
    ) -> None:
        super().__init__()
        one_of(DISCRIMINATOR_LOSSES, disc_loss=disc_loss)
        self.disc_start, self.disc_factor, self.disc_weight = disc_start, disc_factor, disc_weight
        self.kl_weight, self.pixel_weight = kl_weight, pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.perceptual_loss: nn.Module | None = None
        if perceptual_weight > 0:
            self.perceptual_loss = _perceptual_loss()
        self.discriminator = PatchDiscriminator(disc_in_channels, disc_num_layers)
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]
        self.register_buffer("logvar", torch.tensor(logvar_init))

    def train(self, mode: bool = True) -> LPIPSWithDiscriminator:
        """Set the mode of the discriminator; LPIPS stays in evaluation mode."""
        super().train(mode)
        if self.perceptual_loss is not None:
            self.perceptual_loss.eval()
        return self

    def forward(
        self,
        images: Tensor,
        decoded: Tensor,
        posterior: DiagonalGaussianDistribution,
        step: int = 0,
        last_layer: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum to minimize and its named parts, detached.

        Args:
            images: [b, c, h, w] in [−1, 1].
            decoded: like them.
            posterior: of the images' latents.
            step: optimizer steps taken.
            last_layer: the last weight of the decoder. There the adversarial gradient is made as
                large as that of the reconstruction; required while training.
        """
        error = self.pixel_weight * (images - decoded).abs()
        if self.perceptual_loss is not None:
            error = error + self.perceptual_weight * self.perceptual_loss(images, decoded)
        nll = (error / self.logvar.exp() + self.logvar).flatten(1).sum(1).mean()
        kl = posterior.kl().mean()
        loss = nll + self.kl_weight * kl
        parts = {"nll_loss": nll, "rec_loss": error.mean(), "kl_loss": kl}
        factor = self.disc_factor if step >= self.disc_start else 0.0
        if factor > 0:
            generator, discriminator, more = self._adversarial(images, decoded, nll, last_layer)
            loss = loss + factor * generator
            discriminator = factor * discriminator
            parts.update(more)
        else:
            # A gradient of zero: distributed training expects one for every weight.
            sums = [weight.sum() for weight in self.discriminator.parameters()]
            discriminator = 0.0 * torch.stack(sums).sum()
        parts |= {"total_loss": loss, "disc_loss": discriminator}
        parts["disc_factor"] = torch.tensor(factor)
        return loss + discriminator, {name: part.detach() for name, part in parts.items()}

    def _adversarial(
        self, images: Tensor, decoded: Tensor, nll: Tensor, last_layer: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the autoencoder's and the discriminator's terms, and parts to log."""
        fooled = -self.discriminator.frozen(decoded).mean()
        weight = torch.zeros(())
        if torch.is_grad_enabled() and last_layer is not None:
            weight = self.disc_weight * adaptive_weight(nll, fooled, last_layer)
        real, fake = self.discriminator(images), self.discriminator(decoded.detach())
        parts: dict[str, Any] = {"g_loss": fooled, "d_weight": weight}
        parts |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return weight * fooled, self.disc_loss(real, fake), parts


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return ‖∇nll‖ / (‖∇adversarial‖ + 10⁻⁴) at the decoder's last layer, at most 10⁴.

    Esser et al. 2021, equation 7.
    """
    norms = [
        torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
        for term in (nll, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()
