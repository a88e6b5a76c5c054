"""What the words need of a text encoder, and the checks of words against its vocabulary."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.util import UserError, quote
from ldm.words.placeholders import split

logger = logging.getLogger(__name__)

INITIALIZER_MODES = ("mean", "sequence")


class TextEmbedder(Protocol):
    """The part of a text encoder that words are made from.

    `vocab_table` is the token embedding [vocab_size, width], without positions. `token_vectors`
    gives rows of it. `unknown_id` is the id that text outside the vocabulary becomes, None if the
    tokenizer knows every byte (CLIP). `widths` are those of a word's two parts if there are two
    text encoders (SDXL). `special_ids` are the tokens that are no text, such as padding.
    `placeholders` are the words in use and their token ids; the encoder splits a text at them
    before it tokenizes. `tokenizer` is one of `transformers`.
    """

    tokenizer: Any
    placeholders: Mapping[str, int]
    max_length: int
    family: str
    width: int

    @property
    def widths(self) -> tuple[int, int] | None: ...
    @property
    def unknown_id(self) -> int | None: ...
    @property
    def special_ids(self) -> Collection[int]: ...
    @property
    def vocab_table(self) -> Tensor: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def token_vectors(self, ids: Sequence[int]) -> Tensor: ...
    def count_tokens(self, text: str) -> int: ...
    def word_ids(self, word: str) -> list[int]: ...
    def text_from(self, text: str, token: int) -> str: ...


def whole_words(tokenizer: Any) -> list[str]:
    """Return the words of three letters or more that are one token, in the vocabulary's order."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if any(token.endswith("</w>") for token, _ in vocabulary):  # CLIP marks the end of a word
        found = [token.removesuffix("</w>") for token, _ in vocabulary if token.endswith("</w>")]
    else:
        found = [token for token, _ in vocabulary]  # BERT's ## marks the middle of one
    return [word for word in found if re.fullmatch("[a-z]{3,}", word)]


def placeholder_id(embedder: TextEmbedder, placeholder: str, others: Mapping[str, int]) -> int:
    """Return the token id that stands for `placeholder`.

    A placeholder that is one known token has the id of that token. Any other, such as `<cat-toy>`,
    becomes an added token with a free id beyond the vocabulary, as in diffusers. `others` are
    placeholders in use → their token ids.

    Raises UserError for a placeholder that is empty, has a space, is a special token, or is the
    token of another placeholder.
    """
    advice = "choose a symbol that captions do not use, such as * or <my-cat>"
    if not placeholder or any(character.isspace() for character in placeholder):
        raise UserError(f"placeholder {placeholder!r} is empty or has a space in it: {advice}")
    ids = embedder.word_ids(placeholder)
    vocabulary = f"the {embedder.family} vocabulary"
    if len(ids) != 1 or ids[0] == embedder.unknown_id:
        return max([embedder.vocab_size, *(token + 1 for token in others.values())])
    if ids[0] in embedder.special_ids:
        raise UserError(
            f"placeholder {placeholder!r} is a special token of {vocabulary}, which every prompt "
            f"may contain: {advice}"
        )
    same = [other for other, taken in others.items() if taken == ids[0]]
    if same:
        raise UserError(
            f"placeholders {same[0]!r} and {placeholder!r} are the same token of {vocabulary}: "
            "choose another for one of them"
        )
    if len(placeholder) > 1 and placeholder.isalnum() and ids[0] < embedder.vocab_size:
        logger.warning(
            "placeholder %r is a word of %s: while the learned word is loaded, prompts lose that "
            "word's own meaning",
            placeholder,
            vocabulary,
        )
    return ids[0]


def initializer_ids(embedder: TextEmbedder, word: str, vectors: int, mode: str) -> list[int]:
    """Return the token ids of an initializer word of one or several tokens.

    Raises UserError where the vocabulary does not know the word, or a part of it; or `mode` is
    "sequence" and there are more tokens than `vectors`.
    """
    ids = embedder.word_ids(word)
    if not ids or embedder.unknown_id in ids or max(ids) >= embedder.vocab_size:
        raise UserError(
            f"initializer word {word!r} is unknown to the {embedder.family} vocabulary: choose a "
            "common word for the object, such as 'cat' or 'sculpture'"
        )
    if mode == "sequence" and len(ids) > vectors:
        raise UserError(
            f"initializer word {word!r} has {len(ids)} tokens: initializer_mode 'sequence' needs "
            f"as many vectors, got {vectors}; raise num_vectors_per_token or use 'mean'"
        )
    return ids


def initializer_vectors(embedder: TextEmbedder, word: str, vectors: int, mode: str) -> Tensor:
    """Return the first values of a word of `vectors` vectors: [vectors, d], no gradient.

    "mean": each vector is the mean of the initializer word's tokens. "sequence": vector i is token
    i; the last token is repeated.
    """
    ids = initializer_ids(embedder, word, vectors, mode)
    if mode == "sequence":
        ids = [ids[min(i, len(ids) - 1)] for i in range(vectors)]
        return embedder.token_vectors(ids).detach()
    return embedder.token_vectors(ids).detach().mean(0, keepdim=True).expand(vectors, -1)


def vocabulary_norms(table: Tensor) -> dict[str, float]:
    """Return mean and percentiles of the rows' norms of a token table [V, d]."""
    norms = table.detach().float().norm(dim=-1).cpu()
    low, middle, high = norms.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return {
        "vocabulary/mean": norms.mean().item(),
        "vocabulary/p05": low,
        "vocabulary/p50": middle,
        "vocabulary/p95": high,
    }


def check_prompts(
    embedder: TextEmbedder,
    prompts: Sequence[str],
    words: Mapping[str, tuple[int, int]],
    files: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check that each learned word which a prompt names reaches the text encoder whole.

    Words are counted by tokens, as the encoder meets them: "*" in "S*" is a word too. `words` has
    the token id and number of vectors of each placeholder; `files` the file that a prompt comes
    from, for messages. Returns a message for each prompt whose end the encoder does not read.

    Raises UserError where tokenizing loses a placeholder, or its vectors fall behind the last
    position.
    """
    lost: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        file = (files or {}).get(prompt)
        where = f"prompt {quote(prompt)}" if file is None else f"caption {file!r}"
        ids = embedder.word_ids(prompt)
        counts = Counter(name for _, name in split(prompt, words))
        kept = _kept_tokens(embedder.max_length, ids, dict(words.values()))
        for placeholder, (token, k) in words.items():
            found, named = ids.count(token), counts[placeholder]
            if found < named:
                raise UserError(
                    f"{where}: placeholder {placeholder!r} stands there {named} times but {found} "
                    "times after tokenizing: put spaces between it and other characters"
                )
            if token in ids[kept:]:
                raise UserError(
                    f"{where} has {len(ids)} tokens: placeholder {placeholder!r} ({k} vectors) is "
                    f"cut off at the encoder's {embedder.max_length} positions: shorten the prompt "
                    "or move the word forwards"
                )
        if kept < len(ids):
            end = " ".join(embedder.text_from(prompt, kept).split())
            lost[prompt] = (
                f"{where} has {len(ids)} tokens, and the text encoder reads the first {kept} of "
                f"them. Its end is cut off: {quote(end, 300)}"
            )
    return lost


def _kept_tokens(length: int, ids: Sequence[int], vectors: Mapping[int, int]) -> int:
    """Return how many of a text's tokens reach an encoder of `length` with all their vectors."""
    # A tokenizer puts one special token before the text and one behind it, and cuts the text for
    # both to fit; splicing then moves what follows a word further back.
    end = 1
    for place, token in enumerate(ids):
        end += vectors.get(token, 1)
        if place >= length - 2 or end > length:
            return place
    return len(ids)
