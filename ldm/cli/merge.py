r"""Merge files of learned words into one, or blend two of their words.

No word is ever overwritten: where two have one name, say how to rename them. Words are blended as
in Directional Textual Inversion (Kim et al., arXiv 2512.13672).

Examples:
  two words with names of their own:
    python merge_embeddings.py --manager_ckpts cat.pt style.pt --output_path both.pt
  both were learned as "*"; the second becomes "@":
    python merge_embeddings.py --manager_ckpts cat.pt style.pt --output_path both.pt --rename '*=@'
  three of one name:
    python merge_embeddings.py --manager_ckpts a.pt b.pt c.pt --output_path all.pt \
        --rename '*=@' '*=#'
  a file for each word of one file, as other tools need them:
    python merge_embeddings.py --manager_ckpts both.pt --split --output_path words
  one word halfway between two, both learned as "*":
    python merge_embeddings.py --manager_ckpts cat.safetensors fox.safetensors --rename '*=@' \
        --blend '*=0.5' '@=0.5' --output_path catfox.safetensors
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.common import Parser, check_free, check_output_folder, option, split_pairs
from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.words.files import WordFile

logger = logging.getLogger(__name__)

# Shares of a blend may differ from a sum of 1 by this much: 0.333 and 0.667 are accepted.
TOLERANCE = 1e-6
# Width of a published text encoder → its kind of tokenizer and the vocabulary's name.
CLIP_VOCABULARY = ("CLIPTokenizerFast", "openai/clip-vit-large-patch14")
VOCABULARIES = {
    768: CLIP_VOCABULARY,
    1024: CLIP_VOCABULARY,
    1280: ("BertTokenizerFast", "bert-base-uncased"),
}


@dataclass(frozen=True)
class Word:
    """A word of an input file, for the merged file."""

    source: Path
    file: WordFile
    stored: str
    name: str

    @property
    def vectors(self) -> Tensor:
        return self.file.words[self.stored]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="merge_embeddings.py", description=__doc__)
    option(parser, "--manager_ckpts FILE", "files of learned words", nargs="+", required=True)
    option(parser, "--output_path FILE", "merged file, .pt or .safetensors", required=True)
    text = (
        "rename a word; of several with this name, the first keeps it unless there is a renaming "
        "for each"
    )
    option(parser, "--rename OLD=NEW", text, [])
    text = (
        "blend two of the (renamed) words, whose shares sum to 1, and write that word alone: "
        "directions by spherical interpolation, norms linearly, vector by vector"
    )
    option(parser, "--blend WORD=SHARE", text, nargs="+")
    option(parser, "--blend_name WORD", "name of the blended word; by default the first one's")
    text = "check that the words are for Stable Diffusion; their width tells the vocabulary"
    option(parser, "-sd --stable_diffusion", text, False)
    option(parser, "--tokenizer FOLDER", "vocabulary to look new names up in, for a .pt file")
    text = (
        "write each word into a file of its own that other tools load; --output_path is then "
        "their folder"
    )
    option(parser, "--split", text, False)
    option(parser, "--force", "replace existing output files", False)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Raises UserError for unreadable files, words of one name or for different text encoders, a new
    name that is not one known token, and words that cannot be blended.
    """
    options = parse(arguments)
    output = Path(options.output_path)
    wanted = read_blend(options.blend, options.blend_name)
    if options.split and output.suffix:
        raise UserError(f"--output_path must be a folder with --split, got {output}")
    if not options.split and output.suffix not in (".pt", ".safetensors"):
        raise UserError(f"--output_path must end in .pt or .safetensors, got {output}")
    check_output_folder(output.parent)
    if not options.split:
        check_free([output], "--output_path", options.force)

    from ldm.words.files import WordFile, check_name, read_words, write_words
    from ldm.words.travel import targets, write_for_tools

    sources = [Path(path) for path in options.manager_ckpts]
    files = [read_words(path) for path in sources]
    words = name_words(sources, files, options.rename)
    vectors = {word.name: word.vectors for word in words}
    second = {word.name: word.file.second[word.stored] for word in words if word.file.second}
    if second and len(second) < len(vectors):
        alone = min(set(vectors) - set(second))
        raise UserError(
            f"{min(second)!r} is a word for SDXL and {alone!r} is not: merge alike ones"
        )
    width = _common_width(words, options.stable_diffusion)
    facts = _metadata(words, width)
    for word in words:
        change = "" if word.name == word.stored else f" (was {word.stored})"
        logger.info("%s%s from %s: %d vectors", word.name, change, word.source, len(word.vectors))
    if wanted is not None:
        vectors, blended = blend_words(vectors, *wanted)
        second = blend_words(second, *wanted)[0] if second else {}
        facts |= blended
    for name in vectors:
        check_name(name)
    if options.split:
        file = WordFile(vectors, facts, second=second)
        check_free(targets(output, file, "kohya"), "--output_path", options.force)
        for name, path in zip(vectors, write_for_tools(output, file), strict=True):
            logger.info("%s: %s", path, name)
        return 0
    ids = {}
    if output.suffix == ".pt":
        same = [word for word in words if word.name == word.stored]
        stated = {w.name: w.file.token_ids[w.name] for w in same if w.name in w.file.token_ids}
        ids = token_ids(vectors, stated, options.tokenizer, width)
    write_words(output, vectors, ids, facts, second)
    logger.info("%s: %s", output, " ".join(vectors))
    return 0


def name_words(
    sources: Sequence[Path], files: Sequence[WordFile], renames: Sequence[str]
) -> list[Word]:
    """Give each word of the files its name in the merged file.

    Renamings of a name go to the words that bear it, in the files' order; where there is one fewer
    than words, the first of them keeps its name. Raises UserError where two words would have one
    name, or a renaming fits no word.
    """
    given: dict[str, list[str]] = {}
    for old, new in split_pairs("--rename takes OLD=NEW", renames):
        given.setdefault(old, []).append(new)
    bearers = Counter(stored for file in files for stored in file.words)
    for old, names in given.items():
        if len(names) > bearers[old]:
            held = ", ".join(repr(name) for name in bearers)
            raise UserError(
                f"--rename {old}=…: {len(names)} renamings for {bearers[old]} words of that name; "
                f"the files hold {held}"
            )
    # The names that the bearers of a name get, in the files' order.
    kept = {old: [old] * (n - len(given.get(old, ()))) for old, n in bearers.items()}
    named = {old: names + given.get(old, []) for old, names in kept.items()}
    words = [
        Word(source, file, stored, named[stored].pop(0))
        for source, file in zip(sources, files, strict=True)
        for stored in file.words
    ]
    taken: dict[str, Word] = {}
    for word in words:
        other = taken.setdefault(word.name, word)
        if other is not word:
            raise UserError(
                f"{other.source} and {word.source} both bring the word {word.name!r}: rename one "
                f"with --rename '{word.stored}=NEW'"
            )
    return words


def read_blend(
    given: Sequence[str] | None, name: str | None
) -> tuple[Mapping[str, float], str] | None:
    """Read `--blend` and `--blend_name`: two words' shares, at least 0 with sum 1, and a name.

    None where nothing is to be blended; UserError for anything else.
    """
    if given is None:
        if name is not None:
            raise UserError(
                "--blend_name names a blended word: say of which with --blend A=0.5 B=0.5"
            )
        return None
    shares: dict[str, float] = {}
    for text in given:
        word, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not word or not 0 <= share <= 1:
            raise UserError(f"--blend takes WORD=SHARE with a share of 0 to 1, got {text!r}")
        if word in shares:
            raise UserError(f"--blend names {word!r} twice: it blends two different words")
        shares[word] = share
    if len(shares) != 2:
        raise UserError(f"--blend takes two words, such as A=0.5 B=0.5, got {' '.join(given)}")
    if abs(sum(shares.values()) - 1) > TOLERANCE:
        total = f"{sum(shares.values()):g}"
        raise UserError(f"--blend {' '.join(given)}: the shares must sum to 1, not to {total}")
    return shares, name or next(iter(shares))


def blend_words(
    vectors: Mapping[str, Tensor], wanted: Mapping[str, float], name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the blended word alone, under a name, and what its file should say about it.

    `vectors` has [k, d] of each word, of one width; `wanted` two words' shares. Raises UserError
    for a word that is not there, words of unlike numbers of vectors, or opposite vectors.
    """
    absent = [word for word in wanted if word not in vectors]
    if absent:
        held = ", ".join(map(repr, vectors))
        raise UserError(f"--blend: there is no word {absent[0]!r}; the files bring {held}")
    (first, _), (second, share) = wanted.items()
    counts = [len(vectors[word]) for word in (first, second)]
    if counts[0] != counts[1]:
        raise UserError(
            f"--blend: {first!r} has {counts[0]} vectors and {second!r} {counts[1]}: only words of "
            "as many vectors can be blended"
        )

    from ldm.words.sphere import blend

    try:
        mixed = blend(vectors[first], vectors[second], share)
    except ValueError as error:
        raise UserError(f"--blend: {first!r} and {second!r} have no blend: {error}") from error
    norms = [vectors[first].norm(dim=-1), vectors[second].norm(dim=-1), mixed.norm(dim=-1)]
    shares = " + ".join(f"{share:g} {word}" for word, share in wanted.items())
    sizes = ", ".join(f"{norm.mean():.3f}" for norm in norms)
    logger.info("%s: %s, norms %s", name, shares, sizes)
    facts = {
        "placeholders": json.dumps([name], ensure_ascii=False),
        "blended_from": json.dumps(dict(wanted), ensure_ascii=False),
    }
    return {name: mixed}, facts


def _common_width(words: Sequence[Word], stable: bool) -> int:
    width = words[0].vectors.shape[-1]
    for word in words:
        if word.vectors.shape[-1] != width:
            raise UserError(
                f"{words[0].source} is for a text encoder of width {width} and {word.source} for "
                f"one of {word.vectors.shape[-1]}: they cannot be used together"
            )
    if stable and VOCABULARIES.get(width) != CLIP_VOCABULARY:
        raise UserError(f"-sd is for words of width 768 or 1024; these have {width}")
    return width


def token_ids(
    names: Iterable[str], stated: Mapping[str, int], tokenizer: str | None, width: int
) -> dict[str, int]:
    """Return each name's token id, which the original's readers of a .pt file need.

    Ids that are not stated come from the vocabulary in the folder `tokenizer`; by default that of
    the published models whose words have this width.
    """
    names = list(names)
    ids = {name: stated[name] for name in names if name in stated}
    ids |= _look_up([name for name in names if name not in stated], tokenizer, width)
    by_id: dict[int, str] = {}
    for name, token in ids.items():
        other = by_id.setdefault(token, name)
        if other != name:
            raise UserError(f"{other!r} and {name!r} are the same token: rename one of them")
    return ids


def _look_up(names: Sequence[str], source: str | None, width: int) -> dict[str, int]:
    if not names:
        return {}
    if source is None and width not in VOCABULARIES:
        raise UserError(
            f"no published model has words of width {width}: give its vocabulary as "
            "--tokenizer FOLDER, or write .safetensors, which needs none"
        )
    kind, published = VOCABULARIES.get(width, VOCABULARIES[1280])
    source = source or published

    from ldm.modules.encoders.vocabulary import load_tokenizer

    tokenizer = load_tokenizer(kind, source)
    ids = {}
    for name in names:
        found = list(tokenizer(name, add_special_tokens=False, verbose=False)["input_ids"])
        unknown = kind.startswith("Bert") and tokenizer.unk_token_id in found
        if len(found) != 1 or unknown:
            what = "unknown to" if unknown else f"{len(found)} tokens of"
            raise UserError(
                f"the name {name!r} is {what} the vocabulary and must be one token: choose another "
                "symbol, such as @ or &"
            )
        ids[name] = int(found[0])
    return ids


def _metadata(words: Sequence[Word], width: int) -> dict[str, str]:
    stated = (word.file.metadata.get("encoder_family") for word in words)
    families = sorted({family for family in stated if family is not None})
    lists = {
        "placeholders": [word.name for word in words],
        "merged_from": [str(word.source) for word in words],
        "words": {word.name: word.file.metadata for word in words},
    }
    facts = {key: json.dumps(value, ensure_ascii=False) for key, value in lists.items()}
    facts["encoder_width"] = str(width)
    if len(families) > 1:
        raise UserError(f"the words are for different text encoders: {families}")
    if families:
        facts["encoder_family"] = families[0]
    return facts
