"""The text transformer of the 1.4B model: pre-normed, bidirectional, learned positions.

Attribute names (`attn_layers.layers.0.1.to_q`, `pos_emb.emb`, …) are those of published
checkpoints; a layer is the list [norm, function], attention and perceptron alternating.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ldm.modules.attention import CrossAttention, FeedForward

EmbeddingHook = Callable[[Tensor, Tensor], Tensor]


def known(ids: Tensor, table: Tensor) -> Tensor:
    """Return ids that a lookup in `table` [V, d] takes: an added token becomes token 0."""
    return torch.where(ids < len(table), ids, 0)


class AbsolutePositionalEmbedding(nn.Module):
    """A learned vector a position: [b, n, d] → [n, d]."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.emb.weight[: x.shape[1]]


class Attention(CrossAttention):
    """Multi-head self-attention whose output is one linear layer, without dropout."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__(dim, None, heads, dim_head)
        self.to_out = nn.Linear(heads * dim_head, dim)  # type: ignore[assignment]


class Encoder(nn.Module):
    """`depth` pairs of attention and perceptron, each x + f(norm(x))."""

    def __init__(self, dim: int, depth: int, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for function in (Attention(dim, heads, dim_head), FeedForward(dim)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), function]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            norm, function = cast(nn.ModuleList, layer)
            x = x + function(norm(x))
        return x


class TransformerWrapper(nn.Module):
    """Token ids → vectors → (the words' vectors spliced in) → positions → encoder → norm.

    Args:
        num_tokens: size of the vocabulary.
        max_seq_len: tokens in a row.
        attn_layers: the encoder.
        emb_dropout: dropped share of the embedded text while training.
    """

    def __init__(
        self, num_tokens: int, max_seq_len: int, attn_layers: Encoder, emb_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, attn_layers.dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.pos_emb = AbsolutePositionalEmbedding(attn_layers.dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(attn_layers.dim)
        # Never used to condition; published checkpoints carry it.
        self.to_logits = nn.Linear(attn_layers.dim, num_tokens)

    def forward(
        self,
        token_ids: Tensor,
        return_embeddings: bool = False,
        embedding_manager: EmbeddingHook | None = None,
    ) -> Tensor:
        """Encode ids [b, n] to vectors [b, n, d], or to logits [b, n, num_tokens]."""
        x = self.token_emb(known(token_ids, self.token_emb.weight))
        if embedding_manager is not None:
            x = embedding_manager(token_ids, x)
        x = self.norm(self.attn_layers(self.emb_dropout(x + self.pos_emb(x))))
        return x if return_embeddings else self.to_logits(x)
