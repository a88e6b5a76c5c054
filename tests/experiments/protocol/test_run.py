"""A table is made once and whole, whatever fails, is killed, or runs beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import run_table, small_table, trace

from ldm.experiments.figures.points import read_points
from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.engines import LocalEngine
from ldm.experiments.protocol.folder import SCORES, Lock
from ldm.experiments.protocol.run import cell_folder
from ldm.experiments.protocol.table import keep_words

ROOT = Path(__file__).parents[3]
RESULTS = ("table.csv", "summary.csv", "summary.json", "summary.md")


def results(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in RESULTS}


def finished(output: Path) -> int:
    return len(list(output.rglob(SCORES)))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_every_cell_is_run_once_and_the_table_holds_each_prompt(tmp_path: Path) -> None:
    cells = small_table()
    assert run_table(tmp_path, cells) == {}
    assert sorted(trace(tmp_path)) == sorted(cell.name for cell in cells)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(cells)
    assert lines[1].startswith("cat,ours,learned,1,1,3,a *,2,")
    assert (tmp_path / "times.csv").is_file()
    points = read_points(tmp_path)  # what figures 10a and 12 are drawn from
    assert [(point.name, point.size) for point in points] == [("ours", 1), ("prompt_only", 1)]


def test_words_of_finished_cells_are_kept_by_variant_and_seed(tmp_path: Path) -> None:
    cells, kept = small_table(), tmp_path / "words"
    run_table(tmp_path, cells, DOUBLE_FAILS="dog/ours/seed2")
    assert keep_words(tmp_path, cells, kept) == 3
    names = sorted(str(path.relative_to(kept)) for path in kept.rglob("*.*"))
    assert names == [
        f"ours/seed{i}/{name}.safetensors" for i, name in ((1, "cat"), (1, "dog"), (2, "cat"))
    ]
    (cell,) = (cell for cell in cells if cell.name == "cat/ours/seed2")
    assert (kept / "ours/seed2/cat.safetensors").read_text() == cell.learn_hash


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    run_table(tmp_path, small_table())
    before = results(tmp_path)
    run_table(tmp_path, small_table())
    assert len(trace(tmp_path)) == len(small_table())
    assert results(tmp_path) == before


def test_changed_settings_run_a_cell_anew_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_table(tmp_path, small_table())
    run_table(tmp_path, small_table(images=3))
    assert len(trace(tmp_path)) == 2 * len(small_table())
    assert "cat/ours/seed1: its settings have changed, it is run anew" in capsys.readouterr().err


def test_a_failed_cell_stops_no_other_and_names_its_log(tmp_path: Path) -> None:
    failures = run_table(tmp_path, small_table(), DOUBLE_FAILS="cat/ours/seed2")
    folder = tmp_path / "cells/cat/ours/seed2"
    assert failures == {"cat/ours/seed2": f"error: made to fail (see {folder / 'cell.log'})"}
    assert finished(tmp_path) == len(small_table()) - 1
    assert "cat,ours,learned,2" not in (tmp_path / "table.csv").read_text()


def test_a_table_killed_and_resumed_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """kill -9 of the driver ends its workers too; the rest is run by the next."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_table(whole, small_table())
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("drive.py")), str(broken)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: finished(broken) >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = {path.parent for path in broken.rglob(SCORES)}
    assert 2 <= len(done) < len(small_table())
    assert not (broken / "table.csv").exists()
    run_table(broken, small_table())
    assert results(broken) == results(whole)
    again = [name for name in set(trace(broken)) if trace(broken).count(name) > 1]
    assert not {broken / "cells" / name for name in again} & done


def test_a_cell_that_another_process_runs_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = small_table()
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("drive.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(trace(tmp_path)) >= 2)
    run_table(tmp_path, cells)
    driver.wait()
    assert sorted(trace(tmp_path)) == sorted(cell.name for cell in cells)
    assert "is run by another process: waiting for it" in capsys.readouterr().err


def test_a_lock_keeps_others_out_until_it_is_given_up(tmp_path: Path) -> None:
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.take()
    assert not second.take()
    first.close()
    assert second.take()
    second.close()


def test_workers_share_out_the_gpus(tmp_path: Path) -> None:
    """Each of two workers has its own of CUDA_VISIBLE_DEVICES."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\n"
        "(pathlib.Path(sys.argv[1]) / 'gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "time.sleep(1)\n"
    )
    from ldm.experiments.protocol.run import Progress, Runner

    cells = small_table()[:2]
    engine = LocalEngine(2, gpus=["3", "5"])
    runner = Runner(tmp_path, engine, Progress(2, {}, 2), (sys.executable, str(program)))
    failures = runner.run(cells)
    assert {(cell_folder(tmp_path, cell) / "gpu").read_text() for cell in cells} == {"3", "5"}
    assert len(failures) == 2  # it left no scores


def test_a_cell_travels_as_text() -> None:
    for cell in small_table():
        assert Cell.from_json(cell.to_json()) == cell
        assert json.loads(cell.to_json())["score_hash"] == cell.score_hash
