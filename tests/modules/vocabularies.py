"""Vocabularies of a few words, written as the files that tokenisers read."""

import json

BERT_WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "*", ",", "a", "photo", "of", "the", "cat"),
    *("polar", "##bear", "on", "moon"),
)


def write_bert(folder):
    """Return the path of a WordPiece vocabulary; a word's id is its place in BERT_WORDS."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    return str(folder)


def write_clip(folder):
    """Return the path of a byte-pair vocabulary that knows all letters, "cat" and "*"."""
    folder.mkdir(exist_ok=True)
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "*", ","]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return str(folder)
