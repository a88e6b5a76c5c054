"""A process of a run that is killed takes the others with it, each with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.training.processes import FIRST_VARIABLE, FOLDER_VARIABLE, ended, watched

ROOT = Path(__file__).parents[2]
# A process that works without end and starts another one that does too.
PAIR = """
import subprocess, sys, time
from ldm.training import processes
processes.GRACE = 0.5
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
with processes.watched([child]):
    time.sleep(60)
"""


def children_of(process: int) -> list[int]:
    """Process ids of what a process started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    if not path.exists():
        pytest.skip("this system does not list the children of a process")
    return [int(child) for child in path.read_text().split()]


def test_a_process_that_waits_without_end_is_ended_with_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PAIR], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == (
        f"error: process 1 of the run ({child}) was killed by signal 9, so this one stops too; "
        "start the run again\n"
    )


def test_an_error_of_the_network_says_who_ended_and_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    with (
        pytest.raises(ConnectionResetError, match=r"process 1 of the run .* ended: status 3") as e,
        watched([child]),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert e.value.strerror is not None
    assert e.value.strerror.endswith(f"resume with: python main.py -t --resume {tmp_path}")


def test_without_companions_the_line_says_what_is_known() -> None:
    with pytest.raises(ConnectionResetError, match="has ended or cannot be reached"), watched([]):
        raise RuntimeError("NCCL error: unhandled system error")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="sizes of tensors"), watched([]):
        raise RuntimeError("sizes of tensors must match")


def test_the_parent_is_watched_only_by_those_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FIRST_VARIABLE, str(os.getppid()))
    assert ended([], os.getppid()) == ""
    assert ended([], os.getpid()) == "the first process of the run has ended"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_it_resumes(
    arguments: list[str], tmp_path: Path, rank: int
) -> None:
    more = ["-n", "killed", "--devices", "2", "--strategy", "ddp", "--no-test", "--threads", "1"]
    command = [sys.executable, str(ROOT / "main.py")]
    with (tmp_path / "said.txt").open("w") as output:
        first = subprocess.Popen(
            [*command, *arguments, *more, "--max_steps", "100000"],
            cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    end, found = time.monotonic() + 120, []
    while not found and first.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
        found = list(tmp_path.glob("logs/*/checkpoints/last.ckpt"))
    assert found, (tmp_path / "said.txt").read_text()
    (second,) = children_of(first.pid)
    os.kill((first.pid, second)[rank], signal.SIGKILL)
    status, end = first.wait(timeout=30), time.monotonic() + 30
    while Path(f"/proc/{second}/cmdline").exists() and time.monotonic() < end:
        if not Path(f"/proc/{second}/cmdline").read_bytes():  # ended, and nobody has waited for it
            break
        time.sleep(0.1)
    said = (tmp_path / "said.txt").read_text()
    assert status == (-signal.SIGKILL if rank == 0 else 1)
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    who = "the first process of the run has ended" if rank == 0 else f"({second}) was killed"
    assert who in lines[0]
    folder = found[0].parents[1]
    assert lines[0].endswith(f"resume with: python main.py -t --resume {folder}")
