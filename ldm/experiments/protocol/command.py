"""The work of `scripts/protocol.py`: plan, run and tabulate a grid."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.evaluation.extractors import extractor_facts, find_extractor
from ldm.experiments.protocol.cells import Cell, build_cells, learning_options
from ldm.experiments.protocol.engines import Engine, LocalEngine
from ldm.experiments.protocol.folder import scores_of
from ldm.experiments.protocol.run import Estimator, Progress, Runner, cell_folder, duration
from ldm.experiments.protocol.spec import ProtocolSpec, read_protocol
from ldm.experiments.protocol.table import keep_words, write_results
from ldm.experiments.protocol.together import groups
from ldm.experiments.protocol.worker import DEVICE, THREADS
from ldm.training.config import load
from ldm.util import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machines:
    """Where the cells run.

    Attributes:
        device: "cuda" or "cpu", for the cells of this machine; "auto" for those of a cluster.
        threads: CPU threads of a cell.
        workers: cells at a time on this machine; None for as many as fit.
        ray: address of a Ray cluster; None for this machine.
        gpus: share of GPUs that a cell takes on Ray.
    """

    device: str
    threads: int = 1
    workers: int | None = None
    ray: str | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.ray and self.workers:
            raise UserError("--workers goes without --ray: a cluster runs as many as fit")
        if not self.ray and self.gpus is not None:
            raise UserError("--gpus SHARE goes with --ray; here --workers says how many share them")

    def visible_gpus(self) -> list[str]:
        """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
        import torch

        if self.device != "cuda":
            return []
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return named or [str(i) for i in range(torch.cuda.device_count())]

    def fitting(self) -> int:
        """Return how many cells run at a time on this machine."""
        # A process can be pinned to some cores, as by taskset.
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return self.workers or len(self.visible_gpus()) or max(1, cores // self.threads)

    def engine(self) -> Engine:
        """Build the engine that runs the cells; UserError for a cluster that is not there."""
        if self.ray:
            from ldm.experiments.protocol.ray_engine import RayEngine

            return RayEngine(self.ray, self.threads, self.gpus or 0.0)
        return LocalEngine(self.fitting(), self.visible_gpus())

    def environment(self) -> dict[str, str]:
        """Return the variables that tell a cell's program its device and its threads.

        A cluster's machine decides for itself: this one may have no GPU, or a cell no share of one.
        """
        device = self.device if self.gpus or not self.ray else "cpu"
        return {DEVICE: device, THREADS: str(self.threads)}


def check_training(spec: ProtocolSpec) -> None:
    """Check the configuration of each variant that learns, as main.py would for its first cell.

    Raises UserError naming the variant.
    """
    concept = spec.concepts[0]
    for variant in spec.variants:
        if variant.source != "learned":
            continue
        try:
            load(learning_options(spec, concept, variant))
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from error


def read_plan(protocol: str, overrides: Sequence[str]) -> tuple[ProtocolSpec, list[Cell]]:
    """Read the protocol, and check all that can be checked before a cell runs, or UserError."""
    logging.getLogger("ldm.data.folder").setLevel(logging.WARNING)  # a line for each folder
    spec = read_protocol(protocol, overrides)
    check_training(spec)
    return spec, build_cells(spec, extractor_facts(spec.extractor, find_extractor(spec.extractor)))


def chosen(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose names match; UserError where none does."""
    found = [c for c in cells if pattern is None or fnmatch.fnmatchcase(c.name, pattern)]
    if not found:
        raise UserError(f"--only {pattern!r} matches no cell; they are named as {cells[0].name!r}")
    return found


def show(
    plan: tuple[ProtocolSpec, list[Cell]], wanted: Sequence[Cell], output: Path, workers: int
) -> None:
    """List wanted cells of a plan, the finished ones and the time that the others may take."""
    estimator, times = Estimator(output, *plan), list[float]()
    for cell in wanted:
        if scores_of(cell_folder(output, cell), cell):
            log.info("%-48s done", cell.name)
        else:
            times.append(estimator.seconds(cell))
            log.info("%-48s about %s", cell.name, duration(times[-1]))
    log.info(
        "%d cells, %d to run: about %s by %d at a time",
        *(len(wanted), len(times), duration(sum(times) / workers), workers),
    )


def run(
    plan: tuple[ProtocolSpec, list[Cell]],
    wanted: Sequence[Cell],
    output: Path,
    machines: Machines,
    words: Path | None = None,
) -> int:
    """Run the wanted cells of a plan and write the results; return 1 if a cell failed.

    `output` is the folder of the grid, `words` one to copy the learned words to.
    """
    spec, cells = plan
    rest = [cell for cell in wanted if not scores_of(cell_folder(output, cell), cell)]
    log.info("%d cells, %d of them finished: %s", len(wanted), len(wanted) - len(rest), output)
    failures: Mapping[str, str] = {}
    try:
        if rest:
            failures = _run_cells(plan, rest, output, machines)
    finally:
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


def _run_cells(
    plan: tuple[ProtocolSpec, list[Cell]], cells: Sequence[Cell], output: Path, machines: Machines
) -> Mapping[str, str]:
    """Run cells that are not finished; return what went wrong with those that failed, by name."""
    engine, estimator = machines.engine(), Estimator(output, *plan)
    expected = {cell.name: estimator.seconds(cell) for cell in cells}
    progress = Progress(len(cells), expected, engine.workers)
    runner = Runner(output, engine, progress, environment=machines.environment())
    at_once = 1 if machines.ray else plan[0].words_at_once
    try:
        return runner.run(cells, groups(cells, output, at_once) if at_once > 1 else ())
    except KeyboardInterrupt:
        log.info("stopped; the same command resumes here")
        raise
    finally:
        progress.close()
