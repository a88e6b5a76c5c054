#!/usr/bin/env python
"""Draw the sets that only figures 6, 7 and 8 use: `--help` tells how their words are learned."""

from __future__ import annotations

from pathlib import Path

from ldm.cli.common import ROOT, Parser, check_output_folder
from ldm.util import cli_main

HELP = """then learn their words and put them beside the others (two minutes each on one core):
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


def main() -> int:
    """Write the images."""
    parser = Parser(
        prog="scripts/figures/make_sets.py",
        description="Draw the sets that only the figures learn a word from: ten stars in all media "
        "(any-star), eight drawings in chalk, and eight neon signs in coarse pixels (arcade).",
        epilog=HELP,
    )
    parser.add_argument(
        "--concepts",
        metavar="DIR",
        default=str(ROOT / "examples" / "concepts"),
        help="where their folders go (examples/concepts)",
    )
    folder = check_output_folder(parser.parse_args().concepts)

    from ldm.experiments.figures.sets import SETS, write_set

    for name in SETS:
        print(write_set(name, Path(folder)))
    return 0


if __name__ == "__main__":
    cli_main(main)
