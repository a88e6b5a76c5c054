"""What the conditioners share: the base class, and the common part of the text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.x_transformer import EmbeddingHook
from ldm.words.placeholders import split


class AbstractEncoder(nn.Module):
    """A conditioner: `encode(condition)` gives a tensor."""

    def encode(self, condition: Any) -> Any:
        """Encode a batch of conditions."""
        raise NotImplementedError


class TextEncoder(AbstractEncoder):
    """The common part of the text encoders: the tokenizer and methods about words.

    Attributes:
        family: which vocabulary and width a word's vectors belong to.
        width: size of a token's vector.
        max_length: tokens in a row; texts are padded or cut to it.
        padding_id: id that fills a row; None takes the tokenizer's.
        placeholders: the words in use and their token ids. A text is split at them before it is
            tokenized, so that no tokenizer joins a placeholder to its neighbors. An id beyond the
            vocabulary is an added token: the embedding manager brings its vectors.
        reads_size: whether `encode` takes the image's size (SDXL).
    """

    family: str
    width: int
    max_length: int
    padding_id: int | None = None
    reads_size = False

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.placeholders: Mapping[str, int] = {}

    @property
    def widths(self) -> tuple[int, int] | None:
        """Widths of a word's parts for two text encoders (SDXL); None for one."""
        return None

    @property
    def vocab_table(self) -> Tensor:
        """The token vectors of the vocabulary, without positions: [vocabulary, width]."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary; ids from here on are added tokens."""
        return len(self.vocab_table)

    @property
    def unknown_id(self) -> int | None:
        """Id of unknown words; None if every text has ids of its own."""
        raise NotImplementedError

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text: start, end, padding, unknown."""
        if self.tokenizer is None:
            return frozenset()
        return frozenset({*self.tokenizer.all_special_ids, self.frame[2]})

    @property
    def frame(self) -> tuple[int, int, int]:
        """The ids that start a row, end its text and fill it."""
        start, end = self.tokenizer("")["input_ids"]
        filling = self.tokenizer.pad_token_id if self.padding_id is None else self.padding_id
        return start, end, filling

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self.vocab_table.device

    def token_vectors(self, ids: Sequence[int]) -> Tensor:
        """Return the vocabulary's vectors of n ids: [n, width]."""
        return self.vocab_table[list(ids)]

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Return ids, padded and cut: int64 [b, max_length], on the encoder's device.

        A single text is a batch of one.
        """
        if self.tokenizer is None:
            raise ValueError(f"built with use_tokenizer: false, so give token ids, got {texts!r}")
        start, end, filling = self.frame
        rows = torch.full((1 if isinstance(texts, str) else len(texts), self.max_length), filling)
        for row, text in zip(rows, [texts] if isinstance(texts, str) else texts, strict=True):
            ids = [start, *self.word_ids(text)[: self.max_length - 2], end]
            row[: len(ids)] = torch.tensor(ids)
        return rows.to(self.device)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens before cutting, special ones included."""
        return len(self.word_ids(text)) + 2

    def word_ids(self, word: str) -> list[int]:
        """Return the ids of a word or words, without special tokens."""
        return [token for token, _ in self._tokens(word)]

    def text_from(self, text: str, token: int) -> str:
        """Return the end of a text, from one of its tokens on; special tokens do not count."""
        return text[self._tokens(text)[token][1] :]

    def _tokens(self, text: str) -> list[tuple[int, int]]:
        """Return each token's id and its place in the text, without special tokens."""
        found: list[tuple[int, int]] = []
        place = 0
        for piece, placeholder in split(text, self.placeholders):
            if placeholder is not None:
                found.append((self.placeholders[placeholder], place))
            elif piece.strip():
                read = self.tokenizer(
                    piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )
                starts = (place + start for start, _ in read["offset_mapping"])
                found += zip(read["input_ids"], starts, strict=True)
            place += len(piece)
        return found

    def embed(self, ids: Tensor, embedding_manager: EmbeddingHook | None) -> Any:
        """Encode ids [b, n] to [b, n, width]."""
        raise NotImplementedError

    def forward(
        self,
        texts: str | Sequence[str] | Tensor,
        embedding_manager: EmbeddingHook | None = None,
        **options: Any,
    ) -> Any:
        """Encode texts to [b, max_length, width].

        Args:
            texts: or their token ids [b, n].
            embedding_manager: takes ids and token vectors, and returns the vectors to use instead;
                called before positions are added (paper, section 3).
            options: further arguments of the encoder's `embed`.
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return self.embed(ids, embedding_manager, **options)

    def encode(
        self,
        condition: str | Sequence[str] | Tensor,
        embedding_manager: EmbeddingHook | None = None,
        **options: Any,
    ) -> Any:
        """Encode a batch; the same as calling the module."""
        return self(condition, embedding_manager, **options)
