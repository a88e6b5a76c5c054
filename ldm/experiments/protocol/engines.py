"""Engines run tasks, which are cells to run: here on this machine, in `ray_engine` on a cluster."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ldm.experiments.protocol.cells import Cell, digest
from ldm.experiments.protocol.folder import KEPT, LOG, Lock, files_of, prepare, receive
from ldm.resources import ROOT, child_environment
from ldm.util import at_least

# Given the cell's folder, which holds cell.json; it leaves scores.json there.
PROGRAM = (sys.executable, "-m", "ldm.experiments.protocol.worker")


@dataclass(frozen=True)
class Task:
    """Cells that one process runs: one alone, or several whose words are learned in one run.

    Attributes:
        name: the cell's name, or one that the same cells give again.
        folder: what the process is given: the cell's; of several cells one that holds `GROUP`.
        program: command that runs them.
        environment: variables beside this process's own.
    """

    name: str
    cells: Sequence[Cell]
    folder: Path
    program: Sequence[str] = PROGRAM
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        """Whether this is one cell."""
        return len(self.cells) == 1


@dataclass(frozen=True)
class Outcome:
    """How a task ended: the program's exit status, or an error in a line where it has none.

    `files` are what it made, where that has still to be written into the cell's folder.
    """

    name: str
    status: int
    error: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Process:
    """A cell's program under way in a folder, in a process group of its own.

    The program keeps the folder's lock should this process die.
    """

    def __init__(self, task: Task, folder: Path, lock: Lock) -> None:
        with (folder / LOG).open("ab") as log:
            # Its standard input stays open while this process waits for it.
            self.process = subprocess.Popen(
                [*task.program, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**child_environment(), **task.environment},
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

    A task that is tried again on the same machine finds there what the first try left. `inputs` are
    files that the cell's folder holds already; `node` tells machines apart that share a disk.
    """
    (cell,) = task.cells
    place = digest([str(task.folder), cell.to_json(), node])
    folder = Path(tempfile.gettempdir()) / f"ldm-protocol-{os.getuid()}" / place
    lock = Lock(folder)
    try:
        lock.take(wait=True)
        receive(folder, inputs)
        prepare(folder, cell)
        status = Process(task, folder, lock).wait()
        files = files_of(folder, KEPT)
        if status == 0:
            shutil.rmtree(folder)
    finally:
        lock.close()
    return Outcome(task.name, status, files=files)


class Engine(Protocol):
    """Runs `workers` tasks side by side, and takes `slots` at a time."""

    slots: int
    workers: int

    def submit(self, task: Task, lock: Lock) -> None:
        """Begin a task, of whose folder this process holds the lock."""
        ...

    def collect(self, timeout: float) -> list[Outcome]:
        """Wait for at most so many seconds, and return what has ended since."""
        ...

    def close(self) -> None:
        """Stop the running tasks, let them save, and wait for them."""
        ...


class LocalEngine:
    """Runs `workers` tasks on this machine, each with, by turns, a GPU.

    `gpus` are numbers as CUDA_VISIBLE_DEVICES has them.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        at_least(1, workers=workers)
        self.slots = self.workers = workers
        self.pool = ThreadPoolExecutor(workers)
        self.running: set[Future[Outcome]] = set()
        self.processes: set[Process] = set()
        self.closed = False
        self.gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
        for i in range(workers):
            self.gpus.put(gpus[i % len(gpus)] if gpus else "")

    def submit(self, task: Task, lock: Lock) -> None:
        """Begin a task; see `Engine`."""
        self.running.add(self.pool.submit(self._run, task, lock))

    def _run(self, task: Task, lock: Lock) -> Outcome:
        if self.closed:
            return Outcome(task.name, 130, "stopped")
        gpu = self.gpus.get()
        own = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        task = replace(task, environment={**own, **task.environment})
        try:
            process = Process(task, task.folder, lock)
            self.processes.add(process)
            try:
                return Outcome(task.name, process.wait())
            finally:
                self.processes.discard(process)
        except OSError as error:
            return Outcome(task.name, 1, f"could not be started: {error}")
        finally:
            self.gpus.put(gpu)

    def collect(self, timeout: float) -> list[Outcome]:
        """Return what has ended; see `Engine`."""
        done, self.running = wait(self.running, timeout, FIRST_COMPLETED)
        return [future.result() for future in done]

    def close(self) -> None:
        """Stop what is under way; see `Engine`."""
        self.closed = True
        for process in list(self.processes):
            process.stop()
        self.pool.shutdown()
