#!/usr/bin/env python
"""Tune the miniature around a concept for figure 11: `--help` tells what is left where."""

from __future__ import annotations

from pathlib import Path

from ldm.cli.common import ROOT, Parser, check_output_folder
from ldm.experiments.figures.pivotal import DIFFERENCE, FOLDER, WORD, make
from ldm.util import UserError, cli_main

EXAMPLES = """example:
  python scripts/figures/make_pivotal.py
  python scripts/figures/fig11.py
"""


def main() -> int:
    """Read the command line and tune."""
    parser = Parser(
        prog="scripts/figures/make_pivotal.py",
        description="Pivotal tuning in the miniature: the word is learned, then the U-Net and the "
        f"text encoder follow. Leaves {DIFFERENCE} and {WORD}, for figure 11.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--concept", default="teal-star", help="what to learn (teal-star)")
    parser.add_argument(
        "--concepts",
        metavar="DIR",
        default=str(ROOT / "examples" / "concepts"),
        help="a folder of images for each concept (examples/concepts)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=str(ROOT / FOLDER),
        help=f"gets a folder for the concept ({FOLDER})",
    )
    parser.add_argument("--steps", type=int, help="of both stages (400)")
    options = parser.parse_args()
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps must be at least 1, got {options.steps}")
    output = Path(check_output_folder(options.output)).resolve()
    print(make(options.concept, Path(options.concepts).resolve(), output, ROOT, options.steps))
    return 0


if __name__ == "__main__":
    cli_main(main)
