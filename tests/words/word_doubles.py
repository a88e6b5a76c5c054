"""A text encoder's vocabulary in miniature, for tests of the words."""

import re

import torch

from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS, split

PIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "*", "@", ",", "#", *PER_IMAGE_PLACEHOLDERS),
    *("a", "photo", "of", "the", "cat", "sculpture", "polar", "##bear", "on", "moon", "train"),
)


class FakeEmbedder:
    """Greedy longest-match pieces, [CLS] … [SEP] around, padded and cut like the real ones.

    `extra` adds pieces: "*," makes it behave like CLIP's, which joins signs.
    """

    family = "ldm-bert"
    unknown_id = 1
    widths = None
    special_ids = frozenset(range(4))

    def __init__(self, width=6, max_length=10, extra=(), device="cpu"):
        self.width, self.max_length = width, max_length
        self.pieces = [*PIECES, *extra]
        rng = torch.Generator().manual_seed(0)
        table = torch.randn(len(self.pieces), width, generator=rng)
        self.vocab_table = table.to(device)
        self.vocab_size = len(self.pieces)
        self.placeholders = {}

    @property
    def device(self):
        return self.vocab_table.device

    def token_vectors(self, ids):
        return self.vocab_table[ids]

    def word_ids(self, word):
        ids = []
        for piece, placeholder in split(word, self.placeholders):
            ids += self._ids(piece) if placeholder is None else [self.placeholders[placeholder]]
        return ids

    def _ids(self, word):
        ids = []
        for run in re.findall(r"\w+|[^\w\s]+", word.lower()):
            start = 0
            while start < len(run):
                for end in range(len(run), start, -1):
                    marks = ("##", "") if start and not run[0].isalnum() else ("##",) * bool(start)
                    names = [mark + run[start:end] for mark in marks or ("",)]
                    found = [self.pieces.index(name) for name in names if name in self.pieces]
                    if found:
                        ids.append(found[0])
                        start = end
                        break
                else:
                    ids.append(self.unknown_id)
                    break
        return ids

    def text_from(self, text, token):
        return " ".join(self.pieces[i] for i in self.word_ids(text)[token:])

    def count_tokens(self, text):
        return 2 + len(self.word_ids(text))

    def tokenize(self, texts):
        rows = []
        for text in texts:
            row = [2, *self.word_ids(text)[: self.max_length - 2], 3]
            rows.append(row + [0] * (self.max_length - len(row)))
        return torch.tensor(rows)
