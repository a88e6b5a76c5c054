"""The log folder: one run makes it, and holds its lock while it works."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ldm.training.processes import agree, first_process
from ldm.util import PART, UserError, check_output_folder

LOCK = ".lock"


@contextmanager
def working_folder(folder: Path, exclusive: bool) -> Iterator[Path]:
    """Make the log folder and hold its lock; after an error, remove it if nothing was written.

    With `exclusive` it is new: if another run has it, this one gets -2, -3, … Raises UserError if
    the folder cannot be made, or another process works in it.
    """
    if not first_process():
        yield Path(agree("folder", str(folder))) if exclusive else folder
        return
    check_output_folder(folder, "log folder")
    made = _make(folder, exclusive)
    if exclusive:
        agree("folder", str(made))
    lock = made / LOCK
    try:
        with lock.open("a+", encoding="utf-8") as file:
            _hold(file, made)
            for left in made.rglob(f"{PART}*"):  # of a run that was killed
                left.unlink(missing_ok=True)
            yield made
    except BaseException:
        if set(os.listdir(made)) <= {LOCK} and exclusive:
            lock.unlink(missing_ok=True)
            made.rmdir()
        raise


def _make(folder: Path, exclusive: bool) -> Path:
    number, made = 1, folder
    while True:
        try:
            made.mkdir(parents=True, exist_ok=not exclusive)
            return made
        except FileExistsError:
            number += 1
            made = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise UserError(
                f"cannot make the log folder {made}: {error.strerror}; choose another --logdir"
            ) from error


def _hold(file: TextIO, folder: Path) -> None:
    """Lock an open file for this process; the system releases it when the process ends."""
    try:
        # A record lock: child processes that outlive a killed run do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(
            f"the log folder {folder} is in use by {holder}: wait until it ends, or end it"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
