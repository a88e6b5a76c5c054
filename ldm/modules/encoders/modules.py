"""Conditioners: text through BERT ids or CLIP, class labels, and images made smaller.

Class names are a public contract: YAML files name them. The text encoders share the protocol that
the embedding manager and the samplers use: `tokenize`, `word_ids`, `vocab_table`, `encode`, …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.base import AbstractEncoder, TextEncoder
from ldm.modules.encoders.clip import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.vocabulary import load_tokenizer
from ldm.modules.encoders.xl import FrozenXLEmbedder
from ldm.modules.x_transformer import EmbeddingHook, Encoder, TransformerWrapper
from ldm.util import UserError, at_least, one_of

__all__ = [
    "AbstractEncoder",
    "BERTEmbedder",
    "ClassEmbedder",
    "FrozenCLIPEmbedder",
    "FrozenOpenCLIPEmbedder",
    "FrozenXLEmbedder",
    "SpatialRescaler",
    "TextEncoder",
]


class ClassEmbedder(AbstractEncoder):
    """Class labels [b], under `key` in a batch → one vector each, [b, 1, embed_dim].

    Args:
        embed_dim: width of a vector.
        n_classes: number of classes.
        key: the batch's key for labels.
    """

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.key = key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Tensor] | Tensor, key: str | None = None) -> Tensor:
        """Embed the labels of a batch, or labels themselves."""
        labels = batch[key or self.key] if isinstance(batch, Mapping) else batch
        return self.embedding(labels[:, None])

    def encode(self, condition: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Encode a batch; the same as calling the module."""
        return self(condition)


class SpatialRescaler(AbstractEncoder):
    """Images [b, c, h, w] scaled `n_stages` times, then mapped to `out_channels`.

    Args:
        n_stages: how often images are scaled, at least 0.
        method: method of interpolation, one of `METHODS`.
        multiplier: factor of both sides at each stage.
        in_channels: channels of the images.
        out_channels: channels of the result; by default those of the images.
        bias: whether the map to `out_channels` adds a bias.
    """

    METHODS = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        at_least(0, n_stages=n_stages)
        one_of(self.METHODS, method=method)
        self.n_stages = n_stages
        self.rescale = partial(F.interpolate, scale_factor=multiplier, mode=method)
        self.channel_mapper = (
            nn.Identity()
            if out_channels is None
            else nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n_stages):
            x = self.rescale(x)
        return self.channel_mapper(x)

    def encode(self, condition: Tensor) -> Tensor:
        """Encode a batch; the same as calling the module."""
        return self(condition)


class BERTEmbedder(TextEncoder):
    """BERT's WordPiece ids through a transformer trained with the diffusion model.

    Args:
        n_embed: width of the transformer and of a word's vectors.
        n_layer: pairs of attention and perceptron.
        vocab_size: number of tokens; bert-base-uncased has 30522.
        max_seq_len: tokens in a row. There is no mask: the 1.4B model attends to padding.
        embedding_dropout: share of the embedded text dropped while training.
        tokenizer: a hub name, or a folder with `vocab.txt`.
        heads: heads of attention; the published model has 8.
        dim_head: width of a head; the published model has 64.
        use_tokenizer: false if conditions are token ids already, such as layouts of boxes.
        device: accepted for old configurations; the encoder follows its module's device.
    """

    family = "ldm-bert"

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str | None = None,  # noqa: ARG002
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        tokenizer: str = "bert-base-uncased",
        heads: int = 8,
        dim_head: int = 64,
    ) -> None:
        super().__init__(load_tokenizer("BertTokenizerFast", tokenizer) if use_tokenizer else None)
        if use_tokenizer and len(self.tokenizer) > vocab_size:
            raise UserError(
                f"tokenizer {tokenizer!r} has {len(self.tokenizer)} entries, "
                f"more than vocab_size {vocab_size}: give the one that belongs to the weights"
            )
        self.max_length, self.width = max_seq_len, n_embed
        self.transformer = TransformerWrapper(
            vocab_size, max_seq_len, Encoder(n_embed, n_layer, heads, dim_head), embedding_dropout
        )

    @property
    def vocab_table(self) -> Tensor:
        """The vocabulary's vectors: [vocab_size, n_embed]."""
        return self.transformer.token_emb.weight

    @property
    def tknz_fn(self) -> Callable[[str | Sequence[str]], Tensor]:
        """The original's name of `tokenize`."""
        return self.tokenize

    @property
    def unknown_id(self) -> int | None:
        """Id of [UNK]."""
        return None if self.tokenizer is None else int(self.tokenizer.unk_token_id)

    def embed(
        self, ids: Tensor, embedding_manager: EmbeddingHook | None, clip_skip: int = 1
    ) -> Tensor:
        """Encode ids [b, n] to [b, n, n_embed]."""
        if clip_skip != 1:
            raise UserError(f"clip_skip needs a CLIP text encoder, got {clip_skip} for BERT")
        return self.transformer(ids, True, embedding_manager)
