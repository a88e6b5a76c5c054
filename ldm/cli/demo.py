"""Learn a word with the miniature model, and show the result on a page.

Generates images of five prompts, scores them, and writes index.html, grids of images and
metrics.json.

Examples:
  python scripts/demo.py
  python scripts/demo.py --concept red-mug --second chalk
  python scripts/demo.py --concept blueprint --steps 200 --outdir outputs/blueprint
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import common
from ldm.cli.common import option
from ldm.resources import ROOT
from ldm.util import UserError

log = logging.getLogger(__name__)
# Options, default, help.
FILES = (
    ("--base", "configs/miniature/finetune.yaml", "configuration of the training"),
    ("--scorer --judge", "models/miniature/scorer", "folder of the CLIP that scores"),
    ("--concepts", "examples/concepts", "folder of the concepts"),
    ("--words", "examples/words", "folder of shipped words"),
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="demo.py", description=__doc__)
    option(parser, "--concept", "what to learn", "teal-star")
    option(parser, "--second", "shipped word of the composition (a style or a thing)")
    option(parser, "--variant", "variant, as in main.py; '' for none (fast)", "fast")
    option(parser, "--steps", "optimizer steps", 100)
    option(parser, "--outdir", "(outputs/demo)", Path("outputs/demo"), type=Path)
    option(parser, "--seed", "seed of the training", 2)
    option(parser, "--samples", "images of each prompt", 8)
    option(parser, "--scored", "images of the word alone", 32)
    option(parser, "--ddim_steps", "steps of the sampler, DPM-Solver++", 20)
    option(parser, "--scale", "guidance scale", 3.0)
    group = parser.add_argument_group("other files")
    common.add_model(group, common.MINIATURE)
    for names, default, text in FILES:
        option(group, f"{names} PATH", text, ROOT / default, type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo."""
    options = parse(argv)
    common.check_least(options, 1, "steps", "samples", "ddim_steps")
    common.check_least(options, 2, "scored")
    if not options.base.is_file():
        raise UserError(f"--base {options.base}: no such file")
    common.find_model(options.model, options.config)
    if not (options.scorer / "model.safetensors").is_file():
        raise UserError(f"--scorer {options.scorer}: no model.safetensors in it")
    common.check_output_folder(options.outdir)

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
