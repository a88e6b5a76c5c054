"""`scripts/protocol.py`: a table of runs, concepts × variants × seeds × prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli.common import Parser, add_base, check_least, check_output_folder, choose_device
from ldm.util import UserError

EXAMPLES = """examples:
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raise UserError for a number out of range."""
    parser = Parser(
        prog="scripts/protocol.py",
        description="Learn and score every cell of a protocol, each once, and write table.csv, "
        "times.csv, each variant's means (summary.csv, .json, .md) and what they say of the "
        "paper's claims (claims.csv, .md). What is finished is not run again.",
        epilog=EXAMPLES,
    )
    parser.add_argument("protocol", metavar="YAML", help="such as configs/protocol/miniature.yaml")
    text = "change an entry of the protocol"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    text = "the table's folder (outputs/protocol/NAME)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)
    add_base(parser, None, "the protocol's checkpoint")
    text = "run the cells whose concept/variant/seedN matches"
    parser.add_argument("--only", metavar="PATTERN", help=text)
    text = "copy the learned words to DIR/VARIANT/seedN/CONCEPT.safetensors"
    parser.add_argument("--keep-words", metavar="DIR", help=text)
    parser.add_argument("--dry-run", action="store_true", help="list the cells and run none")
    group = parser.add_argument_group("on which machines")
    text = "cells at a time (cores over threads, or one a GPU)"
    group.add_argument("--workers", type=int, help=text)
    group.add_argument("--threads", type=int, default=1, help="CPU threads of each cell (1)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    text = "run the cells on a Ray cluster (auto, HOST:PORT), or on Ray here (local)"
    group.add_argument("--ray", metavar="ADDRESS", help=text)
    text = "GPUs a cell takes on Ray (0; 0.5 is half)"
    group.add_argument("--gpus", type=float, metavar="SHARE", help=text)
    options = parser.parse_intermixed_args(arguments)  # overrides may follow options
    check_least(options, 1, "workers", "threads")
    check_least(options, 0, "gpus")
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
    return "cuda" if choose_device(options.device) == "cuda" else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the grid; return 1 if a cell failed."""
    options = parse(arguments)
    output = check_output_folder(
        options.output or Path("outputs") / "protocol" / Path(options.protocol).stem
    ).absolute()
    words = check_output_folder(options.keep_words) if options.keep_words else None
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
