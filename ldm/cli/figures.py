r"""Make figures of the paper, with the miniature or with another model.

Writes PNG, PDF, the numbers as CSV, and a text with the command and the settings of the images.

Examples:
  in the miniature, which comes with the project:
    python scripts/figures.py 10a
  at 1.4B, with words and images of your own:
    python scripts/figures.py 1 4 --model models/ldm/text2img-large/model.ckpt \
        --words WORDS --concepts IMAGES --rename object-1=cat
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ldm.checkpoint.names import DELTA_FILE, find_delta
from ldm.cli import common
from ldm.cli.common import option
from ldm.experiments.figures.pivotal import FOLDER, HOW, WORD
from ldm.experiments.figures.pivotal import make as tune
from ldm.experiments.figures.record import FIGURES, Figure, find
from ldm.experiments.figures.request import Request, check, is_miniature
from ldm.resources import ROOT, locate
from ldm.util import UserError, get_obj_from_str

log = logging.getLogger(__name__)

# Images of a prompt and guidance scale, in the miniature and at 1.4B.
IMAGES = (16, 64)
SCALE = (3.0, 5.0)
# The protocol's output, in the same way; the first that exists: the user's own, or the shipped one.
TABLES = (("outputs/protocol/miniature", "docs/results/protocol"), ("outputs/protocol/paper",))
STUDY = "docs/results/study"  # the miniature's: key.json and answers/*.json
CONCEPTS = str(ROOT / "examples" / "concepts")
SETS_HELP = """then learn their words and put them beside the others:
  python main.py --base configs/miniature/finetune.yaml -t --no-test --seed 1 --init_word star \\
      --actual_resume models/miniature/model.safetensors --data_root examples/concepts/any-star \\
      --templates examples/templates/any-medium.txt
  cp logs/NAME/checkpoints/embeddings.safetensors examples/words/any-star.safetensors
  python main.py --base configs/miniature/finetune.yaml -t --no-test --seed 1 --init_word sketch \\
      --actual_resume models/miniature/model.safetensors --data_root examples/concepts/chalk \\
      --variant style
  cp logs/NAME/checkpoints/embeddings.safetensors examples/words/chalk.safetensors
arcade as chalk, with --init_word neon
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/figures.py", description=__doc__)
    option(parser, "figures N", 'numbers such as 4, 10a; "all", the default', nargs="*")
    option(parser, "--list", "list the figures and stop", False)
    group = parser.add_argument_group("where everything lies")
    common.add_model(group, common.MINIATURE)
    option(group, "--words DIR", "learned words", "examples/words", type=locate)
    common.add_options(group, concepts="examples/concepts")
    text = (
        "the protocol's output, for figures 10 and 12 (the first that is there of "
        f"{', '.join(TABLES[0])}; at 1.4B {TABLES[1][0]})"
    )
    option(group, "--table DIR", text, type=locate)
    text = f"of the user study, for figure 10 ({STUDY}/answers/*.json)"
    option(group, "--answers FILE", text, [], type=locate)
    text = f"key.json of the user study ({STUDY}/key.json)"
    option(group, "--key FILE", text, type=locate)
    text = (
        "with weight_delta.safetensors and its word, for figure 11 (where it is there "
        f"{FOLDER}/CONCEPT, which scripts/figures.py pivotal makes)"
    )
    option(group, "--pivotal DIR", text, type=locate)
    option(group, "--image FILE", "image to edit, for figure 9", type=locate)
    option(group, "--mask FILE", "mask, white where to edit, for figure 9", type=locate)
    option(group, "--rename NAME=OTHER", "take another concept in a figure's place", [])
    common.add_options(group, output="outputs/figures")
    group = parser.add_argument_group("generation and scoring")
    text = f"images of a prompt ({IMAGES[0]} in the miniature, {IMAGES[1]} otherwise)"
    option(group, "--images --pictures", text, type=int)
    text = f"guidance ({SCALE[0]:g} in the miniature, {SCALE[1]:g} otherwise)"
    option(group, "--scale", text, type=float)
    common.add_options(group, steps=50, seed=42)
    text = "CLIP that scores (the one beside the weights, or else the paper's)"
    option(group, "--extractor FOLDER|NAME", text, "")
    common.add_options(group, device="auto")
    text = "exit with 0 although inputs of some figures are missing"
    option(parser, "--allow-missing", text, False)
    return parser.parse_intermixed_args(arguments)


def read_request(options: argparse.Namespace) -> Request:
    """Check the options and find the model; or raise UserError."""
    common.check_least(options, 1, "images")
    options.config, options.weights = common.find_model(options.model, options.config)
    kind = 0 if is_miniature(options.weights) else 1
    options.scale = SCALE[kind] if options.scale is None else options.scale
    options.images = options.images or IMAGES[kind]
    common.sampling_of(options)
    options.rename = dict(common.split_pairs("--rename takes NAME=OTHER", options.rename))
    options.concepts, options.table = locate(options.concepts), _table(options, kind)
    options.answers, options.key = _study(options, kind)
    options.pivotal = _pivotal(options, options.rename)
    options.output = common.check_output_folder(options.output)
    options.device = common.choose_device(options.device)
    return Request(**{field.name: getattr(options, field.name) for field in fields(Request)})


def _table(options: argparse.Namespace, kind: int) -> Path:
    """Return the protocol's output: as asked, or the first default that holds a table."""
    if options.table:
        return Path(options.table)
    places = [locate(path) for path in TABLES[kind]]
    return next((path for path in places if (path / "summary.csv").is_file()), places[0])


def _study(options: argparse.Namespace, kind: int) -> tuple[list[Path], Path | None]:
    """Return the user study's answers and key: as asked, or in the miniature the committed ones."""
    if options.answers or options.key or kind:
        return options.answers, options.key
    folder = locate(STUDY)
    key = folder / "key.json"
    return sorted((folder / "answers").glob("*.json")), key if key.is_file() else None


def _pivotal(options: argparse.Namespace, rename: Mapping[str, str]) -> Path | None:
    """Return pivotal tuning's folder: as asked, or the concept's own for the shipped model."""
    if options.pivotal:
        return Path(options.pivotal)
    (line,) = find(FIGURES, "11")[0].miniature
    (concept,) = line.concepts
    folder = locate(f"{FOLDER}/{rename.get(concept, concept)}")
    return folder if options.model == common.MINIATURE and find_delta(folder).is_file() else None


def run(options: argparse.Namespace, figures: Sequence[Figure], command: str) -> int:
    """Make figures; return 2 where one was left out for missing inputs and that is not allowed.

    `command` is the command line itself, to be kept in the files. Raises UserError for anything
    wrong before weights are read; for one figure alone, for what it lacks.
    """
    request, missing = read_request(options), list[Figure]()

    def done(figure: Figure, action: Callable[[Figure], object]) -> bool:
        try:
            action(figure)
        except UserError as error:
            if len(figures) == 1:
                raise
            missing.append(figure)
            log.warning("figure %s is left out: %s", figure.name, error)
        return figure not in missing

    ready = [figure for figure in figures if done(figure, lambda f: check(f, request))]
    for figure in ready:
        if "pivotal" in figure.needs and request.pivotal is None:
            log.warning("figure %s: without pivotal tuning (%s)", figure.name, HOW)
    make = _maker(request, command)
    for figure in ready:
        done(figure, make)
    if missing:
        names = ", ".join(figure.name for figure in missing)
        log.warning("%d of %d figures were left out: %s", len(missing), len(figures), names)
    return 2 if missing and not options.allow_missing else 0


def _maker(request: Request, command: str) -> Callable[[Figure], None]:
    """Return the function that makes a figure; heavy modules are imported here."""
    from ldm.experiments.figures.output import save
    from ldm.experiments.figures.session import Session
    from ldm.experiments.figures.style import house_style

    session = Session(request)

    def make(figure: Figure) -> None:
        log.info("figure %s: %s", figure.name, figure.title)
        start = time.monotonic()
        with house_style():
            render = get_obj_from_str(f"ldm.experiments.figures.{figure.renderer}")
            rendered = render(figure, session)
        files = save(figure, rendered, request.output, command, session.facts(figure))
        log.info("  %s (%.0f s)", files[0], time.monotonic() - start)

    return make


def sets(arguments: Sequence[str]) -> int:
    """Write the images of the sets that only figures 6, 7 and 8 use."""
    parser = common.Parser(
        prog="scripts/figures.py sets",
        description="Write the sets that only the figures learn a word from: ten stars in all "
        "media (any-star), eight chalk drawings (chalk), and eight neon signs in coarse pixels "
        "(arcade).",
        epilog=SETS_HELP,
    )
    option(parser, "--concepts DIR", "parent of their folders (examples/concepts)", CONCEPTS)
    folder = common.check_output_folder(parser.parse_args(arguments).concepts)

    from ldm.experiments.figures.sets import SETS, write_set

    for name in SETS:
        log.info("%s", write_set(name, Path(folder)))
    return 0


def pivotal(arguments: Sequence[str]) -> int:
    """Tune the miniature for a concept, for figure 11."""
    parser = common.Parser(
        prog="scripts/figures.py pivotal",
        description="Pivotal tuning in the miniature: learn the word, then tune the U-Net and the "
        f"text encoder. Writes {DELTA_FILE} and {WORD} for figure 11.",
        epilog="example:\n  python scripts/figures.py pivotal\n  python scripts/figures.py 11\n",
    )
    option(parser, "--concept", "what to learn", "teal-star")
    text = "a folder of images for each concept (examples/concepts)"
    option(parser, "--concepts DIR", text, CONCEPTS)
    option(parser, "--output DIR", "parent folder", FOLDER)
    option(parser, "--steps", "optimizer steps of both stages (400)", type=int)
    options = parser.parse_args(arguments)
    common.check_least(options, 1, "steps")
    output = Path(common.check_output_folder(options.output)).resolve()
    concepts = Path(options.concepts).resolve()
    made = tune(options.concept, concepts, output, ROOT, options.steps)
    log.info("%s", made)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the figures asked for; `sets` and `pivotal` make what some of them need."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    inputs = {"sets": sets, "pivotal": pivotal}
    if given and given[0] in inputs:
        return inputs[given[0]](given[1:])
    options = parse(given)
    if options.list:
        for figure in FIGURES:
            log.info("%-4s %s", figure.name, figure.title)
        return 0
    wanted = [n for n in options.figures if n != "all"]
    figures = [f for n in wanted for f in find(FIGURES, n)] if wanted else list(FIGURES)
    command = shlex.join(["python", "scripts/figures.py", *given])
    return run(options, list(dict.fromkeys(figures)), command)
