"""Run a table's cells, each once, even if processes are killed or several run at once."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.engines import PROGRAM, Engine, Outcome, Task
from ldm.experiments.protocol.folder import (
    LOG,
    TIMES,
    Lock,
    is_outdated,
    prepare,
    read_json,
    receive,
    scores_of,
)

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between looks at cells that other processes run
LAST_LINE = 300  # characters


def cell_folder(output: Path, cell: Cell) -> Path:
    """Return where a cell's files are in a table."""
    return output / "cells" / cell.name


class Estimator:
    """Estimates a cell's seconds from those of finished cells, whose folders it reads.

    `step` and `image` are seconds of an optimizer step, and of generating and scoring an image,
    until one has been timed.
    """

    def __init__(self, folders: Sequence[Path], step: float, image: float) -> None:
        self.steps, self.images = [], []
        for folder in folders:
            times = read_json(folder / TIMES)
            if times.get("steps") and not times.get("resumed"):
                self.steps.append(times["learn"] / times["steps"])
            if times.get("pictures"):
                self.images.append(times["score"] / times["pictures"])
        self.step = statistics.median(self.steps) if self.steps else step
        self.image = statistics.median(self.images) if self.images else image

    def seconds(self, cell: Cell) -> float:
        """Return how long a cell may take from its beginning."""
        steps = 0 if cell.learn is None else int(cell.learn["steps"])
        return steps * self.step + cell.images_generated * self.image


def duration(seconds: float) -> str:
    """Write seconds for a person: "45 s", "3 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Says what has ended and what remains: a bar on a terminal, a line for each cell anywhere.

    `expected` has the seconds of each cell by name; so many `workers` run at a time.
    """

    def __init__(self, total: int, expected: Mapping[str, float], workers: int) -> None:
        self.remaining = dict(expected)
        self.total, self.workers = total, max(1, workers)
        self.done = self.failed = 0
        # How long cells really take against what was expected of them.
        self.start, self.spent = time.monotonic(), 0.0
        self.bar = tqdm(total=total, unit=" cells", disable=not sys.stderr.isatty(), leave=False)

    def say(self, text: str) -> None:
        """Write a line without breaking the bar."""
        self.bar.write(text, file=sys.stderr)

    def ended(self, name: str, running: int, failure: str = "") -> None:
        """Note that a cell has ended, and say so."""
        self.spent += self.remaining.pop(name, 0.0)
        self.failed += bool(failure)
        self.done += not failure
        self.bar.update()
        self.bar.set_postfix(failed=self.failed, running=running)
        what = f"failed: {failure}" if failure else "done"
        counts = f"{self.done} done, {self.failed} failed, {running} running"
        of = f"of {self.total}"
        rest = f"about {duration(self.left())} left" if self.remaining else "nothing left"
        self.say(f"{name} {what}  [{counts} {of}; {rest}]")

    def left(self) -> float:
        """Return how many seconds the remaining cells may take."""
        rest = sum(self.remaining.values())
        elapsed = time.monotonic() - self.start
        pace = elapsed / self.spent if self.spent else 1 / self.workers
        return rest * pace

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


@dataclass
class Runner:
    """Runs the cells of a table, in the folder `output`, that are not finished.

    Attributes:
        engine, progress: runs them, and is told of each.
        program: runs one cell; see `PROGRAM`.
        environment: what it finds there besides this process's own.
        failures: name → what went wrong, of those that failed.
    """

    output: Path
    engine: Engine
    progress: Progress
    program: Sequence[str] = PROGRAM
    environment: Mapping[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[Cell, Lock]] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Run cells; return what went wrong with those that failed, by name.

        A cell that another process has locked is looked at again until it is finished or free.
        """
        waiting = deque(cells)
        said: set[str] = set()
        try:
            while waiting or self.running:
                busy = self._start(waiting)
                for cell in busy:
                    if cell.name not in said:
                        said.add(cell.name)
                        self.progress.say(f"{cell.name} is run by another process: waiting for it")
                waiting.extend(busy)
                for outcome in self.engine.collect(POLL):
                    self._finish(outcome)
                if waiting and not self.running:
                    time.sleep(POLL)
        finally:
            self.engine.close()
            for _, lock in self.running.values():
                lock.close()
        return self.failures

    def _start(self, waiting: deque[Cell]) -> list[Cell]:
        """Start cells while the engine takes them; return those that are locked."""
        busy = []
        while waiting and len(self.running) < self.engine.slots:
            cell = waiting.popleft()
            folder = cell_folder(self.output, cell)
            lock = Lock(folder)
            if not lock.take():
                lock.close()
                busy.append(cell)
                continue
            if scores_of(folder, cell):  # another process was quicker
                lock.close()
                self.progress.ended(cell.name, self._busy())
                continue
            if is_outdated(folder, cell):
                self.progress.say(f"{cell.name}: its settings have changed, it is run anew")
            prepare(folder, cell)
            self.running[cell.name] = cell, lock
            task = Task(
                cell.name, str(folder), cell.to_json(), tuple(self.program), self.environment
            )
            self.engine.submit(task, lock)
        return busy

    def _finish(self, outcome: Outcome) -> None:
        cell, lock = self.running.pop(outcome.name)
        folder = cell_folder(self.output, cell)
        receive(folder, outcome.files)
        failure = "" if scores_of(folder, cell) else _failure(outcome, folder)
        lock.close()
        if failure:
            self.failures[cell.name] = failure
        self.progress.ended(cell.name, self._busy(), failure)

    def _busy(self) -> int:
        """Return how many cells run; a cluster holds further ones back."""
        return min(len(self.running), self.engine.workers)


def _failure(outcome: Outcome, folder: Path) -> str:
    """Say in a line what went wrong, and where more about it is."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    reason = outcome.error or last[:LAST_LINE] or f"status {outcome.status}"
    return f"{reason} (see {folder / LOG})"
