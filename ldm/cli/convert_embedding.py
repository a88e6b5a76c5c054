r"""Write learned words in the form of another tool, or inspect them. The values do not change.

Examples:
  what a file holds:
    python scripts/convert_embedding.py cat.pt --inspect
  a word of a concept library as a file that every tool loads:
    python scripts/convert_embedding.py sd-concepts-library/cat-toy cat-toy.safetensors --to kohya
  a folder to upload to the Hub:
    python scripts/convert_embedding.py cat.pt my-cat --placeholder '<my-cat>' \
        --hub_license cc-by-4.0 --base_model OWNER/NAME --samples cat-1.png cat-2.png
  one file for each word:
    python scripts/convert_embedding.py both.pt words/ --to kohya
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.common import Parser, check_free, check_output_folder, option
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.words.files import WordFile

FORMS = ("original", "safetensors", "diffusers", "a1111", "png", "kohya", "onetrainer", "sdxl")
BY_SUFFIX = {".pt": "original", ".safetensors": "safetensors", ".png": "png", "": "kohya"}
# Values of --encoder, and the width of a word for each. With LDM-BERT it may be any.
FAMILIES = {"ldm-bert": None, "clip": 768, "openclip-h": 1024}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="scripts/convert_embedding.py", description=__doc__)
    option(parser, "source IN", "a word's file, its folder or a Hub name")
    text = "a file; a name without suffix is a folder, which gets one file for each word"
    option(parser, "target OUT", text, nargs="?")
    text = (
        "form of OUT; by default original for .pt, safetensors for .safetensors, png for .png, and "
        "kohya for a folder"
    )
    option(parser, "--to", text, choices=FORMS)
    option(parser, "--placeholder NAME", "name of the word; IN must hold one word")
    text = (
        "text encoder of the words, if IN does not state it: LDM-BERT (the 1.4B model), CLIP "
        "(Stable Diffusion 1), OpenCLIP (Stable Diffusion 2)"
    )
    option(parser, "--encoder", text, choices=FAMILIES)
    text = "vocabulary that gives the token ids of new names, for the form original"
    option(parser, "--tokenizer FOLDER", text)
    group = parser.add_argument_group("a folder for the Hugging Face Hub")
    text = "make OUT such a folder (word, samples, model card), with this license, e.g. cc-by-4.0"
    option(group, "--hub_license ID", text)
    option(group, "--base_model OWNER/NAME", "the word's base on the Hub")
    option(group, "--samples IMAGE", "sample images", [])
    option(parser, "--inspect", "print what IN holds; write nothing", False)
    option(parser, "--force", "replace existing files", False)
    return parser.parse_args(arguments)


def describe(file: WordFile, source: str) -> str:
    """Return what a file holds, as lines of text."""
    from ldm.words.files import describe_width

    family = file.metadata.get("encoder_family")
    width = next(iter(file.words.values())).shape[-1]
    lines = [
        f"{source}: form {file.form}",
        f"text encoder: {family or 'not stated'}; width {width} is of {describe_width(width)}",
    ]
    for name, vectors in file.words.items():
        norms = " ".join(f"{norm:.4g}" for norm in vectors.norm(dim=-1).tolist())
        lines.append(f"word {name}: {len(vectors)} vectors of width {vectors.shape[-1]}")
        lines.append(f"  norms {norms}; largest value {vectors.abs().max().item():.4g}")
        if name in file.second:
            lines.append(f"  and {len(file.second[name])} for SDXL's second text encoder")
        if name in file.token_ids:
            lines.append(f"  token id {file.token_ids[name]}")
    facts = {key: value for key, value in file.metadata.items() if key != "encoder_family"}
    lines += [f"{key}: {value}" for key, value in facts.items()]
    return "\n".join(lines)


def prepared(file: WordFile, options: argparse.Namespace) -> WordFile:
    """Return the words with the name and the text encoder that the options give.

    Raises UserError if the file holds several words and the options name one, if nothing can load
    the name, or if the text encoder contradicts the file.
    """
    from ldm.words.files import FAMILY_BY_WIDTH, check_name, describe_width, renamed
    from ldm.words.formats import SDXL, UNKNOWN

    stated = file.metadata.get("encoder_family")
    if options.encoder and (file.second or stated not in (None, UNKNOWN, options.encoder)):
        raise UserError(
            f"--encoder {options.encoder}: {options.source!r} states that it is for "
            f"{stated or SDXL}"
        )
    if options.encoder:
        width, wanted = next(iter(file.words.values())).shape[-1], FAMILIES[options.encoder]
        if wanted is not None and width in FAMILY_BY_WIDTH and width != wanted:
            raise UserError(
                f"--encoder {options.encoder}: the words of {options.source!r} have width {width}, "
                f"which is that of {describe_width(width)}"
            )
        file = replace(file, metadata={**file.metadata, "encoder_family": options.encoder})
    new = options.placeholder
    if new is None:
        return file
    if len(file.words) > 1:
        raise UserError(
            f"--placeholder names one word, but {options.source!r} holds {list(file.words)}: split "
            "it first, with a folder as OUT"
        )
    check_name(new)
    return renamed(file, dict.fromkeys(file.words, new), options.source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    if (options.target is None) != options.inspect:
        raise UserError("give IN and OUT, or IN and --inspect")
    from ldm.words.files import read_words

    if options.inspect:
        text = describe(read_words(options.source, options.placeholder), options.source)
        sys.stdout.write(f"{text}\n")
        return 0
    target = Path(options.target)
    if options.hub_license is not None:
        from ldm.words.card import write_hub_folder

        file = prepared(read_words(options.source, options.placeholder), options)
        samples = [Path(path) for path in options.samples]
        write_hub_folder(target, file, options.hub_license, options.base_model, samples)
        sys.stdout.write(f"{target}\n")
        return 0
    if options.samples or options.base_model:
        raise UserError(
            "--samples and --base_model describe a folder for the Hub: add --hub_license"
        )
    form = options.to or BY_SUFFIX.get(target.suffix)
    if form is None:
        raise UserError(f"OUT must end in .pt, .safetensors or .png, got {options.target!r}")
    check_output_folder(target.parent)
    file = prepared(read_words(options.source, options.placeholder), options)

    from ldm.cli.merge import token_ids
    from ldm.words.travel import convert, targets

    check_free(targets(target, file, form), "OUT", options.force)
    ids: dict[str, int] = {}
    if form == "original":
        width = next(iter(file.words.values())).shape[-1]
        ids = token_ids(file.words, file.token_ids, options.tokenizer, width)
    for path in convert(target, file, form, ids):
        sys.stdout.write(f"{path}\n")
    return 0
