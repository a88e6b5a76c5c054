"""Cells of several concepts in one process, with words learned in one run (`ldm.training.many`).

`python -m ldm.experiments.protocol.together FOLDER` runs a group of cells that have the variant and
the seed in common. The folder holds group.json, and the log folder of the run. The words are those
that the cells would learn alone, up to the order of floating-point sums.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldm.experiments.protocol.cells import Cell, digest
from ldm.experiments.protocol.engines import Engine, Task
from ldm.experiments.protocol.folder import CELL, LOG, TIMES, Lock, prepare
from ldm.experiments.protocol.run import POLL, Progress, cell_folder
from ldm.experiments.protocol.worker import (
    LAST_WORD,
    Leash,
    has_word,
    keep,
    main,
    run_cell,
    train,
)
from ldm.util import cli_main, write_json

log = logging.getLogger(__name__)

GROUP = "group.json"
PROGRAM = (sys.executable, "-m", "ldm.experiments.protocol.together")


@dataclass(frozen=True)
class Group:
    """Cells that one process runs, and the folder of each."""

    cells: Sequence[Cell]
    folders: Sequence[Path]

    @property
    def name(self) -> str:
        """What the group is called: the same cells give the same name."""
        cell = self.cells[0]
        return f"{cell.variant}-seed{cell.seed}-{digest([c.learn_hash for c in self.cells])[:8]}"


def groups(cells: Sequence[Cell], output: Path, most: int) -> list[Group]:
    """Return groups of 2 to `most` cells whose words are yet to be learned and independent."""
    # The program of a group needs neither, and importing them takes seconds.
    from ldm.training.config import load
    from ldm.training.many import ties

    alike: dict[str, list[Cell]] = {}
    independent: dict[str, bool] = {}
    for cell in cells:
        if cell.learn is None or has_word(cell_folder(output, cell), cell):
            continue
        if cell.variant not in independent:
            independent[cell.variant] = not ties(load(cell.places["options"]).sections)
        if independent[cell.variant]:
            alike.setdefault(f"{cell.variant}/{cell.seed}", []).append(cell)
    found = []
    for own in alike.values():
        parts = (own[start : start + most] for start in range(0, len(own), most))
        found += [Group(p, [cell_folder(output, c) for c in p]) for p in parts if len(p) > 1]
    return found


def run_groups(
    found: Sequence[Group],
    output: Path,
    engine: Engine,
    progress: Progress,
    environment: Mapping[str, str],
) -> None:
    """Run groups. What a group that fails has not finished is left to its cells.

    A group of which another process runs a cell is left to that process.
    """
    waiting, running = deque(found), dict[str, list[Lock]]()
    try:
        while waiting or running:
            while waiting and len(running) < engine.slots:
                group = waiting.popleft()
                if locks := _locks(group):
                    running[group.name] = locks
                    folder = _begin(group, output)
                    task = Task(group.name, str(folder), "", PROGRAM, environment)
                    engine.submit(task, locks[0])
            for outcome in engine.collect(POLL):
                for lock in running.pop(outcome.name):
                    lock.close()
                folder = output / "together" / outcome.name
                said = "words learned and scored together"
                if outcome.status:
                    said = f"failed together, so each cell alone (see {folder / LOG})"
                else:
                    shutil.rmtree(folder)
                progress.say(f"{outcome.name}: {said}")
    except BaseException:
        engine.close()
        raise
    finally:
        for locks in running.values():
            for lock in locks:
                lock.close()


def _locks(group: Group) -> list[Lock]:
    """Return the locks of a group's cells; none where another process has one of them."""
    locks = [Lock(folder) for folder in group.folders]
    if all(lock.take() for lock in locks):
        return locks
    for lock in locks:
        lock.close()
    return []


def _begin(group: Group, output: Path) -> Path:
    """Write what the program of a group reads; return its folder."""
    for cell, folder in zip(group.cells, group.folders, strict=True):
        prepare(folder, cell)
    folder = output / "together" / group.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / GROUP, [str(path.resolve()) for path in group.folders])
    return folder


def run(folder: Path, leash: Leash) -> None:
    """Learn the words of the group in a folder, put each into its cell's folder, and score it.

    SystemExit where the training failed, or left out a word; it has said why.
    """
    folders = [Path(path) for path in json.loads((folder / GROUP).read_text(encoding="utf-8"))]
    cells = [Cell.from_json((own / CELL).read_text(encoding="utf-8")) for own in folders]
    logs, times = train(cells, folder, folder / "learning", leash)
    times |= {"learn": round(times["learn"] / len(cells), 1), "words_at_once": len(cells)}
    for cell, own in zip(cells, folders, strict=True):
        name = Path(cell.places["folder"]).resolve().name
        keep(cell, own, logs / name / "checkpoints" / LAST_WORD)
        write_json(own / TIMES, times)
    shutil.rmtree(folder / "learning")
    for own in folders:
        run_cell(own, leash)


if __name__ == "__main__":
    cli_main(partial(main, run))
