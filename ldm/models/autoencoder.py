"""First stages: the KL and VQ autoencoders, and the identity.

State-dict names (`encoder.*`, `decoder.*`, `quant_conv`, `post_quant_conv`, `quantize.*`) are a
public contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.base import TrainedModel
from ldm.models.diffusion.batch_noise import BatchNoise
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import UserError, check_arguments, instantiate_from_config


class Autoencoder(TrainedModel):
    """The common part of the KL and VQ autoencoders: networks, batches and optimizer.

    Args:
        ddconfig: arguments of `Encoder` and `Decoder`.
        lossconfig: target and params of the training loss; `torch.nn.Identity` for use without
            training.
        embed_dim: channels of the latent.
        image_key: the batch's key for images, [b, h, w, c] in [−1, 1].
        monitor: the logged value that picks the best checkpoint.
        ema_decay: keep averaged weights, with this decay, and validate with them; default: none.
        scheduler_config: target and params of a learning-rate multiplier.
        betas: β₁ and β₂ of Adam; by default those of the published autoencoders, for adversarial
            training.
        ckpt_path: a file with this autoencoder's weights.
        ignore_keys: prefixes of the file's names to leave out.
        freeze_encoder: train the decoder alone, so that the latents stay as they are.
    """

    learning_rate = 4.5e-6
    quant_conv: nn.Module

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        image_key: str = "image",
        monitor: str | None = None,
        ema_decay: float | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        betas: Sequence[float] = (0.5, 0.9),
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.freeze_encoder = freeze_encoder
        self.embed_dim, self.image_key, self.monitor = embed_dim, image_key, monitor
        self.betas, self.ckpt_path, self.ignore_keys = betas, ckpt_path, tuple(ignore_keys)
        self.ema_decay, self.scheduler_config = ema_decay, scheduler_config
        check_arguments("ddconfig", Encoder, ddconfig)
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        self.downsampling = 2 ** (len(self.encoder.down) - 1)

    def finish(self) -> None:
        """Read the file of weights and start the averaged weights, once all weights exist."""
        if self.ckpt_path is not None:
            self.read_weights(self.ckpt_path, self.ignore_keys)
        if self.freeze_encoder:
            self.encoder.requires_grad_(False)
            self.quant_conv.requires_grad_(False)
        self.model_ema = LitEma(self, self.ema_decay) if self.ema_decay is not None else None

    @property
    def averaged_network(self) -> nn.Module:
        """The whole autoencoder."""
        return self

    def images(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the batch's images, [b, c, h, w] in [−1, 1]."""
        return rearrange(batch[self.image_key], "b h w c -> b c h w").float().contiguous()

    def batch_noise(self) -> BatchNoise:
        """Return the function that samples the random numbers of this model's batches."""
        return BatchNoise(self.seed, self.embed_dim, self.downsampling, self.image_key)

    def configure_optimizers(self) -> Any:
        """Return Adam with `betas`, and the schedule if there is one."""
        weights = [p for p in self.parameters() if p.requires_grad]
        first, second = self.betas
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate, betas=(first, second))
        return self.scheduled(optimizer)


class AutoencoderKL(Autoencoder):
    """Autoencoder with a Gaussian posterior."""

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        **options: Any,
    ) -> None:
        super().__init__(ddconfig, lossconfig, embed_dim, **options)
        if not ddconfig.get("double_z", True):
            raise ValueError("AutoencoderKL needs ddconfig.double_z: true, got false")
        z = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(2 * z, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1)
        self.finish()

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Return the posterior over [b, embed_dim, h/f, w/f] of images [b, 3, h, w] in [−1, 1]."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Return images [b, 3, f·h, f·w], in about [−1, 1], of latents [b, embed_dim, h, w]."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        """Return the reconstruction of a sampled latent, and the posterior."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior

    def _step(self, batch: Mapping[str, Any], split: str) -> Tensor:
        x = self.images(batch)
        posterior = self.encode(x)
        decoded = self.decode(posterior.sample(batch.get("posterior_noise")))
        loss, parts = self.loss(x, decoded.float(), posterior, **self._progress())
        self.log_dict({f"{split}/{k}": v for k, v in parts.items()}, batch_size=len(x))
        self.log(f"{split}/loss", loss.detach(), prog_bar=True, batch_size=len(x))
        return loss

    def _progress(self) -> dict[str, Any]:
        """Return the further arguments of an adversarial loss."""
        if not getattr(self.loss, "adversarial", False):
            return {}
        return {"step": self.global_step, "last_layer": self.decoder.last_layer}

    def on_fit_start(self) -> None:
        """Refuse to train without a loss."""
        if isinstance(self.loss, nn.Identity):
            raise UserError(
                "lossconfig.target torch.nn.Identity is for using an autoencoder; to train one, "
                "name ldm.modules.losses.KLReconstruction or LPIPSWithDiscriminator"
            )

    def training_step(self, batch: Mapping[str, Any], _batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Mapping[str, Any], _batch_idx: int) -> Tensor:
        """Log the loss of a held-out batch; its noise is a function of the sample index."""
        with self.ema_scope():
            return self._step(batch, "val")

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return `inputs` and `reconstruction` (the posterior's mean decoded), [b, 3, h, w]."""
        x = self.images(batch).to(self.device)
        return {"inputs": x, "reconstruction": self.decode(self.encode(x).mode())}


def _vector_quantizer(n_embed: int, embed_dim: int, **options: Any) -> nn.Module:
    try:
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError as error:
        raise UserError(
            "a VQ autoencoder needs the package taming-transformers, which is not importable "
            f"({error}); install it with: pip install taming-transformers-rom1504 torchvision"
        ) from error
    return VectorQuantizer2(n_embed, embed_dim, beta=0.25, **options)


class VQModel(Autoencoder):
    """Autoencoder with a codebook of `n_embed` vectors, from taming-transformers.

    Args:
        n_embed: entries of the codebook.
        remap: file that maps indices of the codebook to those in use, for the quantizer.
        sane_index_shape: whether the quantizer returns indices as [b, h, w].
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        remap: str | None = None,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(ddconfig, lossconfig, embed_dim, **options)
        z = ddconfig["z_channels"]
        self.quantize = _vector_quantizer(
            n_embed, embed_dim, remap=remap, sane_index_shape=sane_index_shape
        )
        self.quant_conv = nn.Conv2d(z, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1)
        self.finish()

    def encode(self, x: Tensor) -> Any:
        """Return the quantized latent, the codebook loss and the indices, of [b, 3, h, w]."""
        return self.quantize(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Return images of quantized latents [b, embed_dim, h, w]."""
        return self.decoder(self.post_quant_conv(z))


class VQModelInterface(VQModel):
    """A VQ autoencoder as first stage: diffusion runs before quantization, decoding after it."""

    def encode(self, x: Tensor) -> Tensor:
        """Return latents before quantization, [b, embed_dim, h, w], of images [b, 3, h, w]."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Return images of latents, through the nearest codebook entries by default."""
        return super().decode(z if force_not_quantize else self.quantize(z)[0])


class IdentityFirstStage(nn.Module):
    """No first stage: the latents are the images."""

    downsampling = 1

    def encode(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


__all__: Sequence[str] = ("AutoencoderKL", "IdentityFirstStage", "VQModel", "VQModelInterface")
