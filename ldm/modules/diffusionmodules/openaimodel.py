"""The denoising U-Net, after "Diffusion Models Beat GANs" with text read by cross-attention.

`UNetModel` and its attribute names are a public contract: YAML files name the class, checkpoints
the attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    timestep_embedding,
    zero_module,
)


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row; each is handed what it takes of the time embedding and the context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then (`use_conv`) a 3×3 convolution."""

    def __init__(self, channels: int, use_conv: bool, dims: int, out_channels: int) -> None:
        super().__init__()
        if use_conv:
            self.conv = conv_nd(dims, channels, out_channels, 3, padding=1)
        self.use_conv = use_conv

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halving by a strided convolution (`use_conv`) or by averaging."""

    def __init__(self, channels: int, use_conv: bool, dims: int, out_channels: int) -> None:
        super().__init__()
        self.op = (
            conv_nd(dims, channels, out_channels, 3, stride=2, padding=1)
            if use_conv
            else avg_pool_nd(dims, kernel_size=2, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding.

    Args:
        use_scale_shift_norm: the embedding scales and shifts the second norm, instead of being
            added before it.
        up, down: also double or halve the map.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        dims: int = 2,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.updown = up or down
        self.in_layers = nn.Sequential(
            GroupNorm32(num_groups, channels),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1),
        )
        resize = Upsample if up else Downsample
        self.h_upd = resize(channels, False, dims, channels) if self.updown else nn.Identity()
        self.x_upd = resize(channels, False, dims, channels) if self.updown else nn.Identity()
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(num_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        if out_channels == channels:
            self.skip_connection: nn.Module = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, out_channels, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [b, channels, h, w] and embedding [b, emb_channels] → [b, out_channels, h', w']."""
        return checkpoint(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        h, x = self.h_upd(h), self.x_upd(x)
        h = self.in_layers[2](h)
        e = self.emb_layers(emb).to(h.dtype)
        e = e.reshape(*e.shape, *[1] * (h.ndim - 2))
        if self.use_scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over a map's positions, for models without a text context.

    Args:
        use_new_attention_order: split the projection into q, k, v first and heads second; published
            models without it split into heads first.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.num_heads, self.use_checkpoint = num_heads, use_checkpoint
        self.order = (
            "b (k h d) n -> k b h n d" if use_new_attention_order else "b (h k d) n -> k b h n d"
        )
        self.norm = GroupNorm32(num_groups, channels)
        self.qkv = conv_nd(1, channels, 3 * channels, 1)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._forward, self.use_checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = rearrange(self.qkv(self.norm(flat)), self.order, k=3, h=self.num_heads)
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b (h d) n")
        return (flat + self.proj_out(h)).reshape(x.shape)


class UNetModel(nn.Module):
    """U-Net predicting a latent's noise from time, and from text or class where given.

    Args:
        image_size: side of the latent; kept for configurations, the network takes any side.
        in_channels, out_channels: of the latent.
        model_channels: width of the first level; level i has model_channels · channel_mult[i].
        attention_resolutions: downsampling factors at which attention follows each block.
        num_heads, num_head_channels: of attention; give one, −1 leaves it to the other.
        context_dim: width of the context; needs `use_spatial_transformer`.
        num_classes: adds an embedding of class labels.
        legacy: heads of width channels // num_heads also where `num_head_channels` is given, with
            the spatial transformer.
        n_embed: predict `n_embed` codebook entries in place of noise.
        num_groups: of every GroupNorm; published models have 32.
        use_fp16: must be false: precision belongs to the trainer or the sampler.

    Raises:
        ValueError: heads that cannot be worked out, or a context without a transformer to read it.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        _check_heads(num_heads, num_head_channels, use_spatial_transformer, context_dim)
        if use_fp16:
            raise ValueError("use_fp16 must be false: set the trainer's or sampler's precision")
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.num_classes = model_channels, num_classes
        self.predict_codebook_ids = n_embed is not None
        emb_dim = model_channels * 4
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_dim)

        def res(cin: int, cout: int, **resize: bool) -> ResBlock:
            return ResBlock(
                cin,
                emb_dim,
                dropout,
                cout,
                dims=dims,
                use_checkpoint=use_checkpoint,
                use_scale_shift_norm=use_scale_shift_norm,
                num_groups=num_groups,
                **resize,
            )

        def attend(width: int, heads: int) -> nn.Module:
            if num_head_channels == -1:
                dim_head = width // heads
            else:
                heads, dim_head = width // num_head_channels, num_head_channels
            if not use_spatial_transformer:
                return AttentionBlock(
                    width, heads, use_checkpoint, use_new_attention_order, num_groups
                )
            if legacy:
                dim_head = width // heads
            return SpatialTransformer(
                width,
                heads,
                dim_head,
                transformer_depth,
                0.0,
                context_dim,
                use_checkpoint,
                num_groups,
            )

        widths = [model_channels * mult for mult in channel_mult]
        attended = set(attention_resolutions)
        heads_up = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.input_blocks = nn.ModuleList(
            [TimestepEmbedSequential(conv_nd(dims, in_channels, model_channels, 3, padding=1))]
        )
        skips, width, factor = [model_channels], model_channels, 1
        for level, wide in enumerate(widths):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(width, wide)]
                width = wide
                if factor in attended:
                    layers.append(attend(width, num_heads))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(width)
            if level < len(widths) - 1:
                down = (
                    res(width, width, down=True)
                    if resblock_updown
                    else Downsample(width, conv_resample, dims, width)
                )
                self.input_blocks.append(TimestepEmbedSequential(down))
                skips.append(width)
                factor *= 2
        self.middle_block = TimestepEmbedSequential(
            res(width, width), attend(width, num_heads), res(width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [res(width + skips.pop(), wide)]
                width = wide
                if factor in attended:
                    layers.append(attend(width, heads_up))
                if level > 0 and i == num_res_blocks:
                    layers.append(
                        res(width, width, up=True)
                        if resblock_updown
                        else Upsample(width, conv_resample, dims, width)
                    )
                    factor //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(
            GroupNorm32(num_groups, width),
            nn.SiLU(),
            zero_module(conv_nd(dims, width, out_channels, 3, padding=1)),
        )
        if n_embed is not None:
            self.id_predictor = nn.Sequential(
                GroupNorm32(num_groups, width), conv_nd(dims, width, n_embed, 1)
            )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: noisy latents [b, in_channels, h, w].
            timesteps: [b], in [0, num_timesteps).
            context: [b, n, context_dim], read by cross-attention.
            y: class labels [b]; required if and only if `num_classes` was given.

        Returns:
            [b, out_channels, h, w].
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError(
                f"y must be given exactly where num_classes is, got num_classes={self.num_classes}"
            )
        sinusoids = timestep_embedding(timesteps, self.model_channels)
        emb = self.time_embed(sinusoids.to(self.time_embed[0].weight.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        hs, h = [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.id_predictor(h) if self.predict_codebook_ids else self.out(h)


def _check_heads(
    num_heads: int, num_head_channels: int, spatial_transformer: bool, context_dim: Any
) -> None:
    if num_heads == -1 and num_head_channels == -1:
        raise ValueError("give num_heads or num_head_channels, got -1 for both")
    if spatial_transformer and context_dim is None:
        raise ValueError("use_spatial_transformer needs context_dim, got none")
    if context_dim is not None and not spatial_transformer:
        raise ValueError(
            f"context_dim {context_dim} needs use_spatial_transformer: true, got false"
        )
