"""End a process, with one line, when another process of its run has ended.

The processes of a run wait for each other in each step. Without this watch, a remaining process
would print the traceback of a network error, or wait for half an hour. Under torchrun the agent
ends all processes. There this module only shortens the network error to one line.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ldm.training.processes import FIRST_VARIABLE, FOLDER_VARIABLE

# Seconds between two checks of the other processes.
LOOK = 0.5
# Seconds in which the step in progress may find by itself that a process has ended.
GRACE = 5.0
# Words in network errors between processes; these errors have no type of their own.
OF_THE_NETWORK = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


class Watcher(threading.Thread):
    """Ends this process with status 1 when another one of its run has ended.

    Before that, the step in progress has `GRACE` seconds to end with its own error.

    Args:
        children: the processes that this one started; empty in a process that was started.
        first: process id of the parent, which started this process.
    """

    def __init__(self, children: Sequence[subprocess.Popen[bytes]], first: int) -> None:
        super().__init__(daemon=True, name="watch of the other processes")
        self.children, self.first = children, first
        self.over = threading.Event()

    def look(self) -> str:
        """Return which process ended too early and how; an empty text while all work."""
        if not self.children:
            return "" if os.getppid() == self.first else "the first process of the run has ended"
        for number, child in enumerate(self.children, 1):
            if status := child.poll():
                how = f"was killed by signal {-status}" if status < 0 else f"ended: status {status}"
                return f"process {number} of the run ({child.pid}) {how}"
        return ""

    def run(self) -> None:
        """Check again and again until the work is done or a process has ended."""
        while not (what := self.look()):
            if self.over.wait(LOOK):
                return
        for child in self.children:  # the others cannot continue either
            if child.poll() is None:
                child.kill()
        if not self.over.wait(GRACE):
            sys.stderr.write(f"error: {explain(what)}\n")
            sys.stderr.flush()
            os._exit(1)


@contextmanager
def watched(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Return a context in which the other processes of the run are watched.

    Errors of the network between them are raised as ConnectionResetError, in one line.

    Args:
        children: the processes that this one started. Without them the parent is watched, if it is
            the run's first process.
    """
    first = int(os.environ.get(FIRST_VARIABLE, "0"))
    watcher = Watcher(children, first)
    if children or first not in (0, os.getpid()):
        watcher.start()
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in OF_THE_NETWORK):
            raise
        what, end = "", time.monotonic() + 4 * LOOK
        while watcher.is_alive() and not (what := watcher.look()) and time.monotonic() < end:
            time.sleep(LOOK / 4)
        what = what or "another process of the run has ended or cannot be reached"
        raise ConnectionResetError(errno.ECONNRESET, explain(what)) from error
    finally:
        watcher.over.set()


def explain(what: str) -> str:
    """Return the sentence for the user: what happened, and how to resume."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, ""))
    again = "start the run again"
    if (folder / "checkpoints" / "last.ckpt").is_file():
        again = f"resume with: python main.py -t --resume {folder}"
    return f"{what}, so this one stops too; {again}"
