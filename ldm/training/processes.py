"""The processes of a run before Lightning connects them: which is first, and common values.

Under torchrun all processes begin at once. Without it the first process sets the run up alone, and
Lightning starts the others when training begins.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

# For processes that Lightning starts: the log folder, and the process id of the first process.
FOLDER_VARIABLE, FIRST_VARIABLE = "LDM_LOG_FOLDER", "LDM_FIRST_PROCESS"
# Longest wait for another process; it may generate class images meanwhile.
PATIENCE = timedelta(hours=6)


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
