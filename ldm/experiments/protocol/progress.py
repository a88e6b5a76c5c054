"""How far a table is, and how long the rest may take."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import TIMES, read_json


class Estimator:
    """Guesses a cell's seconds from those of finished cells.

    Args:
        folders: of the cells.
        step: seconds of an optimizer step, until one has been timed.
        image: of generating and scoring an image, likewise.
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

    Args:
        total: cells to run.
        expected: seconds of each, by name.
        workers: at a time.
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
        """Take the bar away."""
        self.bar.close()
