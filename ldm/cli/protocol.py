"""`scripts/protocol.py`: a table of runs, concepts × variants × seeds × prompts."""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.common import Parser, check_output_folder, choose_device
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.experiments.protocol.cells import Cell
    from ldm.experiments.protocol.engines import Engine
    from ldm.experiments.protocol.progress import Estimator
    from ldm.experiments.protocol.spec import ProtocolSpec

log = logging.getLogger(__name__)
EXAMPLES = """examples:
  the paper's experiments in the miniature, here (hours; run it again to go on after a stop):
    python scripts/protocol.py configs/protocol/miniature.yaml
  what it would run, and for how long:
    python scripts/protocol.py configs/protocol/miniature.yaml --dry-run
  one variant, with fewer images:
    python scripts/protocol.py configs/protocol/miniature.yaml --only '*/directional/*' pictures=8
  copy its words to where figures are drawn from (scripts/figures/all.py --words WORDS/ours/seed1):
    python scripts/protocol.py configs/protocol/miniature.yaml --keep-words WORDS
  with the published 1.4B weights, on a Ray cluster, a GPU for each cell:
    python scripts/protocol.py configs/protocol/paper.yaml --ray auto --gpus 1
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options, or a number out of range.
    """
    parser = Parser(
        prog="scripts/protocol.py",
        description="Learn and score every cell of a protocol, each once, and write table.csv, "
        "times.csv, each variant's means (summary.csv, .json, .md) and what they say of the "
        "paper's claims (claims.csv, .md). What is finished is not run again.",
        epilog=EXAMPLES,
    )
    parser.add_argument("protocol", metavar="YAML", help="such as configs/protocol/miniature.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change an entry of the protocol"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the table's folder (outputs/protocol/NAME)"
    )
    parser.add_argument("--model", metavar="FILE", help="weights, in place of the protocol's")
    parser.add_argument(
        "--only", metavar="PATTERN", help="run the cells whose concept/variant/seedN matches"
    )
    parser.add_argument(
        "--keep-words",
        metavar="DIR",
        help="copy the learned words to DIR/VARIANT/seedN/CONCEPT.safetensors",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells and run none")
    _add_machines(parser)
    options = parser.parse_intermixed_args(arguments)  # overrides may follow options
    for name, least in (("workers", 1), ("threads", 1), ("gpus", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    for text in options.overrides:
        if "=" not in text:
            raise UserError(f"unknown argument {text!r}: overrides are written key=value")
    return options


def _add_machines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on which machines")
    group.add_argument(
        "--workers", type=int, help="cells at a time (cores over threads, or one a GPU)"
    )
    group.add_argument("--threads", type=int, default=1, help="CPU threads of each cell (1)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the cells on a Ray cluster (auto, HOST:PORT), or on Ray here (local)",
    )
    group.add_argument(
        "--gpus", type=float, metavar="SHARE", help="GPUs a cell takes on Ray (0; 0.5 is half)"
    )


def read_plan(options: argparse.Namespace) -> tuple[ProtocolSpec, list[Cell]]:
    """Read the protocol, and check everything that can be checked before a cell runs.

    Raises:
        UserError: what is wrong.
    """
    from ldm.experiments.protocol.check import check_training
    from ldm.experiments.protocol.spec import read_protocol

    logging.getLogger("ldm.data.folder").setLevel(logging.WARNING)  # a line for each folder
    overrides = list(options.overrides)
    if options.model:
        overrides.append(f"checkpoint={options.model}")
    spec = read_protocol(options.protocol, overrides)
    check_training(spec)

    from ldm.evaluation.extractors import extractor_facts, find_extractor
    from ldm.experiments.protocol.cells import build_cells

    return spec, build_cells(spec, extractor_facts(spec.extractor, find_extractor(spec.extractor)))


def chosen(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose names match.

    Raises:
        UserError: none does.
    """
    found = [c for c in cells if pattern is None or fnmatch.fnmatchcase(c.name, pattern)]
    if not found:
        raise UserError(f"--only {pattern!r} matches no cell; they are named as {cells[0].name!r}")
    return found


def show(cells: Sequence[Cell], output: Path, estimator: Estimator, workers: int) -> None:
    """List cells, with what is done and how long the rest may take."""
    from ldm.experiments.protocol.folder import scores_of
    from ldm.experiments.protocol.progress import duration
    from ldm.experiments.protocol.run import cell_folder

    total, open_cells = 0.0, 0
    for cell in cells:
        if scores_of(cell_folder(output, cell), cell):
            log.info("%-48s done", cell.name)
            continue
        seconds = estimator.seconds(cell)
        total, open_cells = total + seconds, open_cells + 1
        log.info("%-48s about %s", cell.name, duration(seconds))
    log.info(
        "%d cells, %d to run: about %s by %d at a time",
        *(len(cells), open_cells, duration(total / workers), workers),
    )


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    import torch

    if device != "cuda":
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def default_workers(threads: int, gpus: Sequence[str]) -> int:
    """Return how many cells fit this machine."""
    # Where a process can be kept to some cores, as by taskset, only those are its own.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return len(gpus) or max(1, cores // threads)


def build_engine(options: argparse.Namespace) -> Engine:
    """Return what runs the cells.

    Raises:
        UserError: a device or cluster that is not there, or options that do not go together.
    """
    if options.ray:
        from ldm.experiments.protocol.ray_engine import RayEngine

        if options.workers:
            raise UserError("--workers goes without --ray: a cluster runs as many as fit")
        return RayEngine(options.ray, options.threads, options.gpus or 0.0)
    from ldm.experiments.protocol.engines import LocalEngine

    if options.gpus is not None:
        raise UserError("--gpus SHARE goes with --ray; here --workers says how many share them")
    gpus = visible_gpus(device_of(options))
    return LocalEngine(
        options.workers or default_workers(options.threads, gpus), options.threads, gpus
    )


def device_of(options: argparse.Namespace) -> str:
    """Return "cuda" or "cpu", what cells of this machine run on."""
    if options.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {options.device!r}: give auto, cpu or cuda")
    return "cuda" if choose_device(options.device) == "cuda" else "cpu"


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return what each cell's program is told of its device.

    A cluster's machine decides for itself: this one may have no GPU, or a cell no share of one.
    """
    from ldm.experiments.protocol.worker import DEVICE

    if not options.ray:
        return {DEVICE: device_of(options)}
    return {DEVICE: options.device if options.gpus else "cpu"}


def run(options: argparse.Namespace) -> int:
    """Make the table; return 1 where a cell failed.

    Raises:
        UserError: anything wrong that can be known before a cell runs.
    """
    output = check_output_folder(
        options.output or Path("outputs") / "protocol" / Path(options.protocol).stem
    ).absolute()
    words = check_output_folder(options.keep_words) if options.keep_words else None
    spec, cells = read_plan(options)
    wanted = chosen(cells, options.only)

    from ldm.experiments.protocol.folder import scores_of
    from ldm.experiments.protocol.progress import Estimator, Progress
    from ldm.experiments.protocol.run import Runner, cell_folder
    from ldm.experiments.protocol.table import write_results
    from ldm.experiments.protocol.words import keep_words

    estimator = Estimator(
        [cell_folder(output, cell) for cell in cells], spec.seconds_a_step, spec.seconds_a_picture
    )
    if options.dry_run:
        fitting = options.workers or default_workers(
            options.threads, visible_gpus(device_of(options))
        )
        show(wanted, output, estimator, fitting)
        return 0
    told = environment(options)
    rest = [cell for cell in wanted if not scores_of(cell_folder(output, cell), cell)]
    log.info("%d cells, %d of them finished: %s", len(wanted), len(wanted) - len(rest), output)
    failures: dict[str, str] = {}
    if rest:
        engine = build_engine(options)
        expected = {cell.name: estimator.seconds(cell) for cell in rest}
        progress = Progress(len(rest), expected, engine.workers)
        runner = Runner(output, engine, progress, environment=told)
        try:
            failures = runner.run(rest)
        except KeyboardInterrupt:
            log.info("stopped; the same command goes on from here")
            raise
        finally:
            progress.close()
            write_results(output, cells, spec.reference, spec.resamples)
    else:
        write_results(output, cells, spec.reference, spec.resamples)
    if words is not None:
        log.info("%d words in %s", keep_words(output, cells, words), words)
    for name in ("summary.md", "claims.md"):
        log.info("%s", (output / name).read_text(encoding="utf-8"))
    for name, failure in failures.items():
        log.error("failed: %s: %s", name, failure)
    if failures:
        counts = len(failures), len(rest)
        log.error("%d of %d cells failed; the same command tries them again", *counts)
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run(parse(arguments))
