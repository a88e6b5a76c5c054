"""The same table on a Ray cluster, a machine of which is lost while cells run."""

from __future__ import annotations

import builtins
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from drive import run_table, small_table, trace

from ldm.experiments.protocol.folder import LOG, SCORES, WORD
from ldm.experiments.protocol.ray_engine import RayEngine
from ldm.util import UserError

RESULTS = ("table.csv", "summary.csv", "summary.json", "summary.md")


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'textual-inversion-ldm\[cluster\]'"):
        RayEngine("local")


@pytest.mark.slow
def test_a_table_is_whole_though_a_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines; one dies with cells under way, which the other runs anew."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here, there = tmp_path / "here", tmp_path / "there"
    cells = small_table()
    run_table(here, cells)
    small = {"include_dashboard": False, "object_store_memory": 80 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    try:
        lost = cluster.add_node(num_cpus=2, object_store_memory=80 * 1024**2)
        cluster.wait_for_nodes()
        engine = RayEngine(cluster.address)
        assert engine.workers == 3

        def lose() -> None:
            # All three CPUs are at work, two of them there.
            while len(trace(there)) - len(list(there.rglob(SCORES))) < 3:
                time.sleep(0.05)
            cluster.remove_node(lost, allow_graceful=False)

        thread = threading.Thread(target=lose)
        thread.start()
        failures = run_table(there, cells, engine, DOUBLE_SECONDS="4")
        thread.join()
    finally:
        cluster.shutdown()
    assert failures == {}
    for name in RESULTS:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    begun = trace(there)
    assert len(begun) > len(cells), "no cell was under way on the lost machine"
    folder = there / "cells" / cells[0].name
    assert {path.name for path in folder.iterdir()} >= {LOG, SCORES, WORD, "cell.json"}


def test_no_cluster_at_an_address_is_one_line_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no cluster answers there"):
        RayEngine("127.0.0.1:1")
