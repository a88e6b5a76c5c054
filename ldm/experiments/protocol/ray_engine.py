"""Cells as Ray tasks: a cluster's machines run them, a lost machine's cells are run anew.

Every machine has the project in the same folder, with the same weights and images. Results need
no shared disk: a task returns its files' bytes, and this process writes them into the table.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from ldm.experiments.protocol.engines import Outcome, Task, run_elsewhere
from ldm.experiments.protocol.folder import SENT, Lock, files_of
from ldm.util import UserError, first_line

RETRIES = 5  # after which a cell whose machines keep dying has failed
IN_FLIGHT = 512  # each keeps its cell's lock open
STARTING = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}


def run_remotely(task: Task, inputs: Mapping[str, bytes]) -> Outcome:
    """Run a task on the machine that Ray chose."""
    import ray

    return run_elsewhere(task, inputs, ray.get_runtime_context().get_node_id())


class RayEngine:
    """Runs tasks on a Ray cluster, each on so many CPUs and GPUs; a share 0.5 puts two on one GPU.

    `address` is the cluster's ("auto", "10.0.0.1:6379", "ray://..."), or "local" for one of this
    machine alone, made for the purpose. Raises UserError where Ray is not installed, or no cluster
    answers there.
    """

    def __init__(self, address: str, threads: int = 1, gpus: float = 0.0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--ray needs Ray, which is not installed: pip install 'textual-inversion-ldm"
                "[cluster]'"
            ) from error
        self.ray = ray
        self.own = not ray.is_initialized()
        if self.own:
            _connect(ray, address)
        self.remote = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False
        )(run_remotely)
        self.running: dict[Any, str] = {}
        self.slots = IN_FLIGHT
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fitting = [total.get("CPU", 1) // threads]
        if gpus:
            fitting.append(total.get("GPU", 0) // gpus)
        self.workers = int(min(fitting))
        if self.workers < 1:
            self.close()
            raise UserError(
                f"--ray {address}: a cell takes {threads} CPUs and {gpus:g} GPUs, the cluster has "
                f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}"
            )

    def submit(self, task: Task, lock: Lock) -> None:  # noqa: ARG002 (the task runs elsewhere)
        """Begin a task; see `Engine`."""
        inputs = files_of(task.folder, SENT)
        self.running[self.remote.remote(task, inputs)] = task.name

    def collect(self, timeout: float) -> list[Outcome]:
        """Return what has ended; see `Engine`."""
        if not self.running:
            return []
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout)
        return [self._outcome(reference, self.running.pop(reference)) for reference in done]

    def _outcome(self, reference: Any, name: str) -> Outcome:
        try:
            found = self.ray.get(reference)
            assert isinstance(found, Outcome)
            return found
        except self.ray.exceptions.RayError as error:
            return Outcome(name, 1, f"Ray: {first_line(error)}")

    def close(self) -> None:
        """Cancel what is under way; see `Engine`."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running = {}
        if self.own:
            self.ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, **STARTING)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"--ray {address}: no cluster answers there ({reason})") from error
