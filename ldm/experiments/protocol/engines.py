"""Engines run tasks: this one on this machine, `ray_engine` on a cluster."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from ldm.experiments.protocol.execute import Outcome, Process, Task
from ldm.experiments.protocol.folder import Lock


class Engine(Protocol):
    """Runs tasks side by side.

    Attributes:
        slots: how many tasks it takes at a time.
        workers: how many it runs at a time, for the estimate of what remains.
    """

    slots: int
    workers: int

    def submit(self, task: Task, lock: Lock) -> None:
        """Begin a task, of whose folder this process holds the lock."""
        ...

    def collect(self, timeout: float) -> list[Outcome]:
        """Wait for at most so many seconds, and return what has ended since."""
        ...

    def close(self) -> None:
        """Stop what is under way, letting it save, and wait for that."""
        ...


class LocalEngine:
    """Runs so many workers on this machine, each with its threads, or its GPU.

    Args:
        workers: tasks at a time.
        threads: CPU threads of each.
        gpus: their numbers, as CUDA_VISIBLE_DEVICES has them; shared by turns.
    """

    def __init__(self, workers: int, threads: int = 1, gpus: Sequence[str] = ()) -> None:
        if workers < 1 or threads < 1:
            raise ValueError(f"workers and threads must be at least 1, got {workers}, {threads}")
        self.slots = self.workers = workers
        self.threads = threads
        self.pool = ThreadPoolExecutor(workers)
        self.running: set[Future[Outcome]] = set()
        self.processes: set[Process] = set()
        self.closed = False
        self.gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
        for i in range(workers if gpus else 0):
            self.gpus.put(gpus[i % len(gpus)])
        self.uses_gpus = bool(gpus)

    def submit(self, task: Task, lock: Lock) -> None:
        """Begin a task; see `Engine`."""
        self.running.add(self.pool.submit(self._run, task, lock))

    def _run(self, task: Task, lock: Lock) -> Outcome:
        gpu = self.gpus.get() if self.uses_gpus else ""
        try:
            own = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            own |= {"OMP_NUM_THREADS": str(self.threads), **task.environment}
            task = Task(task.name, task.folder, task.cell, task.program, own)
            if self.closed:
                return Outcome(task.name, 130, "stopped")
            process = Process(task, Path(task.folder), lock)
            self.processes.add(process)
            try:
                return Outcome(task.name, process.wait())
            finally:
                self.processes.discard(process)
        except OSError as error:
            return Outcome(task.name, 1, f"could not be started: {error}")
        finally:
            if gpu:
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
