"""What scripts/user_study.py does: make the questionnaires, rehearse them, analyse answers."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.common import Parser, check_output_folder, find_place
from ldm.experiments.figures.published import RANKS
from ldm.util import UserError

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
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
    teal-star,ours,A photo of *,drawn/ours/0.png
    teal-star,ours,A photo of * on the beach,drawn/ours/1.png
Each concept needs four training images, and every model an image of every prompt.
"""
IMAGE_PROMPT = "A photo of *"
JUDGE = "models/miniature/judge"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options, or a number out of range.
    """
    parser = Parser(
        prog="scripts/user_study.py",
        description="The paper's user study (figure 10b): two questionnaires that open offline in "
        "any browser, and the mean ranks with 95% ellipses that their answers give.",
        epilog=EXAMPLES,
    )
    names = "make|rehearse|analyse"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    _add_make(commands.add_parser("make", help="make questionnaires"))
    _add_rehearse(commands.add_parser("rehearse", help="let a feature extractor answer them"))
    analyse = commands.add_parser("analyse", help="analyse answers")
    analyse.add_argument("answers", nargs="+", metavar="FILE", help="what questionnaires saved")
    analyse.add_argument("--key", metavar="FILE", required=True, help="that `make` wrote")
    analyse.add_argument("--output", metavar="DIR", default="outputs/user-study/results")
    options = parser.parse_args(arguments)
    if not 0 <= getattr(options, "seed", 0) < 2**63:
        raise UserError(f"--seed must lie in 0..2^63, got {options.seed}")
    return options


def _add_make(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", metavar="FILE", help="CSV or JSON, see user_study.py --help")
    source.add_argument("--protocol", metavar="DIR", help="the output of scripts/protocol.py")
    parser.add_argument("--output", metavar="DIR", default="outputs/user-study")
    parser.add_argument("--seed", type=int, default=0, help="of shuffling and choosing (0)")
    table = parser.add_argument_group("with --protocol")
    table.add_argument(
        "--models", nargs="+", metavar="NAME", help=f"variants to compare ({' '.join(RANKS)})"
    )
    table.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="whose images to draw lots from (of each concept all that every model has)",
    )
    manifest = parser.add_argument_group("with --manifest; a protocol knows these itself")
    manifest.add_argument(
        "--image_prompt",
        metavar="TEXT",
        help=f'whose images are compared with the training images ("{IMAGE_PROMPT}")',
    )
    manifest.add_argument(
        "--placeholder",
        action="append",
        default=[],
        metavar="WORD",
        help="taken out of the texts (*)",
    )


def _add_rehearse(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer both questionnaires by a feature extractor, ranking by the cosines that score "
        "pictures elsewhere, with chance: to see that everything works, and no result about people."
    )
    parser.add_argument("--key", metavar="FILE", required=True, help="that `make` wrote")
    parser.add_argument(
        "--judge",
        metavar="FOLDER|NAME",
        default=JUDGE,
        help=f"a CLIP, or the miniature's judge ({JUDGE})",
    )
    parser.add_argument("--participants", type=int, default=12, metavar="N", help="(12)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="how much they differ: of two images whose cosines differ by T, 73 of 100 put the "
        "better one first (0.07, which fits the paper's ranks to its scores best)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of chance (0)")
    parser.add_argument("--output", metavar="DIR", default="outputs/user-study/rehearsal")


def make(options: argparse.Namespace) -> int:
    """Write two questionnaires and their key; from a protocol also its images."""
    _check_source(options)
    from ldm.experiments.study.page import write_pages
    from ldm.experiments.study.questionnaire import make_study, read_manifest, write_key

    folder = check_output_folder(options.output)
    key = folder / "key.json"
    if key.exists():
        raise UserError(f"{key} exists, and answers may need it: give another --output")
    manifest = options.manifest
    image_prompt = options.image_prompt or IMAGE_PROMPT
    placeholders = options.placeholder or ["*"]
    if options.protocol:
        from ldm.experiments.study.from_protocol import read_table, write_manifest

        models = options.models or list(RANKS)
        table = read_table(Path(options.protocol), models, options.seeds or ())
        image_prompt, placeholders = table.image_prompt, [table.placeholder]
        manifest = write_manifest(table, folder / "pictures")
        logger.info("%s: the images of %d cells", manifest, len(table.cells))
    study = make_study(
        read_manifest(manifest),
        seed=options.seed,
        image_prompt=image_prompt,
        placeholders=placeholders,
    )
    for kind, path in write_pages(study, folder / "questionnaires").items():
        logger.info("%s: %d questions", path, len(study.questions[kind]))
    write_key(key, study)
    logger.info("%s: which model drew what; keep it to yourself", key)
    return 0


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


def rehearse(options: argparse.Namespace) -> int:
    """Write an extractor's answers."""
    if options.participants < 1:
        raise UserError(f"--participants must be at least 1, got {options.participants}")
    if options.temperature is not None and not 0 < options.temperature < math.inf:
        raise UserError(f"--temperature must be above 0, got {options.temperature}")
    from ldm.experiments.study import rehearsal as by
    from ldm.experiments.study.questionnaire import read_key

    folder = check_output_folder(options.output)
    by.check_answers_folder(folder)
    study = read_key(options.key)
    pictures = by.open_images(study)

    from ldm.evaluation.extractors import extractor_facts, find_extractor

    name = str(find_place(options.judge))  # a name on the hub stays as it is
    extractor = find_extractor(name)
    answers = by.rehearse(
        study,
        by.score_choices(study, pictures, extractor),
        extractor_facts(name, extractor),
        participants=options.participants,
        temperature=options.temperature or by.TEMPERATURE,
        seed=options.seed,
    )
    files = by.write_answers(folder, answers)
    logger.info("%s: %d files of answers by %s", folder, len(files), answers[0]["answered_by"])
    logger.warning("these are no people's answers, and say nothing about what people see")
    return 0


def analyse(options: argparse.Namespace) -> int:
    """Write ranks.csv and ranks.png and .pdf, and say what is in them and who answered."""
    from ldm.experiments.study import analysis as of
    from ldm.experiments.study.questionnaire import read_key

    folder = check_output_folder(options.output)
    study = read_key(options.key)
    answers = of.read_answers(study, options.answers)
    ranks, counts = of.analyse(study, answers), of.participants(answers)
    folder.mkdir(parents=True, exist_ok=True)
    caveat = of.caveat(answers)
    of.write_ranks(folder / "ranks.csv", ranks, counts, caveat)
    of.plot_ranks(ranks, [folder / "ranks.png", folder / "ranks.pdf"], caveat)
    if caveat:
        logger.warning("a rehearsal: %s", caveat)
    who = "simulated participants" if caveat else "participants"
    numbers = (counts[kind] for kind in ("text", "image", "both"))
    logger.info("%s: %d by text, %d by images, %d both", who, *numbers)
    width = max(len(r.model) for r in ranks)
    for r in ranks:
        logger.info("%-*s  text %.2f  image %.2f", width, r.model, r.text, r.image)
    if any(r.ellipse is None for r in ranks):
        logger.warning("no ellipses: they need at least three participants of each questionnaire")
    logger.info("%s", folder / "ranks.csv")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    return {"make": make, "rehearse": rehearse, "analyse": analyse}[options.command](options)
