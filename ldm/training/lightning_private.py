"""Everything that touches what Lightning does not document: its loops' counters.

A test runs all of it against the installed version, and names this file when one has changed.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def log_interval(trainer: pl.Trainer) -> int:
    """Return the optimizer steps between two logged rows."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every


def count_steps(trainer: pl.Trainer) -> None:
    """Let the counter by which rows are logged follow the global step.

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
