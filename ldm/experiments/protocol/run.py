"""Running a table's cells: each once, whatever is killed, and by however many processes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.engines import Engine
from ldm.experiments.protocol.execute import PROGRAM, Outcome, Task
from ldm.experiments.protocol.folder import LOG, Lock, is_outdated, prepare, receive, scores_of
from ldm.experiments.protocol.progress import Progress

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between looks at cells that other processes run
LAST_LINE = 300  # characters


def cell_folder(output: Path, cell: Cell) -> Path:
    """Return where a cell's files are in a table."""
    return output / "cells" / cell.name


@dataclass
class Runner:
    """Runs the cells of a table that are not finished.

    Attributes:
        output: the table's folder.
        engine: runs them.
        progress: is told of each.
        program: runs one cell; see `ldm.experiments.protocol.execute.PROGRAM`.
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
