"""Conditioners: text through BERT ids or CLIP, class labels, and images made smaller.

Class names are a public contract: YAML files name them. The two text encoders share the protocol
that the embedding manager and the samplers use: `tokenize`, `word_ids`, `vocab_table`, `encode`, …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.vocabulary import load_tokenizer
from ldm.modules.x_transformer import EmbeddingHook, Encoder, TransformerWrapper
from ldm.util import UserError
from ldm.words.placeholders import separate


class AbstractEncoder(nn.Module):
    """A conditioner: `encode(condition)` gives a tensor."""

    def encode(self, condition: Any) -> Tensor:
        """Encode a batch of conditions."""
        raise NotImplementedError


class ClassEmbedder(AbstractEncoder):
    """Class labels [b] → one vector each, [b, 1, embed_dim].

    Args:
        key: key of the labels in a batch.
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
    """Images [b, c, h, w] scaled `n_stages` times, then mapped to `out_channels`."""

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
        if n_stages < 0:
            raise ValueError(f"n_stages must be at least 0, got {n_stages}")
        if method not in self.METHODS:
            raise ValueError(f"method must be one of {self.METHODS}, got {method!r}")
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


class TextEncoder(AbstractEncoder):
    """The common part of the text encoders: a tokenizer, and questions about words.

    Attributes:
        family: which vocabulary and width a word's vectors belong to.
        width: of a token's vector.
        max_length: tokens in a row; texts are padded or cut to it.
        placeholders: of the words in use; each is separated from its neighbours in a text.
    """

    family: str
    width: int
    max_length: int

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.placeholders: tuple[str, ...] = ()

    @property
    def vocab_table(self) -> Tensor:
        """The token vectors of the vocabulary, without positions: [vocabulary, width]."""
        raise NotImplementedError

    @property
    def unknown_id(self) -> int | None:
        """Id of unknown words; None if every text has ids of its own."""
        raise NotImplementedError

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text: start, end, padding, unknown."""
        return frozenset(() if self.tokenizer is None else self.tokenizer.all_special_ids)

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self.vocab_table.device

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Return ids, padded and cut: int64 [b, max_length], on the encoder's device.

        A single text is a batch of one.
        """
        if self.tokenizer is None:
            raise ValueError(f"built with use_tokenizer: false, so give token ids, got {texts!r}")
        texts = [texts] if isinstance(texts, str) else texts
        ids = self.tokenizer(
            [separate(text, self.placeholders) for text in texts],
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
        )["input_ids"]
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens before cutting, special ones included."""
        text = separate(text, self.placeholders)
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def word_ids(self, word: str) -> list[int]:
        """Return the ids of a word or words, without special tokens."""
        word = separate(word, self.placeholders)
        return list(self.tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])

    def text_from(self, text: str, token: int) -> str:
        """Return the end of a text, from one of its tokens on; special tokens do not count."""
        text = separate(text, self.placeholders)
        read = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return text[read["offset_mapping"][token][0] :]

    def embed(self, ids: Tensor, embedding_manager: EmbeddingHook | None) -> Tensor:
        """Encode ids [b, n] to [b, n, width]."""
        raise NotImplementedError

    def forward(
        self, texts: str | Sequence[str] | Tensor, embedding_manager: EmbeddingHook | None = None
    ) -> Tensor:
        """Encode texts to [b, max_length, width].

        Args:
            texts: or their token ids [b, n].
            embedding_manager: takes ids and token vectors, and returns the vectors to use instead;
                called before positions are added (paper, section 3).
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return self.embed(ids, embedding_manager)

    def encode(
        self,
        condition: str | Sequence[str] | Tensor,
        embedding_manager: EmbeddingHook | None = None,
    ) -> Tensor:
        """Encode a batch; the same as calling the module."""
        return self(condition, embedding_manager)


class BERTEmbedder(TextEncoder):
    """BERT's WordPiece ids through a transformer trained with the diffusion model.

    Args:
        n_embed: width of the transformer and of a word's vectors.
        n_layer: pairs of attention and perceptron.
        vocab_size: 30522 for bert-base-uncased.
        max_seq_len: tokens in a row. There is no mask: the 1.4B model attends to padding.
        embedding_dropout: share of the embedded text dropped while training.
        tokenizer: a hub name, or a folder with `vocab.txt`.
        heads, dim_head: of attention; the published model has 8 of 64.
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
                f"more than vocab_size {vocab_size}"
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
    def unknown_id(self) -> int | None:
        """Id of [UNK]."""
        return None if self.tokenizer is None else int(self.tokenizer.unk_token_id)

    def embed(self, ids: Tensor, embedding_manager: EmbeddingHook | None) -> Tensor:
        """Encode ids [b, n] to [b, n, n_embed]."""
        return self.transformer(ids, True, embedding_manager)


def _accept_both_clip_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Rename a file's CLIP entries to the installed `transformers`, before they are loaded.

    Old versions keep the encoder below `text_model.`, new ones do not.
    """
    nested = f"{prefix}text_model."
    ours_nested = any(name.startswith("text_model.") for name, _ in module.named_parameters())
    for name in [n for n in state if n.startswith(prefix)]:
        if name.startswith(nested) == ours_nested:
            continue
        renamed = name.replace(nested, prefix) if not ours_nested else nested + name[len(prefix) :]
        state[renamed] = state.pop(name)


class FrozenCLIPEmbedder(TextEncoder):
    """CLIP's text encoder: the last hidden state; by default ViT-L/14 as in Stable Diffusion 1.

    Its weights come with the checkpoint of the diffusion model.

    Args:
        version: hub name of the vocabulary.
        tokenizer: a folder or hub name to use instead of `version`.
        max_length: tokens in a row.
        width, layers, heads, vocab_size: sizes of the network.
        hidden_act: the perceptron's activation, by its name in `transformers`.
        device: accepted for old configurations; the encoder follows its module's device.
    """

    family = "clip"

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = None,  # noqa: ARG002
        max_length: int = 77,
        tokenizer: str | None = None,
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        vocab_size: int = 49408,
        hidden_act: str = "quick_gelu",
    ) -> None:
        super().__init__(load_tokenizer("CLIPTokenizerFast", tokenizer or version))
        if len(self.tokenizer) > vocab_size:
            raise UserError(
                f"tokenizer {tokenizer or version!r} has {len(self.tokenizer)} entries, "
                f"more than vocab_size {vocab_size}"
            )
        from transformers import CLIPTextConfig, CLIPTextModel

        self.max_length, self.width = max_length, width
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=hidden_act,
            max_position_embeddings=max_length,
            vocab_size=vocab_size,
            eos_token_id=vocab_size - 1,
            bos_token_id=vocab_size - 2,
        )
        self.transformer = CLIPTextModel(config)
        self.transformer.register_load_state_dict_pre_hook(_accept_both_clip_names)  # type: ignore[no-untyped-call]
        self.freeze()

    def freeze(self) -> None:
        """Set evaluation mode, without gradients for the weights."""
        self.eval()
        self.requires_grad_(False)

    @property
    def _token_embedding(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    @property
    def vocab_table(self) -> Tensor:
        """The vocabulary's vectors: [vocab_size, width]."""
        return cast(Tensor, self._token_embedding.weight)

    @property
    def unknown_id(self) -> int | None:
        """None: CLIP spells out unknown words."""
        return None

    def embed(self, ids: Tensor, embedding_manager: EmbeddingHook | None) -> Tensor:
        """Encode ids [b, n] to [b, n, width]."""
        if embedding_manager is None:
            return self.transformer(input_ids=ids).last_hidden_state
        manager = embedding_manager

        def splice(_: nn.Module, inputs: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
            return manager(inputs[0], vectors)

        # `transformers` takes no token vectors here. A hook on the lookup replaces them, before
        # positions are added.
        handle = self._token_embedding.register_forward_hook(splice)
        try:
            return self.transformer(input_ids=ids).last_hidden_state
        finally:
            handle.remove()
