"""`scripts/demo.py`: learn a word with the miniature and show the result on a page."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.common import (
    MINIATURE,
    Parser,
    add_model,
    check_least,
    check_output_folder,
    find_model,
)
from ldm.resources import ROOT
from ldm.util import UserError

log = logging.getLogger(__name__)
EXAMPLES = """examples:
  python scripts/demo.py
  python scripts/demo.py --concept red-mug --second chalk
  python scripts/demo.py --concept blueprint --steps 200 --outdir outputs/blueprint
"""
# Option, default, help.
FILES = (
    ("base", "configs/miniature/finetune.yaml", "configuration of the training"),
    ("scorer", "models/miniature/scorer", "folder of the CLIP that scores"),
    ("concepts", "examples/concepts", "folder of the concepts"),
    ("words", "examples/words", "folder of shipped words"),
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="demo.py",
        description="Learn a word with the miniature model, generate images of five prompts, score "
        "them, and write index.html, grids of images and metrics.json.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--concept", default="teal-star", help="what to learn (teal-star)")
    parser.add_argument("--second", help="shipped word of the composition (a style or a thing)")
    parser.add_argument(
        "--variant", default="fast", help="variant, as in main.py (fast); '' for none"
    )
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (100)")
    parser.add_argument("--outdir", type=Path, default=Path("outputs/demo"), help="(outputs/demo)")
    parser.add_argument("--seed", type=int, default=2, help="seed of the training (2)")
    parser.add_argument("--samples", type=int, default=8, help="images of each prompt (8)")
    parser.add_argument("--scored", type=int, default=32, help="images of the word alone (32)")
    parser.add_argument("--ddim_steps", type=int, default=50, help="sampler steps (50)")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale (3)")
    group = parser.add_argument_group("other files")
    add_model(group, MINIATURE)
    for name, default, text in FILES:
        names = [f"--{name}", "--judge"] if name == "scorer" else [f"--{name}"]
        group.add_argument(*names, type=Path, default=ROOT / default, metavar="PATH", help=text)
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raise UserError for a value out of range or a file that is not there."""
    check_least(options, 1, "steps", "samples", "ddim_steps")
    check_least(options, 2, "scored")
    if not options.base.is_file():
        raise UserError(f"--base {options.base}: no such file")
    find_model(options.model, options.config)
    if not (options.scorer / "model.safetensors").is_file():
        raise UserError(f"--scorer {options.scorer}: no model.safetensors in it")
    check_output_folder(options.outdir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo."""
    options = parse(argv)
    check(options)
    from ldm.experiments.demo.run import DemoOptions, run

    found = run(DemoOptions(**vars(options))).metrics()
    log.info(
        "image similarity %.3f (initializer word %.3f, training images %.3f), text similarity %.3f",
        found["image_similarity"],
        found["first_word"]["image_similarity"],
        found["training_pictures"]["image_similarity"],
        found["text_similarity"],
    )
    log.info("%.0f s; open %s", found["seconds"], options.outdir / "index.html")
    return 0
