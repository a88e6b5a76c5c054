"""The time of a run beside its steps: the time to the first step, and the training loop."""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ldm.checkpoint.bases import Base
from ldm.checkpoint.folder_config import shipped_config
from ldm.checkpoint.loading import build_empty
from ldm.checkpoint.names import SCHEDULE, published_name
from ldm.experiments.benchmark.report import Results, machine
from ldm.experiments.benchmark.sections import PAPER, Plan, command, concepts, do_turn
from ldm.experiments.benchmark.sides import TOKENIZER
from ldm.util import write_whole

log = logging.getLogger(__name__)

# Numbers that are repeated in a file of random weights.
BLOCK = 1 << 22
SAFETENSORS = {torch.float32: "F32", torch.float16: "F16"}
LOOP_STEPS = 200


def write_random_base(family: str, path: Path, kind: torch.dtype) -> None:
    """Write a file of random weights with a family's published names and shapes.

    It is written a block at a time, so that memory stays small.

    Args:
        family: family of the base, such as "ldm" or "sdxl".
        path: path of the .safetensors file.
        kind: float32 or float16.
    """
    config = shipped_config(family)
    if family == "ldm":  # the miniature's vocabulary ships, the published one may not be here
        config.model.params.cond_stage_config.params.tokenizer = str(TOKENIZER)
    model = build_empty(Base(path, family, config, ""))
    header, end = {}, 0
    for name, value in model.state_dict().items():
        if name not in SCHEDULE:
            size = value.numel() * kind.itemsize
            header[published_name(name)] = {
                "dtype": SAFETENSORS[kind],
                "shape": list(value.shape),
                "data_offsets": [end, end + size],
            }
            end += size
    text = json.dumps(header).encode()
    block = (0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))).to(kind)
    numbers = block.view(torch.uint8).numpy().tobytes()

    def write(part: Path) -> None:
        with part.open("r+b") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, len(numbers)):
                file.write(numbers[: end - start])

    write_whole(path, write)


def seconds_to_read(path: Path) -> float:
    """Return the seconds that a second reading of a file takes: it is in the system's memory."""
    buffer = bytearray(1 << 24)
    for _ in range(2):
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def start(plan: Plan) -> Results:
    """Measure the time to the first step at 1.4B, and the loop's share of the miniature's step.

    With `quick` the miniature's file stands for that of the 1.4B model.
    """
    facts = machine(plan.turn.device, plan.turn.threads)
    rows = [*_first_step(plan), _loop(plan)]
    facts["load_after"] = round(os.getloadavg()[0], 1)
    return {"title": "Start of a run, and its loop", "machine": facts, "rows": rows}


def _first_step(plan: Plan) -> list[dict[str, str]]:
    """Return rows for the time from the command to the first step, and its parts."""
    path = plan.model if plan.quick else plan.folder / "random-1.4B.safetensors"
    arguments: Sequence[str] = PAPER
    if not plan.quick:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_random_base("ldm", path, torch.float32)
        tokenizer = f"model.params.cond_stage_config.params.tokenizer={TOKENIZER}"
        arguments = ("--base", "configs/finetune.yaml", tokenizer)
    try:
        reading = seconds_to_read(path)
        one = ("--max_steps", "1", "--limit_val_batches", "0", "data.params.batch_size=1")
        found = command(replace(plan, model=path), (*arguments, *concepts(), *one))
        size = path.stat().st_size / 1e9
    finally:
        if not plan.quick:
            path.unlink(missing_ok=True)
    beginning = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, pytorch_lightning"], check=True)
    imports = time.perf_counter() - beginning
    whole, encoding = found["seconds"] - found["training"], found["encoding"]
    parts = {
        f"command to the first step, file of {size:.1f} GB": whole,
        "of that: importing torch and Lightning, in a process of its own": imports,
        "of that: encoding the images": encoding,
        "of that: all else, such as reading the file": whole - imports - encoding,
    }
    log.info(f"reading {size:.2f} GB: {reading:.2f} s; {parts}")
    return [
        {
            "what": name,
            "seconds": f"{seconds:.2f} s",
            "against": f"reading the file, warm: {reading:.2f} s",
            "ratio": f"{seconds / reading:.2f}",
        }
        for name, seconds in parts.items()
    ]


def _loop(plan: Plan) -> dict[str, str]:
    """Return a row for a step in a run against the step alone, which take turns."""
    steps = 3 if plan.quick else LOOP_STEPS
    threads = plan.turn.threads or 1  # the miniature's own number
    turn = replace(
        plan.turn,
        size="miniature",
        side="ours, float32",
        generations=0,
        threads=threads,
        repeat=1 if plan.quick else LOOP_STEPS // 2,
    )
    many = (*PAPER, *concepts(), "--max_steps", str(steps), "--limit_val_batches", "0")
    whole, bare = [], []
    for _ in range(plan.rounds):
        bare.append(statistics.fmean(do_turn(turn, plan.quick)["wall"]))
        whole.append(command(replace(plan, turn=turn), many)["training"] / steps)
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    log.info(f"steps of runs of {steps}: {whole}; the step alone: {bare}")
    return {
        "what": f"a step in a run of {steps}, miniature",
        "seconds": f"{statistics.median(whole) * 1e3:.1f} ms",
        "against": f"the step alone: {statistics.median(bare) * 1e3:.1f} ms",
        "ratio": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    }
