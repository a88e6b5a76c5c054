"""Make the paper's user study (figure 10b), rehearse it, and analyse its answers.

Two questionnaires that open offline in any browser, and the mean ranks with 95% ellipses that their
answers give.

Examples:
  make questionnaires of the paper's five variants from a protocol with keep_pictures; those who
  answer get the files of study/questionnaires, never key.json:
    python scripts/user_study.py make --protocol outputs/protocol/miniature --output study
  the same from images of your own:
    python scripts/user_study.py make --manifest images.csv --output study
  try everything before asking anybody, with a feature extractor's answers:
    python scripts/user_study.py rehearse --key study/key.json --output rehearsal
  what is known from the answers that came back:
    python scripts/user_study.py analyse --key study/key.json answers/*.json --output study/results

The manifest is CSV with the columns concept,model,prompt,image, or JSON with a list of such
objects; concept may be left out, images are looked up from the manifest's folder:
    concept,model,prompt,image
    teal-star,training,,concepts/teal-star/1.png
    teal-star,ours,A photo of *,images/ours/0.png
    teal-star,ours,A photo of * on the beach,images/ours/1.png
Each concept needs four training images, and every model an image of every prompt.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from ldm.cli.common import Parser, add_options, check_least, check_output_folder, option
from ldm.experiments.figures.published import RANKS
from ldm.resources import locate
from ldm.util import UserError

IMAGE_PROMPT = "A photo of *"
SCORER = "models/miniature/scorer"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raise UserError for a number out of range."""
    parser = Parser(prog="scripts/user_study.py", description=__doc__)
    names = "make|rehearse|analyse"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    _add_make(commands.add_parser("make", help="make questionnaires"))
    _add_rehearse(commands.add_parser("rehearse", help="answer them with an extractor"))
    analyse = commands.add_parser("analyse", help="analyse answers")
    option(analyse, "answers FILE", "what questionnaires saved", nargs="+")
    option(analyse, "--key FILE", "that `make` wrote", required=True)
    add_options(analyse, output="outputs/user-study/results")
    options = parser.parse_args(arguments)
    if not 0 <= getattr(options, "seed", 0) < 2**63:
        raise UserError(f"--seed must lie in 0..2^63, got {options.seed}")
    return options


def _add_make(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    option(source, "--manifest FILE", "CSV or JSON, see user_study.py --help")
    option(source, "--protocol DIR", "the output of scripts/protocol.py")
    add_options(parser, output="outputs/user-study")
    option(parser, "--seed", "seed of shuffling and choosing", 0)
    table = parser.add_argument_group("with --protocol")
    option(table, "--models NAME", f"variants to compare ({' '.join(RANKS)})", nargs="+")
    text = "seeds whose images may be chosen (all that every model of a concept has)"
    option(table, "--seeds N", text, nargs="+", type=int)
    manifest = parser.add_argument_group("with --manifest; a protocol knows these itself")
    text = f'whose images are compared with the training images ("{IMAGE_PROMPT}")'
    option(manifest, "--image_prompt TEXT", text)
    text = "placeholders to remove from the texts (*)"
    option(manifest, "--placeholder WORD", text, default=[], action="append", nargs=None)


def _add_rehearse(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer both questionnaires by a feature extractor, ranking by the cosines that score "
        "images elsewhere, with chance: to see that everything works, and no result about people."
    )
    option(parser, "--key FILE", "that `make` wrote", required=True)
    text = f"a CLIP, or the miniature's ({SCORER})"
    option(parser, "--scorer --judge FOLDER|NAME", text, SCORER)
    option(parser, "--participants N", "how many answer", 12)
    text = (
        "how much they differ: of two images whose cosines differ by T, 73 of 100 put the "
        "better one first (0.07, which fits the paper's ranks to its scores best)"
    )
    option(parser, "--temperature T", text, type=float)
    option(parser, "--seed", "of chance", 0)
    add_options(parser, output="outputs/user-study/rehearsal")


def _check_source(options: argparse.Namespace) -> None:
    """Raise UserError for an option that the other source of images takes."""
    other, names = (
        ("--manifest", ("image_prompt", "placeholder"))
        if options.protocol
        else ("--protocol", ("models", "seeds"))
    )
    for name in names:
        if getattr(options, name):
            raise UserError(f"--{name} goes with {other}: leave it out")
    for name in ("models", "seeds"):
        given = getattr(options, name) or ()
        if len(set(given)) != len(given):
            raise UserError(f"--{name} must name each once, got {' '.join(map(str, given))}")
    if options.models and len(options.models) < 2:
        raise UserError(f"--models must name at least two, got {options.models[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    check_output_folder(options.output)
    if options.command == "make":
        _check_source(options)
    if options.command == "rehearse":
        check_least(options, 1, "participants")
        if options.temperature is not None and not 0 < options.temperature < math.inf:
            raise UserError(f"--temperature must be above 0, got {options.temperature}")
        options.scorer = str(locate(options.scorer))  # a name on the Hub stays
    from ldm.experiments.study import command

    given = vars(options)
    status: int = getattr(command, given.pop("command"))(**given)
    return status
