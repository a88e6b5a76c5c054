"""Logged values as one table, `metrics.csv`, with a row for each logged step."""

from __future__ import annotations

import csv
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from ldm.util import UserError, first_line, write_table


class CsvLogger(Logger):
    """Write `path` with the columns step, seconds and one for each logged name.

    A resumed run keeps the rows up to its `first_step`, and `seconds` (wall clock) continues from
    there. Lightning's own logger would delete the table of the interrupted run.

    Raises UserError for a damaged table.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows = _read_rows(path, first_step) if path.exists() else {}
        before = max((row.get("seconds", 0.0) for row in self.rows.values()), default=0.0)
        self.start = time.monotonic() - before
        self.changed = False

    name = "csv"
    version = ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: the configuration is stored in a folder of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(int(step or 0), {"step": float(step or 0)})
        row["seconds"] = round(time.monotonic() - self.start, 3)
        row.update({name: float(value) for name, value in metrics.items() if name != "epoch"})
        self.changed = True

    def lowest(self, name: str) -> tuple[int, float] | None:
        """Return (step, value) where a logged value was lowest; None if it never was logged."""
        found = [(row[name], step) for step, row in self.rows.items() if name in row]
        value, step = min(found, default=(0.0, -1))
        return (step, value) if step >= 0 else None

    @rank_zero_only
    def save(self) -> None:
        """Write the table, which stays small: a row for every `log_every_n_steps`."""
        if not self.changed:
            return
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        rows = [row for _, row in sorted(self.rows.items())]
        texts = [[_text(row[c]) if c in row else "" for c in columns] for row in rows]
        write_table(self.path, [columns, *texts])
        self.changed = False

    def finalize(self, status: str) -> None:
        self.save()


def _read_rows(path: Path, last: int) -> dict[int, dict[str, float]]:
    """Return the rows of a table up to step `last`, by step; UserError for a damaged table."""
    rows: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if value}
                if values["step"] <= last:
                    rows[int(values["step"])] = values
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}): move it away to resume without its rows"
        ) from error
    return rows


def _text(value: float) -> str:
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value:.7g}"
