"""The blocks of the denoising U-Net: residual, attending, resizing.

Attribute names (`in_layers.0`, `emb_layers.1`, `qkv`, …) are those of published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    avg_pool_nd,
    checkpoint,
    conv_nd,
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
