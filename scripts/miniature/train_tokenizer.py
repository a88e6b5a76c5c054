"""Train the miniature's WordPiece tokenizer on the captions of the miniature world.

    python scripts/miniature/train_tokenizer.py

Takes a few seconds and writes models/miniature/tokenizer/, which `BertTokenizer.from_pretrained`
(and so `BERTEmbedder(tokenizer=…)`) reads. Pieces of words that no caption needs are dropped: a
word the models have never read is then [UNK], which the command lines report, and not letters.
The names of things and styles follow, each one entry.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from ldm.miniature.grammar import full_caption, vocabulary
from ldm.miniature.names import names
from ldm.miniature.world import MiniatureWorld, sample_spec

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Never in a caption, so free to stand for a learned word.
PLACEHOLDERS = [*"*@&~#$%+=^", *"bcdefghijklmnopqrstuvwxyz", *"0123456789"]
MAX_LENGTH = 32


def captions(count: int) -> Iterator[str]:
    """Yield training captions, plain and full, and every word there is."""
    world = MiniatureWorld(thing_share=0.0, style_share=0.0)
    for index in range(count):
        yield world.describe(index)["caption"]
        yield full_caption(sample_spec(0, index))
    yield from vocabulary()


def train(count: int) -> list[str]:
    """Return the vocabulary in the order of its ids, [PAD] first."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=2000, min_frequency=1, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(captions(count), trainer)
    used = {token for text in captions(count) for token in tokenizer.encode(text).tokens}
    # A name is one token, and says nothing by its letters: it is not made of pieces.
    return [*SPECIAL, *PLACEHOLDERS, *sorted(used - set(SPECIAL) - set(PLACEHOLDERS)), *names()]


def main() -> None:
    """Train, write, and read back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=20000, help="captions to read (20000)")
    parser.add_argument("--out", type=Path, default=Path("models/miniature/tokenizer"))
    options = parser.parse_args()
    words = train(options.captions)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=ids, do_lower_case=True, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(options.out)
    read = BertTokenizer.from_pretrained(options.out)
    longest = max(len(read(text)["input_ids"]) for text in captions(2000))
    print(f"{options.out}: {len(read)} tokens, the longest caption has {longest} of {MAX_LENGTH}")


if __name__ == "__main__":
    main()
