"""`scripts/figures.py sets` and `scripts/figures.py pivotal`: what only some figures need."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.checkpoint.names import DELTA_FILE
from ldm.cli.common import Parser, check_least, check_output_folder
from ldm.experiments.figures.pivotal import FOLDER, WORD, make
from ldm.resources import ROOT

log = logging.getLogger(__name__)
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


def sets(arguments: Sequence[str]) -> int:
    """Write the images of the sets that only figures 6, 7 and 8 use."""
    parser = Parser(
        prog="scripts/figures.py sets",
        description="Write the sets that only the figures learn a word from: ten stars in all "
        "media (any-star), eight chalk drawings (chalk), and eight neon signs in coarse pixels "
        "(arcade).",
        epilog=SETS_HELP,
    )
    text = "parent of their folders (examples/concepts)"
    parser.add_argument("--concepts", metavar="DIR", default=CONCEPTS, help=text)
    folder = check_output_folder(parser.parse_args(arguments).concepts)

    from ldm.experiments.figures.sets import SETS, write_set

    for name in SETS:
        log.info("%s", write_set(name, Path(folder)))
    return 0


def pivotal(arguments: Sequence[str]) -> int:
    """Tune the miniature for a concept, for figure 11."""
    parser = Parser(
        prog="scripts/figures.py pivotal",
        description="Pivotal tuning in the miniature: learn the word, then tune the U-Net and the "
        f"text encoder. Writes {DELTA_FILE} and {WORD} for figure 11.",
        epilog="example:\n  python scripts/figures.py pivotal\n  python scripts/figures.py 11\n",
    )
    parser.add_argument("--concept", default="teal-star", help="what to learn (teal-star)")
    text = "a folder of images for each concept (examples/concepts)"
    parser.add_argument("--concepts", metavar="DIR", default=CONCEPTS, help=text)
    parser.add_argument("--output", metavar="DIR", default=FOLDER, help=f"parent folder ({FOLDER})")
    parser.add_argument("--steps", type=int, help="of both stages (400)")
    options = parser.parse_args(arguments)
    check_least(options, 1, "steps")
    output = Path(check_output_folder(options.output)).resolve()
    made = make(options.concept, Path(options.concepts).resolve(), output, ROOT, options.steps)
    log.info("%s", made)
    return 0
