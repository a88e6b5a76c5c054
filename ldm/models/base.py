"""What the autoencoders and the diffusion model share: averaged weights, schedule, weight files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config


class TrainedModel(pl.LightningModule):
    """A model whose averaged weights follow the optimizer steps.

    Attributes:
        learning_rate: learning rate of the optimizer; a run sets it.
        seed: seed of the random numbers of training; a run sets it.
        model_ema: the averaged weights of `averaged_network`, or None.
        scheduler_config: target and params of a multiplier of the learning rate, or None.
    """

    learning_rate: float
    seed: int = 23
    model_ema: LitEma | None
    scheduler_config: Mapping[str, Any] | None
    _step_before: int = -1

    @property
    def averaged_network(self) -> nn.Module:
        """The network whose weights are averaged."""
        raise NotImplementedError

    @property
    def trains_model(self) -> bool:
        """Whether training moves the weights of `averaged_network`."""
        return True

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Remember the step, to see at the end of the batch whether the optimizer has stepped."""
        self._step_before = self.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights after an optimizer step, not after each micro-batch."""
        stepped = self.global_step > self._step_before
        if self.model_ema is not None and self.trains_model and stepped:
            self.model_ema(self.averaged_network)

    def ema_scope(self, _context: str | None = None) -> AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if there are any."""
        if self.model_ema is None:
            return nullcontext()
        return self.model_ema.applied_to(self.averaged_network)

    def scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return an optimizer as Lightning takes it, with the schedule of `scheduler_config`."""
        if self.scheduler_config is None:
            return optimizer
        schedule = instantiate_from_config(self.scheduler_config)
        # LambdaLR saves the attributes of an object, but not those of a function: a resumed run
        # follows the schedule of its own configuration.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def read_weights(self, path: str, ignore: Sequence[str] = (), only: str = "") -> None:
        """Load a file of weights.

        Args:
            path: path of the file.
            ignore: prefixes of names to leave out.
            only: prefix that all names to load share.
        """
        from ldm.checkpoint.loading import load_state, read_state_dict

        left_out = tuple(ignore)
        state = {
            name: weight
            for name, weight in read_state_dict(path).items()
            if name.startswith(only) and not name.startswith(left_out)
        }
        load_state(self, state)
