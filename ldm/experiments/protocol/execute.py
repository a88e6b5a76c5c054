"""Running a cell's program in its folder, on this machine: what every engine does in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.experiments.protocol.cells import Cell, digest
from ldm.experiments.protocol.folder import LOG, Lock, outputs_of, prepare, receive
from ldm.resources import ROOT

# Given the cell's folder, which holds cell.json; it leaves scores.json there.
PROGRAM = (sys.executable, "-m", "ldm.experiments.protocol.worker")


@dataclass(frozen=True)
class Task:
    """A cell to run, as plain values that travel between machines.

    Attributes:
        name: of the cell.
        folder: of the cell, where the table is.
        cell: its cell.json.
        program: what runs it.
        environment: what it finds there besides this process's own.
    """

    name: str
    folder: str
    cell: str
    program: Sequence[str] = PROGRAM
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        status: the program's exit status, 0 for success.
        error: in a line, where it did not come to an exit status.
        files: what it made, where that has still to be written into the cell's folder.
    """

    name: str
    status: int
    error: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Process:
    """A cell's program under way, in a process group of its own.

    Args:
        task: what to run.
        folder: where.
        lock: of the folder; the program keeps it should this process die.
    """

    def __init__(self, task: Task, folder: Path, lock: Lock) -> None:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        environment = {**os.environ, "PYTHONPATH": path, **task.environment}
        with (folder / LOG).open("ab") as log:
            # The open end of its standard input tells it that somebody waits for it.
            self.process = subprocess.Popen(
                [*task.program, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
                pass_fds=(lock.handle,),
            )

    def wait(self) -> int:
        """Wait for it; return its exit status. Whatever it had started is ended."""
        status = self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return status

    def stop(self) -> None:
        """Ask it to save and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()


def run_elsewhere(task: Task, inputs: Mapping[str, bytes], node: str) -> Outcome:
    """Run a task in a folder of this machine's own and return the files it made.

    A task that is tried again on the same machine finds there what the first try left.

    Args:
        task: what to run.
        inputs: files that the cell's folder holds already.
        node: tells machines apart that share a disk.
    """
    place = digest([task.folder, task.cell, node])
    folder = Path(tempfile.gettempdir()) / f"ldm-protocol-{os.getuid()}" / place
    lock = Lock(folder)
    try:
        lock.take(wait=True)
        receive(folder, inputs)
        prepare(folder, Cell.from_json(task.cell))
        status = Process(task, folder, lock).wait()
        files = outputs_of(folder)
        if status == 0:
            shutil.rmtree(folder)
    finally:
        lock.close()
    return Outcome(task.name, status, files=files)
