"""Early stopping by a loss without noise: DVAR (Voronov et al., NeurIPS 2023, arXiv 2302.04841).

The training loss says little about a word's progress: most of its variance comes from the random
images, timesteps and noises. On a fixed batch the loss falls and then varies little. DVAR stops at
that point.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.callbacks import StepCallback
from ldm.training.image_logger import quietly
from ldm.util import UserError, at_least

log = logging.getLogger(__name__)


def variance_ratio(losses: Sequence[float], window: int) -> float:
    """Return DVAR's criterion: the variance of the last `window` losses over that of all of them.

    1 until there are more than `window` losses; 0 where all of them are the same.
    """
    if len(losses) <= window:
        return 1.0
    whole = float(np.var(losses))
    return float(np.var(losses[-window:])) / whole if whole else 0.0


class DVAR(StepCallback):
    """Stop when the loss on a fixed batch varies little over a window (the paper's algorithm 1).

    The batch is the validation set's first samples, with one noise each and timesteps spread
    evenly over the schedule. After every `every` optimizer steps its loss is computed; training
    stops when

        var(losses of the last `window` steps) / var(all losses so far) < bound.

    Until then the run is equal to one without this callback. The losses are saved in `last.ckpt`,
    so a resumed run decides as an uninterrupted one. Of several processes the first decides for
    all. Logs `dvar/loss` and `dvar/ratio`.

    Args:
        window: optimizer steps over which the loss must have settled; the authors' code has 200.
        bound: largest ratio at which training stops, in (0, 1]; the authors' code has 0.15.
        every: optimizer steps between evaluations; the paper evaluates after each.
        samples: images in the batch, at least 1.
    """

    def __init__(
        self, window: int = 200, bound: float = 0.15, every: int = 1, samples: int = 8
    ) -> None:
        at_least(1, every=every, samples=samples)
        if window < 2 * every:
            raise ValueError(f"window must hold two evaluations, got {window} for every={every}")
        if not 0 < bound <= 1:
            raise ValueError(f"bound must lie in (0, 1], got {bound}")
        self.window, self.bound = window // every, bound
        self.every, self.samples = every, samples
        self.losses: list[float] = []
        self._batch: tuple[Tensor, list[str], Tensor, Tensor] | None = None

    @property
    def ratio(self) -> float:
        """The criterion on the losses so far; see `variance_ratio`."""
        return variance_ratio(self.losses, self.window)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = list(state_dict["losses"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fix the batch, and record the loss of the initializer word before the first step."""
        if not isinstance(pl_module, LatentDiffusion):
            raise UserError("DVAR needs a model of latent diffusion: leave the callback out")
        if trainer.is_global_zero:
            with quietly(pl_module):
                self._batch = self._fixed_batch(trainer, pl_module)
        if not self.losses:
            self._record(trainer, pl_module)
        self._decide(trainer)

    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        """After a step that is due, record the loss and stop if it has settled."""
        if trainer.global_step % self.every:
            return
        self._record(trainer, module)
        if logs:
            module.log_dict({"dvar/loss": self.losses[-1], "dvar/ratio": self.ratio})
        self._decide(trainer)

    def _fixed_batch(
        self, trainer: Trainer, module: LatentDiffusion
    ) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Return latents [b, c, h, w], captions, timesteps [b] and noises like the latents."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        name = "validation" if "validation" in data.datasets else "train"
        items = [data.datasets[name][sample] for sample in range(self.samples)]
        batch = data.collate(name, cached=False)(items)
        # The middle of each of `samples` equal parts of the schedule.
        places = (torch.arange(self.samples, device=module.device) + 0.5) / self.samples
        timesteps = (places * module.num_timesteps).long()
        latents = module.latents(batch)
        captions = [item[module.cond_stage_key] for item in items]
        return latents, captions, timesteps, batch["noise"].to(latents)

    def _record(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the loss on the first process and tell the others, so that all decide alike."""
        loss = 0.0
        if self._batch is not None:
            assert isinstance(module, LatentDiffusion)
            latents, captions, timesteps, noises = self._batch
            with quietly(module):
                condition = module.get_learned_conditioning(captions)
                terms = module.p_losses(latents, condition, timesteps, noises).terms
            loss = float(terms["loss_simple"])
        self.losses.append(float(trainer.strategy.broadcast(loss)))

    def _decide(self, trainer: Trainer) -> None:
        if self.ratio < self.bound:
            trainer.should_stop = True
            log.info(
                f"stopped at step {trainer.global_step}: over the last {self.window * self.every} "
                f"steps the fixed loss varies {self.ratio:.3f} of what it did in all, less than "
                f"{self.bound:g} (DVAR)"
            )
