"""One turn of one side, in a process of its own, so that its peak memory is its own.

    python -m ldm.experiments.benchmark.turn '{"size": "miniature", "side": "ours, float32"}'

prints the measured values as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.experiments.benchmark import peer, sides
from ldm.experiments.benchmark.sides import SIDES, SIZES, Side, Size, Times, applied, timed
from ldm.training.memory import peak_bytes

# Side of the square matrices whose product measures the device's speed.
PRODUCT = 2048


@dataclass(frozen=True)
class Turn:
    """The settings of a turn.

    Attributes:
        size, side: names, of `SIZES` and `SIDES`.
        batch: images in a training step; None is the size's own.
        repeat: timed repetitions after one that warms up.
        generations: timed generations.
        device: "cpu", "cuda", …
        threads: threads of torch on a CPU.
        overrides: changed entries of the configuration.
        images, steps: of a generation; None is the size's own.
    """

    size: str
    side: str
    batch: int | None = None
    repeat: int = 3
    generations: int = 1
    device: str = "cpu"
    threads: int | None = None
    overrides: tuple[str, ...] = ()
    images: int | None = None
    steps: int | None = None

    def work(self) -> Size:
        """Return the size with what this turn changes."""
        given = {"batch": self.batch, "images": self.images, "steps": self.steps}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value}
        return replace(SIZES[self.size], overrides=self.overrides, **changes)

    def to_json(self) -> str:
        """Return the turn as the command line takes it."""
        return json.dumps(asdict(self))


def product_rate(dtype: torch.dtype, device: str) -> float:
    """Return the operations a second of a large matrix product."""
    a = torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype)
    times = timed(lambda: a @ a, 6, device)
    return 2 * PRODUCT**3 / min(_of_device(times, device)[1:])


def _of_device(times: Times, device: str) -> list[float]:
    """Return the seconds to compare: CPU time on a CPU, the clock elsewhere."""
    return times.cpu if device == "cpu" else times.wall


@dataclass(frozen=True)
class Work:
    """What a side does.

    Attributes:
        step: takes a training step and returns its loss.
        generation: prepares, and returns what generates.
        word: the trained vectors, which hold the gradient of the last step; None in a peer.
    """

    step: Callable[[], float]
    generation: Callable[[], Callable[[], object]]
    word: nn.Parameter | None = None


def _work(size: Size, side: Side, device: str) -> Work:
    if side.peer:
        parts = peer.build(size, side, device)
        step = peer.training_step(parts, side, size.batch, device)
        return Work(step, partial(peer.generation, parts, size))
    model = sides.build(size, side, device)
    assert model.embedding_manager is not None
    (word,) = model.embedding_manager.embedding_parameters()
    step = sides.training_step(model, side, size.batch)
    return Work(step, partial(sides.generation, model, size), word)


def measure(turn: Turn) -> dict[str, Any]:
    """Do a turn.

    Returns:
        `step` and `generation`, seconds of each repetition, on a CPU those of all its threads;
        `wall`, seconds of each step on the clock; `images`, of a generation; `peak`,
        bytes of training; `flops` of a training step; `rate`, operations a second of a product;
        `gradient`, of the word at the first step, if the side is no peer.
    """
    if turn.threads:
        torch.set_num_threads(turn.threads)
    size, side, device = turn.work(), SIDES[turn.side], turn.device
    torch.manual_seed(0)
    with applied(side):
        work = _work(size, side, device)
        with FlopCounterMode(display=False) as counter:
            work.step()
        found: dict[str, Any] = {"flops": counter.get_total_flops(), "images": size.images}
        if work.word is not None and work.word.grad is not None:
            found["gradient"] = work.word.grad.flatten().tolist()
        times = timed(work.step, turn.repeat, device)
        found["step"], found["wall"] = _of_device(times, device), times.wall
        found["peak"] = peak_bytes(device)
        if turn.generations and not (side.peer and side.half):  # the pipeline has no bfloat16
            found["generation"] = _of_device(
                timed(work.generation(), turn.generations, device), device
            )
    found["rate"] = product_rate(side.dtype, device)
    return found


def main() -> None:
    """Do the turn that the command line describes, and print what it measured."""
    given = json.loads(sys.argv[1])
    given["overrides"] = tuple(given.get("overrides", ()))
    sys.stdout.write("\n" + json.dumps(measure(Turn(**given))) + "\n")


if __name__ == "__main__":
    main()
