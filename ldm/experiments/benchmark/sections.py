"""The benchmark's sections: comparison of the sides, growth, and whole runs."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.experiments.benchmark.report import Results, cosine, machine, slope, spread
from ldm.experiments.benchmark.sides import SIDES
from ldm.experiments.benchmark.turn import Turn, measure
from ldm.resources import ROOT, child_environment
from ldm.util import UserError

log = logging.getLogger(__name__)

# Numbers of images in a step and of vectors whose growth is measured.
BATCHES, VECTORS, IMAGES = (1, 2, 4, 8, 16), (1, 4, 16), (5, 50, 500)
VECTORS_ENTRY = "model.params.personalization_config.params.num_vectors_per_token"
# main.py is no part of an installed package.
TRAIN = (sys.executable, "-c", "from ldm.cli.commands import train; train()", "-t", "--no-test")
# Folders of images and their initializer words.
CONCEPTS = {"teal-star": "star", "red-mug": "mug", "pink-heart": "heart", "cyan-ring": "ring"}
# Whole runs of the miniature: the number of words, and the arguments.
PAPER = ("--base", "configs/miniature/paper.yaml")
RUNS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "paper, 5000 steps of 8": (1, PAPER),
    "demo": (1, ("--base", "configs/miniature/finetune.yaml")),
    "fast": (1, (*PAPER, "--variant", "fast")),
    "fast, four words at once": (4, (*PAPER, "--variant", "fast")),
}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
NO_IMAGES = "lightning.callbacks.image_logger.params.batch_frequency=1000000"


@dataclass(frozen=True)
class Plan:
    """How much is measured: the number of rounds, and `turn`, the settings of all turns.

    `folder` is for the results and the logs of runs, `model` has the weights of whole runs. `quick`
    takes few steps in this process: for a look, and for tests.
    """

    folder: Path
    rounds: int
    turn: Turn
    model: Path
    quick: bool = False


def do_turn(turn: Turn, quick: bool) -> dict[str, Any]:
    """Do a turn, in a process of its own unless `quick`; a UserError gives its last line."""
    if quick:
        return measure(turn)
    command = [sys.executable, "-m", "ldm.experiments.benchmark.turn", turn.to_json()]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment() | OFFLINE
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{turn.side} at {turn.size} failed ({done.returncode}): {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(plan: Plan, size: str) -> Results:
    """Measure all sides of a size by turns: A B C, A B C."""
    facts = machine(plan.turn.device, plan.turn.threads)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for number in range(plan.rounds):
        for name in SIDES:
            # Generations take long and vary little, so only one round has them.
            times = plan.turn.generations if number == 0 else 0
            turn = replace(plan.turn, size=size, side=name, generations=times)
            turns[name].append(do_turn(turn, plan.quick))
            step = min(turns[name][-1]["step"])
            log.info(f"{size}, round {number + 1} of {plan.rounds}: {name}: {step:.3f} s a step")
    facts["load_after"] = round(os.getloadavg()[0], 1)
    sides = {name: _summary(found) for name, found in turns.items()}
    reference = next(iter(turns.values()))[0]["gradient"]
    for name, found in turns.items():
        if "gradient" in found[0]:
            sides[name]["cosine"] = cosine(reference, found[0]["gradient"])
    size_of = replace(plan.turn, size=size).work()
    title = (
        f"Sides at {size}: a training step of {size_of.batch} images; generation of "
        f"{size_of.images} images in {size_of.steps} guided steps"
    )
    return {"title": title, "machine": facts, "sides": sides}


def _summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of a side over its turns."""
    seconds = [value for turn in turns for value in turn["step"]]
    found: dict[str, Any] = {
        "step": spread(seconds),
        "wall": spread([value for turn in turns for value in turn["wall"]]),
        "flops": turns[0]["flops"],
        "peak": max(turn["peak"] for turn in turns),
    }
    rate = max(turn["rate"] for turn in turns)
    found["share"] = found["flops"] / found["step"]["median"] / rate
    if made := [value for turn in turns for value in turn.get("generation", ())]:
        found["generation"] = spread(made)
    return found


def growth(plan: Plan) -> Results:
    """Measure how the miniature's step grows with images, vectors and images in the folder."""
    facts = machine(plan.turn.device, plan.turn.threads)
    base = replace(plan.turn, size="miniature", side="ours, float32", generations=0)
    rows = [
        _growth(
            "training step over images in it",
            BATCHES,
            lambda n: min(do_turn(replace(base, batch=n), plan.quick)["step"]),
        ),
        _growth(
            "training step over vectors of the word",
            VECTORS,
            lambda n: min(
                do_turn(replace(base, overrides=(f"{VECTORS_ENTRY}={n}",)), plan.quick)["step"]
            ),
        ),
    ]
    if not plan.quick:
        rows.append(
            _growth("command to one step over images in the folder", IMAGES, _start_up(plan))
        )
    facts["load_after"] = round(os.getloadavg()[0], 1)
    return {"title": "Growth in the miniature", "machine": facts, "rows": rows}


def _growth(name: str, numbers: Sequence[int], seconds: Callable[[int], float]) -> dict[str, str]:
    found: dict[float, float] = {number: seconds(number) for number in numbers}
    log.info(f"{name}: {found}")
    values = ", ".join(f"{number:g}: {value:.3f} s" for number, value in found.items())
    return {"what": name, "seconds": values, "log-log slope": f"{slope(found):.2f}"}


def _start_up(plan: Plan) -> Callable[[int], float]:
    """Return a function that measures a command of one step, given a number of images."""

    def seconds(count: int) -> float:
        folder = plan.folder / f"images-{count}"
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted((ROOT / "examples/concepts/teal-star").glob("*.png"))
        for i in range(count):
            link = folder / f"{i:05}.png"
            link.unlink(missing_ok=True)
            link.symlink_to(files[i % len(files)].resolve())
        arguments = (*PAPER, "--max_steps", "1", "--data_root", str(folder), "--init_word", "star")
        return command(plan, arguments)["seconds"]

    return seconds


def concepts(count: int = 1) -> tuple[str, ...]:
    """Return the options that name the first concepts' images and their initializer words."""
    folders = [str(ROOT / "examples/concepts" / name) for name in CONCEPTS][:count]
    return ("--data_root", *folders, "--init_word", *list(CONCEPTS.values())[:count])


def command(plan: Plan, arguments: Sequence[str]) -> dict[str, float]:
    """Run the command that learns words of the miniature; UserError gives its last line.

    Returns `seconds`, of the whole command; `training`, of its steps; `encoding`, of its images.
    """
    threads = ("--threads", str(plan.turn.threads)) if plan.turn.threads else ()
    start = time.perf_counter()
    done = subprocess.run(
        [
            *TRAIN,
            *("--model", str(plan.model), "-l", str(plan.folder / "logs")),
            *(*threads, *arguments, NO_IMAGES),
        ],
        cwd=ROOT,
        env=child_environment() | OFFLINE,
        capture_output=True,
        text=True,
    )
    spent = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"main.py failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    said = done.stderr + done.stdout
    encoded = re.findall(r"latents of \d+ images in ([\d.]+) s", said)
    trained = re.search(r"\d+ steps in ([\d.]+) s", said)
    return {
        "seconds": spent,
        "training": float(trained[1]) if trained else float("nan"),
        "encoding": sum(map(float, encoded)),
    }


def runs(plan: Plan) -> Results:
    """Measure whole commands of the miniature, from the shell to the word's file."""
    facts = machine(plan.turn.device, plan.turn.threads)
    short = ("--max_steps", "2") if plan.quick else ()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for number in range(1 if plan.quick else min(plan.rounds, 3)):
        for name, (count, arguments) in RUNS.items():
            if number and arguments == PAPER:
                continue  # it takes minutes, and its time varies little
            found[name].append(command(plan, (*arguments, *concepts(count), *short)))
            log.info(f"{name}: {found[name][-1]}")
    facts["load_after"] = round(os.getloadavg()[0], 1)
    rows = []
    for name, times in found.items():
        whole, training = (spread([t[key] for t in times]) for key in ("seconds", "training"))
        rows.append(
            {
                "run": name,
                "command to word": f"{whole['median']:.1f} s",
                "least to largest": f"{whole['min']:.1f} to {whole['max']:.1f} s",
                "of that, steps": f"{training['median']:.1f} s",
                "words an hour": f"{3600 * RUNS[name][0] / whole['median']:.0f}",
            }
        )
    return {"title": "Whole runs of the miniature", "machine": facts, "rows": rows}
