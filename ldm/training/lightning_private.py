"""The only code that uses undocumented parts of Lightning: its loops' counters and its launcher.

A test runs all of it with the installed version, and names this file if a part has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from ldm.training.processes import watched


def log_interval(trainer: pl.Trainer) -> int:
    """Return the optimizer steps between two logged rows."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]


def count_steps(trainer: pl.Trainer) -> None:
    """Set the counter of logged rows to the global step.

    Lightning does not restore it on some ways of resuming.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def settle_counters(checkpoint: dict[str, Any], batches: int) -> None:
    """Write a checkpoint's counters as after `batches` micro-batches, within the one epoch."""
    fit = checkpoint["loops"]["fit_loop"]
    for counter in ("ready", "started", "processed", "completed"):
        for scope in ("total", "current"):
            fit["epoch_loop.batch_progress"][scope][counter] = batches
    # The whole run is one epoch, which never ends before `max_steps`.
    for scope in ("total", "current"):
        fit["epoch_progress"][scope].update(ready=1, started=1, processed=0, completed=0)


def is_run_checkpoint(content: Any) -> bool:
    """Tell whether a file's content is a checkpoint of a training run."""
    loops = content.get("loops") if isinstance(content, dict) else None
    return isinstance(loops, dict) and "fit_loop" in loops


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of a run and watches them.

    Lightning's own watch kills the first process without a message.
    """

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start the other processes where that is this process's part; call the function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        with watched(self.procs):
            return function(*args, **kwargs)


class WatchedDDP(DDPStrategy):
    """DDP whose processes notice the end of each other."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            environment = self.cluster_environment
            assert environment is not None
            self._launcher = WatchedLauncher(environment, self.num_processes, self.num_nodes)
