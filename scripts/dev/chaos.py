"""Kill runs at random moments, fill their disk, damage their checkpoints; compare the results.

    python scripts/dev/chaos.py --kills 50

Each run learns a word with the miniature. It is killed (SIGKILL), resumed and killed again until it
ends. Its results must be those of an uninterrupted run, bit for bit: all words, the checkpoint
with the optimizer's state, and the metrics except times. Half of the kills come at a random moment,
half at a random file operation in the log folder, so that saves are hit. Of two processes, half of
the kills meet only one: the other must end by itself within 30 seconds, with one line and a status
that is not 0. After some kills the last checkpoint is damaged. Then runs write to a file system of
a few hundred kilobytes, which fills up.

Runs are forked from one process, which has the libraries loaded. A run takes about a second.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# What is heavy is imported where it is used: `--help` answers at once.
STEPS = 10
WORDS = "model.params.personalization_config.params"
START = (
    *("--base", "configs/miniature/finetune.yaml", "-t", "--no-test", "--threads", "1"),
    *("--actual_resume", "models/miniature", "--data_root", "examples/concepts/teal-star"),
    *("--init_word", "star", "--max_steps", str(STEPS), "-n", "chaos", "--log_every_n_steps", "1"),
    *("data.params.batch_size=2", "lightning.modelcheckpoint.params.every_n_train_steps=2"),
    *("--accelerator", "cpu", "lightning.callbacks.image_logger.params.disabled=true"),
)
CASES: dict[str, tuple[str, ...]] = {
    "one vector": (f"{WORDS}.num_vectors_per_token=1",),
    "several vectors": (f"{WORDS}.num_vectors_per_token=4",),
    "progressive": (f"{WORDS}.progressive_words=true", f"{WORDS}.progressive_steps=3"),
    "directional": ("--variant", "directional", f"{WORDS}.num_vectors_per_token=1"),
    "accumulation": ("--accumulate_grad_batches", "2"),
    "two processes": ("--devices", "2", "--strategy", "ddp"),
}
# Columns of the metrics that tell of time.
TIMES = {"seconds", "train/steps_per_second"}
FOLDER_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod")
# Status of a child that killed itself.
KILLED = -signal.SIGKILL
# Seconds within which a process must end when the other one of its run was killed.
LIMIT = 30.0
# Option of Linux's prctl: this process becomes the parent of its children's orphans.
ADOPT_ORPHANS = 36


class Failure(Exception):
    """A run did not end as it must."""


def fork(arguments: list[str], output: Path, at_event: int | None = None) -> int:
    """Start main.py in a child process; return its process id, which leads its group.

    Args:
        arguments: of main.py.
        output: file for what it says.
        at_event: number of the file operation below `output`'s folder at which it kills itself.
    """
    child = os.fork()
    if child:
        return child
    from ldm.cli.train import main as train
    from ldm.util import cli_main

    os.setsid()
    with output.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    sys.argv = [str(ROOT / "main.py"), *arguments]
    done, below = [0], str(output.parent / "logs")

    def count(event: str, facts: tuple[Any, ...]) -> None:
        if event in FOLDER_EVENTS and facts and str(facts[0]).startswith(below):
            done[0] += 1
            if done[0] == at_event:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)
    status = 99
    try:
        cli_main(lambda: train(arguments))
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    facts = {"operations": done[0], "modules": list(sys.modules)}
    (output.parent / "facts.json").write_text(json.dumps(facts))
    os._exit(status)


def wait(child: int, seconds: float | None = None) -> int:
    """Return a child's exit status; after `seconds`, kill its group first."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            for _ in range(100):  # processes that it started may outlive it for a moment
                try:
                    os.killpg(child, signal.SIGKILL)
                except ProcessLookupError:
                    break
                time.sleep(0.02)
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            os.killpg(child, signal.SIGKILL)
            end = None
        time.sleep(0.005)


def second_of(first: int) -> int:
    """Return the process id of the second process of a run; 0 if there is none yet."""
    place = Path(f"/proc/{first}/task/{first}/children")
    for child in place.read_text().split() if place.exists() else ():
        if b"main.py" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return 0


def wait_and_kill_one(first: int, seconds: float, rng: random.Random) -> list[int]:
    """Kill one of a run's two processes after `seconds`; return both statuses, the killed first.

    An empty list means that the run had ended. Raises Failure if the other one outlives `LIMIT`.
    """
    end, second, ended = time.monotonic() + seconds, 0, {}
    while not second or time.monotonic() < end:
        second = second or second_of(first)
        done, status = os.waitpid(first, os.WNOHANG)
        if done:
            if status:
                raise Failure(f"a run ended before it was killed, with status {status}")
            return []
        time.sleep(0.005)
    killed, other = rng.sample((first, second), 2)
    try:
        os.kill(killed, signal.SIGKILL)
    except ProcessLookupError:  # the second process had ended, as the first one will
        os.waitpid(first, 0)
        return []
    begun = time.monotonic()
    while len(ended) < 2:
        with suppress(ChildProcessError):  # an orphan comes to this process only in a moment
            done, status = os.waitpid(-1, os.WNOHANG)
            if done in (first, second):
                ended[done] = os.waitstatus_to_exitcode(status)
            if done == first and killed == second:  # which has waited for it
                ended[second] = KILLED
        if time.monotonic() > begun + LIMIT:
            os.killpg(first, signal.SIGKILL)
            raise Failure(f"one process was killed; the other one still ran after {LIMIT:.0f} s")
        time.sleep(0.005)
    return [ended[killed], ended[other]]


class Run:
    """A run in a folder of its own, from its start over its resumptions to its end."""

    def __init__(self, place: Path, case: str) -> None:
        self.place, self.case = place, case
        place.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path | None:
        """The log folder; None before there is one with a checkpoint."""
        found = sorted((self.place / "logs").glob("*/checkpoints/last.ckpt"))
        found += sorted((self.place / "logs").glob("*/checkpoints/previous.ckpt"))
        return found[0].parents[1] if found else None

    def arguments(self) -> list[str]:
        """Return the command line that starts or resumes it."""
        if self.folder is not None:
            return ["-t", "--no-test", "--resume", str(self.folder)]
        shutil.rmtree(self.place / "logs", ignore_errors=True)
        return [*START, *CASES[self.case], "-l", str(self.place / "logs")]

    def go(self, seconds: float | None = None, at_event: int | None = None) -> int:
        """Start or resume it; return its exit status, `KILLED` if it was killed."""
        return wait(fork(self.arguments(), self.place / "output.txt", at_event), seconds)

    def lose_one(self, seconds: float, rng: random.Random) -> int:
        """Start or resume it and kill one of its two processes; return `KILLED` or its status.

        Raises Failure if the other process ends otherwise than with one line and a failure.
        """
        output = self.place / "output.txt"
        before = output.stat().st_size if output.exists() else 0
        statuses = wait_and_kill_one(fork(self.arguments(), output), seconds, rng)
        if not statuses:
            return 0
        said = output.read_bytes()[before:].decode(errors="replace")
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if statuses[1] == 0 and self.finished():  # its work was done
            return KILLED
        if statuses[1] <= 0 or len(lines) != 1 or "Traceback" in said:
            raise Failure(f"one process was killed, the other: status {statuses[1]}, {said}")
        return KILLED

    def finished(self) -> bool:
        """Tell whether the last step is saved."""
        from ldm.training.resume import read_checkpoint

        path = (self.folder or self.place) / "checkpoints" / "last.ckpt"
        return path.is_file() and read_checkpoint(path).step == STEPS

    def facts(self) -> dict[str, Any]:
        """Return the number of file operations and the modules of a run that ended by itself."""
        found: dict[str, Any] = json.loads((self.place / "facts.json").read_text())
        return found

    def said(self) -> str:
        """Return what it said last."""
        text = (self.place / "output.txt").read_text(errors="replace")
        return text[-3000:]


def left_by(folder: Path) -> dict[str, Any]:
    """Return what must be equal: words, checkpoint and metrics of a log folder."""
    import torch

    from ldm.words.files import read_words

    found: dict[str, Any] = {}
    for path in sorted((folder / "checkpoints").glob("embeddings*")):
        words = read_words(path)
        found[path.name] = (words.words, words.metadata.get("step"))
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops"):
        found[f"last.ckpt {name}"] = content.get(name)
    with (folder / "logger/metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    found["metrics.csv"] = [dict(sorted(row.items())) for row in rows]
    return found


def same(one: Any, other: Any) -> bool:
    """Tell whether two nested values are equal, tensors bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        keys = isinstance(other, dict) and list(one) == list(other)
        return keys and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def check(run: Run, wanted: dict[str, Any]) -> None:
    """Raise Failure if a finished run left something else, half a file or a traceback."""
    folder = run.folder
    if folder is None:
        raise Failure(f"no checkpoint is left: {run.said()}")
    found = left_by(folder)
    different = [
        name for name in {**wanted, **found} if not same(wanted.get(name), found.get(name))
    ]
    if different:
        raise Failure(f"differs in {', '.join(different)}: see {folder}")
    if half := [path.name for path in folder.rglob(".part-*")]:
        raise Failure(f"half a file is left: {half}, in {folder}")
    if "Traceback" in run.said():
        raise Failure(f"a traceback: {run.said()}")


def damage(folder: Path, rng: random.Random) -> str:
    """Damage the last checkpoint if there is one before it; return how."""
    last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    if not (last.is_file() and previous.is_file()):
        return ""
    data = bytearray(last.read_bytes())
    last.unlink()  # the two may be one file on disk
    kind = rng.choice(("truncated", "empty", "bits flipped", "deleted"))
    if kind == "truncated":
        last.write_bytes(data[: rng.randrange(1, len(data))])
    elif kind == "empty":
        last.write_bytes(b"")
    elif kind == "bits flipped":
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        last.write_bytes(data)
    return kind


def kill_and_resume(
    case: str, kills: int, place: Path, rng: random.Random, say: Callable[[str], None]
) -> dict[str, int]:
    """Kill and resume runs of a case until there were `kills` kills; return what happened."""
    whole = Run(place / "whole", case)
    begun = time.monotonic()
    if status := whole.go():
        raise Failure(f"the uninterrupted run ended with status {status}: {whole.said()}")
    length = time.monotonic() - begun
    folder = whole.folder
    assert folder is not None
    wanted = left_by(folder)
    operations = whole.facts()["operations"]
    two = case == "two processes"
    facts = {"kills": 0, "at file operations": 0, "one of two": 0, "damaged": 0, "runs": 0}
    while facts["kills"] < kills:
        run = Run(place / f"run-{facts['runs']}", case)
        status = KILLED
        while status == KILLED and facts["kills"] < kills:
            if two and rng.random() < 0.5:
                status = run.lose_one(rng.uniform(0.1 * length, length), rng)
                facts["one of two"] += status == KILLED
            elif rng.random() < 0.5:
                event = rng.randrange(1, operations)
                status = run.go(at_event=event)
                facts["at file operations"] += status == KILLED
            else:
                status = run.go(seconds=rng.uniform(0.3 * length, length))
            facts["kills"] += status == KILLED
            if status == KILLED and run.folder is not None and rng.random() < 0.25:
                facts["damaged"] += bool(damage(run.folder, rng))
        if status == KILLED:
            status = run.go()
        if status:
            raise Failure(f"a resumed run ended with status {status}: {run.said()}")
        check(run, wanted)
        facts["runs"] += 1
        shutil.rmtree(run.place)
    say(f"{case}: {json.dumps(facts)}, an uninterrupted run takes {length:.1f} s: same bits")
    return facts


def load_modules(first: Run) -> None:
    """Let a run find out which modules runs import, and import them here, once for all forks."""
    if status := first.go():
        raise SystemExit(f"the first run ended with status {status}: {first.said()}")
    for name in first.facts()["modules"]:
        with suppress(Exception):
            importlib.import_module(name)


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """Mount a tmpfs; yields a function that changes its size."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}k", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_disks(place: Path, rng: random.Random, count: int, say: Callable[[str], None]) -> None:
    """Let runs fill a file system, make it larger, resume; check as after kills."""
    case = "several vectors"
    whole = Run(place / "whole", case)
    if status := whole.go():
        raise Failure(f"the uninterrupted run ended with status {status}: {whole.said()}")
    assert whole.folder is not None
    wanted, filled = left_by(whole.folder), 0
    used = sum(path.stat().st_size for path in whole.place.rglob("*") if path.is_file()) // 1024
    for number in range(count):
        run = Run(place / f"full-{number}", case)
        with small_disk(run.place / "logs", rng.randrange(40, max(80, used))) as resize:
            status = run.go()
            said = run.said()
            if status:
                filled += 1
                if "No space left on device" not in said or str(run.place) not in said:
                    raise Failure(f"a full disk is not named: {said}")
                resize(100_000)
                status = run.go()
            if status:
                raise Failure(f"after the disk was full: status {status}: {run.said()}")
            check(run, wanted)
    say(f"full disks: {count} runs, {filled} filled it, each resumed: same bits")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills (50)")
    parser.add_argument("--disks", type=int, default=5, help="runs that fill a disk (5)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages (0)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="(all)")
    options = parser.parse_args()
    rng, begun = random.Random(options.seed), time.monotonic()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)  # to learn how the second process of a run ended
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    load_modules(Run(place / "first", "one vector"))

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {line}", flush=True)

    say(f"{options.kills} kills, seed {options.seed}, in {place}")
    kills = 0
    try:
        for index, case in enumerate(options.cases):
            share = options.kills // len(options.cases)
            share += index < options.kills % len(options.cases)
            if share:
                own = place / case.replace(" ", "-")
                kills += kill_and_resume(case, share, own, rng, say)["kills"]
        if options.disks:
            try:
                with small_disk(place / "probe", 100):
                    pass
            except (OSError, subprocess.CalledProcessError):
                say("full disks: skipped, this user may not mount a file system")
            else:
                fill_disks(place / "disks", rng, options.disks, say)
    except Failure as failure:
        say(f"FAILED after {kills} kills: {failure}")
        return 1
    say(f"{kills} of {options.kills} kills ended with the same bits")
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
