"""Small typed parts of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.util import UserError


@dataclass(frozen=True)
class RunOptions:
    """The section `run`.

    Attributes:
        seed: seed of all random numbers, in [0, 2^32). The default is the paper's.
        scale_lr: learning rate = accumulation x devices x batch size x base_learning_rate.
        base_checkpoint: weights of the frozen model (`--model`).
        random_base: learn a word on a model without weights, for tests.
        threads: CPU threads of torch, at least 1; None leaves torch's own number.
        half_difference: store the weight delta in half precision.
        tf32: faster, less exact float32 products on a GPU.
        compile: compile the U-Net (`ldm.training.compiling`).
        data_name: start of the log folder's name.
        placeholder: placeholder of each word in its own file, if several words are learned at once.
    """

    seed: int = 23
    scale_lr: bool = True
    base_checkpoint: str | None = None
    random_base: bool = False
    threads: int | None = None
    half_difference: bool = True
    tf32: bool = False
    compile: bool = False
    data_name: str = ""
    placeholder: str = "*"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: expected a number from 0 to {2**32 - 1}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads {self.threads}: expected a number of at least 1")


@dataclass(frozen=True)
class Batch:
    """How many images an optimizer step sees.

    `micro` micro-batches of `size` images are accumulated on each of `devices`, over all nodes.
    """

    size: int
    micro: int
    devices: int

    @property
    def images(self) -> int:
        """Images in a step, over all devices."""
        return self.size * self.micro * self.devices

    def __str__(self) -> str:
        return f"{self.micro} accumulated x {self.devices} devices x {self.size} in a batch"
