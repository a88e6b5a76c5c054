"""The processes of a run: which is first, common values, and an end of all when one has ended.

Under torchrun all processes begin at once. Without it the first process sets the run up alone, and
Lightning starts the others when training begins.

The processes wait for each other in each step. Without a watch, a remaining process would print the
traceback of a network error, or wait for half an hour. Under torchrun the agent ends all processes.
There `watched` only shortens the network error to one line.
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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

# For processes that Lightning starts: the log folder, and the process id of the first process.
FOLDER_VARIABLE, FIRST_VARIABLE = "LDM_LOG_FOLDER", "LDM_FIRST_PROCESS"
# Longest wait for another process; it may generate class images meanwhile.
PATIENCE = timedelta(hours=6)
# Seconds between two checks of the other processes.
LOOK = 0.5
# Seconds in which the step in progress may find by itself that a process has ended.
GRACE = 5.0
# Words in network errors between processes; these errors have no type of their own.
OF_THE_NETWORK = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


def first_process() -> bool:
    """Tell whether this is the first of a run's processes, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def together() -> tuple[int, int]:
    """Return (rank, world) of processes that began together; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _store() -> PrefixStore:
    """Return the store of torchrun's agent, which is there before any process group."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore("ldm", TCPStore(address, port, is_master=False, timeout=PATIENCE))


def agree(key: str, value: str) -> str:
    """Return the first process's value in every process that began together."""
    rank, world = together()
    if world == 1:
        return value
    store = _store()
    if rank == 0:
        store.set(key, value)
    return store.get(key).decode()


def gather(key: str) -> None:
    """Wait until every process that began together is here."""
    rank, world = together()
    if world > 1:
        store = _store()
        store.set(f"{key}/{rank}", "here")
        store.wait([f"{key}/{number}" for number in range(world)], PATIENCE)


def ended(children: Sequence[subprocess.Popen[bytes]], first: int) -> str:
    """Return which process of the run ended too early and how; an empty text while all work.

    Args:
        children: the processes that this one started; empty in a process that was started.
        first: process id of the parent, which started this process.
    """
    if not children:
        return "" if os.getppid() == first else "the first process of the run has ended"
    for number, child in enumerate(children, 1):
        if status := child.poll():
            how = f"was killed by signal {-status}" if status < 0 else f"ended: status {status}"
            return f"process {number} of the run ({child.pid}) {how}"
    return ""


def _watch(children: Sequence[subprocess.Popen[bytes]], first: int, over: threading.Event) -> None:
    """End this process with status 1 when another one of its run has ended, unless work is `over`.

    Before that, the step in progress has `GRACE` seconds to end with its own error.
    """
    while not (what := ended(children, first)):
        if over.wait(LOOK):
            return
    for child in children:  # the others cannot continue either
        if child.poll() is None:
            child.kill()
    if not over.wait(GRACE):
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
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(children, first, over), daemon=True)
    if children or first not in (0, os.getpid()):
        watcher.start()
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in OF_THE_NETWORK):
            raise
        what, end = "", time.monotonic() + 4 * LOOK
        while watcher.is_alive() and not what and time.monotonic() < end:
            time.sleep(LOOK / 4)
            what = ended(children, first)
        what = what or "another process of the run has ended or cannot be reached"
        raise ConnectionResetError(errno.ECONNRESET, explain(what)) from error
    finally:
        over.set()


def explain(what: str) -> str:
    """Return the sentence for the user: what happened, and how to resume."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, ""))
    again = "start the run again"
    if (folder / "checkpoints" / "last.ckpt").is_file():
        again = f"resume with: python main.py -t --resume {folder}"
    return f"{what}, so this one stops too; {again}"
