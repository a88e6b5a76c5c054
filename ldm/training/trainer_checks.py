"""Checks of the trainer's options before a model is built: machine, precision and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.strategies import StrategyRegistry

from ldm.util import UserError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = (
    *("16", "16-mixed", "16-true", "bf16", "bf16-mixed", "bf16-true"),
    *("32", "32-true", "64", "64-true", "transformer-engine", "transformer-engine-float16"),
)
# Numbers of at least 1; those that -1 leaves open.
COUNTS = ("max_steps", "max_epochs", "accumulate_grad_batches", "num_nodes", "log_every_n_steps")
OPEN = ("max_steps", "max_epochs")


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Check options of the trainer, as `trainer_settings` gives them.

    Raises UserError naming the option, its value and what serves.
    """
    strategies = ("auto", *StrategyRegistry.available_strategies())
    choices = {"accelerator": ACCELERATORS, "precision": PRECISIONS, "strategy": strategies}
    for name, known in choices.items():
        value = settings.get(name)
        if value is not None and str(value) not in known:
            raise UserError(f"--{name} {value}: expected one of {', '.join(known)}")
    for name in COUNTS:
        value = settings.get(name)
        if value is None or (value == -1 and name in OPEN):
            continue
        if not isinstance(value, int) or value < 1:
            least = "a number of at least 1" + (", or -1 for no limit" if name in OPEN else "")
            raise UserError(f"--{name} {value}: expected {least}")
    check_devices(settings)


def check_devices(settings: Mapping[str, Any]) -> None:
    """Raise UserError where the devices asked for are no devices, or not there."""
    wanted = settings.get("accelerator") or "auto"
    devices = read_devices(settings.get("devices", 1))
    apple = torch.backends.mps.is_available()
    if wanted == "mps" and not apple:
        raise UserError("accelerator mps asked for, but there is none: use --accelerator cpu")
    if wanted == "cpu" and not isinstance(devices, int):
        raise UserError(f"--devices {settings['devices']}: of the CPU give a number of processes")
    there = torch.cuda.device_count()
    if wanted not in ("gpu", "cuda", "auto") or (wanted == "auto" and there == 0):
        return
    if there == 0 and not (wanted == "gpu" and apple):
        raise UserError("a GPU is asked for, but torch finds none: use --accelerator cpu")
    if isinstance(devices, int):
        if devices > max(there, 1):
            raise UserError(f"--devices {devices}: torch finds only {max(there, 1)} GPU(s)")
        return
    missing = [n for n in devices if not 0 <= n < max(there, 1)]
    if missing:
        raise UserError(f"GPU {missing[0]} is asked for, but torch finds only 0 to {there - 1}")


def read_devices(wanted: Any) -> int | list[int]:
    """Return a number of devices, -1 for all, or the list of their numbers.

    Raises UserError where `wanted` is neither, or no device at all.
    """
    if wanted == "auto":
        return -1
    try:
        if isinstance(wanted, str) and "," not in wanted:
            wanted = int(wanted)
        if isinstance(wanted, str):
            wanted = [part for part in wanted.split(",") if part.strip()]
        read = [int(n) for n in wanted] if isinstance(wanted, Sequence) else int(wanted)
    except (TypeError, ValueError):
        read = 0
    if read == [] or (isinstance(read, int) and read < 1 and read != -1):
        raise UserError(
            f"--devices {wanted}: expected a number of at least 1, or GPU numbers such as 0,1"
        )
    return read
