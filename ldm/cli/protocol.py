"""Learn and score every cell of a protocol: concepts, variants, seeds and prompts.

Each cell is run once. Writes table.csv, times.csv, each variant's means (summary.csv, .json, .md)
and what they say of the paper's claims (claims.csv, .md). What is finished is not run again.

Examples:
  the paper's experiments in the miniature, here (hours; run it again to resume):
    python scripts/protocol.py configs/protocol/miniature.yaml
  what it would run, and for how long:
    python scripts/protocol.py configs/protocol/miniature.yaml --dry-run
  one variant, with fewer images:
    python scripts/protocol.py configs/protocol/miniature.yaml --only '*/directional/*' images=8
  copy its words for the figures (scripts/figures.py --words WORDS/ours/seed1):
    python scripts/protocol.py configs/protocol/miniature.yaml --keep-words WORDS
  with the published 1.4B weights, on a Ray cluster, a GPU for each cell:
    python scripts/protocol.py configs/protocol/paper.yaml --ray auto --gpus 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import common
from ldm.cli.common import option
from ldm.util import UserError


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raise UserError for a number out of range."""
    parser = common.Parser(prog="scripts/protocol.py", description=__doc__)
    option(parser, "protocol YAML", "such as configs/protocol/miniature.yaml")
    option(parser, "overrides KEY=VALUE", "change an entry of the protocol", nargs="*")
    option(parser, "--output DIR", "the table's folder (outputs/protocol/NAME)", type=Path)
    common.add_base(parser, None, "the protocol's checkpoint")
    option(parser, "--only PATTERN", "run the cells whose concept/variant/seedN matches")
    text = "copy the learned words to DIR/VARIANT/seedN/CONCEPT.safetensors"
    option(parser, "--keep-words DIR", text)
    option(parser, "--dry-run", "list the cells and run none", False)
    group = parser.add_argument_group("on which machines")
    option(group, "--workers", "cells at a time (cores over threads, or one a GPU)", type=int)
    option(group, "--threads", "CPU threads of each cell", 1)
    option(group, "--device", "auto, cpu or cuda", "auto")
    text = "run the cells on a Ray cluster (auto, HOST:PORT), or on Ray here (local)"
    option(group, "--ray ADDRESS", text)
    option(group, "--gpus SHARE", "GPUs a cell takes on Ray (0; 0.5 is half)", type=float)
    options = parser.parse_intermixed_args(arguments)  # overrides may follow options
    common.check_least(options, 1, "workers", "threads")
    common.check_least(options, 0, "gpus")
    for text in options.overrides:
        if "=" not in text:
            raise UserError(f"unknown argument {text!r}: overrides are written key=value")
    return options


def device_of(options: argparse.Namespace) -> str:
    """Return the device of the cells: "cuda" or "cpu" here, as it was given for a cluster."""
    if options.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {options.device!r}: give auto, cpu or cuda")
    if options.ray:
        return str(options.device)
    return "cuda" if common.choose_device(options.device) == "cuda" else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the grid; return 1 if a cell failed."""
    options = parse(arguments)
    output = common.check_output_folder(
        options.output or Path("outputs") / "protocol" / Path(options.protocol).stem
    ).absolute()
    words = common.check_output_folder(options.keep_words) if options.keep_words else None
    from ldm.experiments.protocol import command

    machines = command.Machines(
        device_of(options), options.threads, options.workers, options.ray, options.gpus
    )
    overrides = list(options.overrides)
    if options.model:
        overrides.append(f"checkpoint={options.model}")
    plan = command.read_plan(options.protocol, overrides)
    wanted = command.chosen(plan[1], options.only)
    if options.dry_run:
        command.show(plan, wanted, output, machines.fitting())
        return 0
    return command.run(plan, wanted, output, machines, words)
