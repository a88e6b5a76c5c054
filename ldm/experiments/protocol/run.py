"""Run a table's cells, each once, even if processes are killed or several run at once."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.engines import PROGRAM, Engine, Outcome, Task
from ldm.experiments.protocol.folder import (
    GROUP,
    LOG,
    TIMES,
    Lock,
    is_outdated,
    prepare,
    read_json,
    receive,
    scores_of,
)
from ldm.experiments.protocol.spec import ProtocolSpec
from ldm.util import write_json

POLL = 0.5  # seconds between looks at cells that other processes run
LAST_LINE = 300  # characters


def cell_folder(output: Path, cell: Cell) -> Path:
    """Return where a cell's files are in a table."""
    return output / "cells" / cell.name


class Estimator:
    """Estimates a cell's seconds from those of a table's finished cells, or else as it says."""

    def __init__(self, output: Path, spec: ProtocolSpec, cells: Sequence[Cell]) -> None:
        found = [read_json(cell_folder(output, cell) / TIMES) for cell in cells]
        steps = [t["learn"] / t["steps"] for t in found if t.get("steps") and not t.get("resumed")]
        images = [t["score"] / t["pictures"] for t in found if t.get("pictures")]
        self.step = statistics.median(steps) if steps else spec.estimate["step"]
        self.image = statistics.median(images) if images else spec.estimate["picture"]

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
        counts = f"{self.done} done, {self.failed} failed, {running} running of {self.total}"
        elapsed = time.monotonic() - self.start
        pace = elapsed / self.spent if self.spent else 1 / self.workers
        left = duration(sum(self.remaining.values()) * pace)
        self.say(
            f"{name} {what}  [{counts}; {f'about {left}' if self.remaining else 'nothing'} left]"
        )

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
    running: dict[str, tuple[Task, list[Lock]]] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], groups: Sequence[Task] = ()) -> dict[str, str]:
        """Run groups, then cells; return what went wrong with those that failed, by name.

        A cell that another process has locked is looked at again until it is finished or free. A
        group of which another process runs a cell is left to that process. What a group has not
        finished is left to its cells.
        """
        try:
            self._work(groups)
            places = [(cell, cell_folder(self.output, cell)) for cell in cells]
            self._work([Task(cell.name, [cell], at, self.program) for cell, at in places])
        finally:
            self.engine.close()
            for _, locks in self.running.values():
                _release(locks)
        return self.failures

    def _work(self, tasks: Sequence[Task]) -> None:
        waiting, said = deque(tasks), set[str]()
        while waiting or self.running:
            busy = [task for task in self._start(waiting) if task.is_alone]
            for task in busy:
                if task.name not in said:
                    said.add(task.name)
                    self.progress.say(f"{task.name} is run by another process: waiting for it")
            waiting.extend(busy)
            for outcome in self.engine.collect(POLL):
                self._finish(outcome)
            if waiting and not self.running:
                time.sleep(POLL)

    def _start(self, waiting: deque[Task]) -> list[Task]:
        """Start tasks while the engine takes them; return those that are locked."""
        busy = []
        while waiting and len(self.running) < self.engine.slots:
            task = waiting.popleft()
            folders = [cell_folder(self.output, cell) for cell in task.cells]
            locks = [Lock(folder) for folder in folders]
            if not all(lock.take() for lock in locks):
                busy.append(task)
            elif task.is_alone and scores_of(task.folder, task.cells[0]):  # a group was quicker
                self.progress.ended(task.name, self._busy())
            else:
                self._begin(task, folders, locks)
                continue
            _release(locks)
        return busy

    def _begin(self, task: Task, folders: Sequence[Path], locks: list[Lock]) -> None:
        for cell, folder in zip(task.cells, folders, strict=True):
            if is_outdated(folder, cell):
                self.progress.say(f"{cell.name}: its settings have changed, it is run anew")
            prepare(folder, cell)
        if not task.is_alone:
            write_json(task.folder / GROUP, [str(folder.resolve()) for folder in folders])
        self.running[task.name] = task, locks
        self.engine.submit(replace(task, environment=self.environment), locks[0])

    def _finish(self, outcome: Outcome) -> None:
        task, locks = self.running.pop(outcome.name)
        if not task.is_alone:
            _release(locks)
            said = "words learned and scored together"
            if outcome.status:
                said = f"failed together, so each cell alone (see {task.folder / LOG})"
            else:
                shutil.rmtree(task.folder)
            self.progress.say(f"{task.name}: {said}")
            return
        receive(task.folder, outcome.files)
        finished = scores_of(task.folder, task.cells[0])
        failure = "" if finished else _failure(outcome, task.folder)
        _release(locks)
        if failure:
            self.failures[task.name] = failure
        self.progress.ended(task.name, self._busy(), failure)

    def _busy(self) -> int:
        """Return how many cells run; a cluster holds further ones back."""
        return min(len(self.running), self.engine.workers)


def _release(locks: Sequence[Lock]) -> None:
    for lock in locks:
        lock.close()


def _failure(outcome: Outcome, folder: Path) -> str:
    """Say in a line what went wrong, and where more about it is."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    reason = outcome.error or last[:LAST_LINE] or f"status {outcome.status}"
    return f"{reason} (see {folder / LOG})"
