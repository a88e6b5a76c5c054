"""Attention of the U-Net: a transformer over a feature map's positions, reading a context.

Attribute names (`transformer_blocks.0.attn2.to_k`, `ff.net.0.proj`, …) are those of published
checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import checkpoint, zero_module


class GEGLU(nn.Module):
    """Linear layer in which one half gates the other: [..., dim_in] → [..., dim_out]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron of inner width `dim · mult`, gated (`glu`) or with GELU."""

    def __init__(self, dim: int, mult: int = 4, glu: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        inner = dim * mult
        first = GEGLU(dim, inner) if glu else nn.Sequential(nn.Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(first, nn.Dropout(dropout), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention of queries [b, n, query_dim] over a context [b, m, context_dim].

    Without a context it attends to the queries themselves.

    Attributes:
        kept: None, or a list that keeps the last context with its keys and values, so that they are
            computed once for a context; see `constant_context`.
    """

    kept: list[Tensor] | None = None

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend; `mask` [b, m] is true at the context's positions that may be seen."""
        q = self._by_head(self.to_q(x))
        k, v = self._keys_and_values(x if context is None else context)
        mask = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
        if q.dtype is torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
            # The backward pass of torch's CPU kernel is ten times faster in float32.
            with torch.autocast("cpu", enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
            out = out.to(q.dtype)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.kept and self.kept[0] is context:
            return self.kept[1], self.kept[2]
        k, v = self._by_head(self.to_k(context)), self._by_head(self.to_v(context))
        if self.kept is not None:
            self.kept[:] = [context, k, v]
        return k, v


@contextmanager
def constant_context(network: nn.Module) -> Iterator[None]:
    """Return a context manager in which attention to a text computes keys and values once.

    Within it the weights of the network and the values of the context must not change.
    """
    readers = [m.attn2 for m in network.modules() if isinstance(m, BasicTransformerBlock)]
    for reader in readers:
        reader.kept = []
    try:
        yield
    finally:
        for reader in readers:
            reader.kept = None


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, and a perceptron, each pre-normed and residual."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        use_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, n_heads, d_head, dropout)
        self.ff = FeedForward(dim, glu=gated_ff, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return checkpoint(self._forward, self.use_checkpoint, x, context)

    def _forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the h·w positions of a feature map [b, in_channels, h, w], residual.

    Args:
        depth: number of blocks.
        context_dim: width of the context [b, m, context_dim]; None attends to the map alone.
        num_groups: groups of the normalization before the projection.
        use_linear: project by linear layers, not by 1×1 convolutions; the function is the same.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        use_checkpoint: bool = True,
        num_groups: int = 32,
        use_linear: bool = False,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        self.use_linear = use_linear
        self.norm = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.proj_in = _projection(in_channels, inner, use_linear)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner, n_heads, d_head, dropout, context_dim, use_checkpoint=use_checkpoint
            )
            for _ in range(depth)
        )
        self.proj_out = zero_module(_projection(inner, in_channels, use_linear))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        if self.use_linear:
            h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
        else:
            h = rearrange(self.proj_in(h), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]).contiguous()
        return x + (h if self.use_linear else self.proj_out(h))


def _projection(cin: int, cout: int, linear: bool) -> nn.Module:
    return nn.Linear(cin, cout) if linear else nn.Conv2d(cin, cout, 1)
