"""Cells of several concepts in one process, with words learned in one run (`ldm.training.many`).

`python -m ldm.experiments.protocol.together FOLDER` runs a group of cells that have the variant and
the seed in common. The folder holds group.json, and the log folder of the run. The words are those
that the cells would learn alone, up to the order of floating-point sums.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ldm.experiments.protocol import worker
from ldm.experiments.protocol.cells import Cell, digest
from ldm.experiments.protocol.engines import Task
from ldm.experiments.protocol.folder import CELL, GROUP, TIMES
from ldm.experiments.protocol.run import cell_folder
from ldm.experiments.protocol.worker import Leash
from ldm.util import cli_main, write_json

PROGRAM = (sys.executable, "-m", "ldm.experiments.protocol.together")


def groups(cells: Sequence[Cell], output: Path, most: int) -> list[Task]:
    """Return groups of 2 to `most` cells whose words are yet to be learned and independent."""
    # The program of a group needs neither, and importing them takes seconds.
    from ldm.training.config import load
    from ldm.training.many import ties

    alike: dict[str, list[Cell]] = {}
    independent: dict[str, bool] = {}
    for cell in cells:
        if cell.learn is None or worker.has_word(cell_folder(output, cell), cell):
            continue
        if cell.variant not in independent:
            independent[cell.variant] = not ties(load(cell.places["options"]).sections)
        if independent[cell.variant]:
            alike.setdefault(f"{cell.variant}/{cell.seed}", []).append(cell)
    parts = [own[i : i + most] for own in alike.values() for i in range(0, len(own), most)]
    return [_task(own, output) for own in parts if len(own) > 1]


def _task(cells: Sequence[Cell], output: Path) -> Task:
    """Return the task of a group; the same cells give the same name."""
    cell = cells[0]
    name = f"{cell.variant}-seed{cell.seed}-{digest([c.learn_hash for c in cells])[:8]}"
    return Task(name, cells, output / "together" / name, PROGRAM)


def run(folder: Path, leash: Leash) -> None:
    """Learn the words of the group in a folder, put each into its cell's folder, and score it.

    SystemExit where the training failed, or left out a word; it has said why.
    """
    folders = [Path(path) for path in json.loads((folder / GROUP).read_text(encoding="utf-8"))]
    cells = [Cell.from_json((own / CELL).read_text(encoding="utf-8")) for own in folders]
    logs, times = worker.train(cells, folder, folder / "learning", leash)
    times |= {"learn": round(times["learn"] / len(cells), 1), "words_at_once": len(cells)}
    for cell, own in zip(cells, folders, strict=True):
        name = Path(cell.places["folder"]).resolve().name
        worker.keep(cell, own, logs / name / "checkpoints" / worker.LAST_WORD)
        write_json(own / TIMES, times)
    shutil.rmtree(folder / "learning")
    for own in folders:
        worker.run_cell(own, leash)


if __name__ == "__main__":
    cli_main(partial(worker.main, run))
