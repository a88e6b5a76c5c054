"""`scripts/benchmark.py`: speed and memory against diffusers and against the original's way.

All sides take turns, so that a busy or warm machine affects all of them. Each turn is a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldm.cli.common import (
    MINIATURE,
    Parser,
    add_base,
    add_options,
    check_least,
    check_output_folder,
    choose_device,
    find_model,
)

log = logging.getLogger(__name__)
SECTIONS = ("miniature", "1.4B", "start", "growth", "runs")
EXAMPLES = """examples:
  python scripts/benchmark.py                          # everything: about 40 minutes on two cores
  python scripts/benchmark.py --sections miniature --rounds 3
  python scripts/benchmark.py --sections 1.4B --device cuda --batch_size 4
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="benchmark.py",
        description="Time training steps, generation and whole runs of this project, of diffusers' "
        "parts driven as its own script drives them, and of the original's algorithm. Weights are "
        "random, except in whole runs. Writes JSON and Markdown.",
        epilog=EXAMPLES,
    )
    names = list(SECTIONS)
    parser.add_argument("--sections", nargs="+", choices=names, default=names, help="to measure")
    parser.add_argument("--batch_size", type=int, help="images a step (miniature 8, 1.4B 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--repeat", type=int, default=3, help="steps timed in a turn (3)")
    add_options(parser, device="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    add_base(parser, MINIATURE, f"{MINIATURE}; of whole runs, in its sizes")
    text = "one round of few steps, in this process: for a look"
    parser.add_argument("--quick", action="store_true", help=text)
    parser.add_argument("--out", default="outputs/benchmark", help="folder of the results")
    text = "Markdown page that gets the tables, at its marks"
    parser.add_argument("--page", type=Path, help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    options = parse(argv)
    check_least(options, 1, "batch_size", "rounds", "repeat", "threads")
    folder, device = check_output_folder(options.out), choose_device(options.device)
    _, weights = find_model(options.model, None)

    from ldm.experiments.benchmark import report, sections, startup
    from ldm.experiments.benchmark.turn import Turn

    quick = options.quick
    turn = Turn(
        "miniature",
        "ours, float32",
        batch=options.batch_size,
        repeat=1 if quick else options.repeat,
        device=device,
        threads=options.threads,
        images=1 if quick else None,
        steps=2 if quick else None,
    )
    plan = sections.Plan(
        folder.absolute(), 1 if quick else options.rounds, turn, weights.absolute(), quick
    )
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "miniature": lambda: sections.compare(plan, "miniature"),
        "1.4B": lambda: sections.compare(plan, "1.4B"),
        "start": lambda: startup.start(plan),
        "growth": lambda: sections.growth(plan),
        "runs": lambda: sections.runs(plan),
    }
    results = report.read(folder)
    for name in options.sections:
        results[name] = measures[name]()
        report.write(folder, results, options.page)
    log.info("%s\nwritten to %s", report.tables(results), folder)
    return 0
