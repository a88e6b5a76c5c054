"""Training a diffusion model: a batch's loss, and what Lightning calls.

Steps, optimiser, averaged weights, checkpoints; the networks and the loss itself are a subclass's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.diffusion.process import DiffusionProcess
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.randomness import Purpose
from ldm.util import instantiate_from_config

Posterior = DiagonalGaussianDistribution | Tensor


@dataclass(frozen=True)
class LossResult:
    """What `p_losses` gives: the scalar to minimise, and its detached parts by name."""

    loss: Tensor
    terms: dict[str, Tensor]


class DiffusionTraining(DiffusionProcess):
    """A batch's way to its loss and the hooks of training, over the parts that a subclass has."""

    learning_rate: float = 5e-3
    _step_before: int = -1
    model: nn.Module
    model_ema: LitEma | None
    model_lr: float
    text_lr: float | None
    prior_weight: float
    unfreeze_model: bool
    embedding_manager: Any
    scheduler_config: Mapping[str, Any] | None
    scale_factor: Any
    first_stage_key: str
    cond_stage_key: str
    cond_stage_model: Any
    posterior_source: Callable[[Mapping[str, Any]], Posterior] | None

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> LossResult:
        """Return the loss of latents, conditions, timesteps and noise."""
        raise NotImplementedError

    def _denoising_loss(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None
    ) -> LossResult:
        """Return `p_losses` without what holds the words near their first words."""
        raise NotImplementedError

    def encode_first_stage(self, x: Tensor) -> Posterior:
        """Picture [b, 3, h, w] in [−1, 1] → posterior (KL) or latent (VQ), not yet scaled."""
        raise NotImplementedError

    def get_first_stage_encoding(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """Return a scaled latent."""
        raise NotImplementedError

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """Encode conditions."""
        raise NotImplementedError

    # -- from a batch to its loss -----------------------------------------------------------------

    def pictures(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the batch's images, [b, c, h, w] in [−1, 1], on the model's device."""
        x = rearrange(batch[self.first_stage_key], "b h w c -> b c h w")
        return x.to(self.device, torch.float32).contiguous()

    def conditions(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's conditions as the conditioner takes them; images as `pictures`."""
        conditions = batch[self.cond_stage_key]
        if not isinstance(conditions, Tensor):
            return conditions
        if conditions.ndim == 4:
            conditions = rearrange(conditions, "b h w c -> b c h w").float().contiguous()
        return conditions.to(self.device)

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Any]) -> Tensor:
        """Return a batch's scaled latents, [b, c, h, w], each a sample of its posterior.

        Posteriors come from `posterior_source` where training has set one, else from encoding.
        """
        if self.posterior_source is not None:
            posterior = self.posterior_source(batch)
        else:
            posterior = self.encode_first_stage(self.pictures(batch))
        noise = None
        if isinstance(posterior, DiagonalGaussianDistribution):
            noise = self.draw_noise(batch, posterior.mean.shape, Purpose.POSTERIOR)
        return self.get_first_stage_encoding(posterior, noise)

    def shared_step(self, batch: Mapping[str, Any]) -> LossResult:
        """Return the loss of a batch: latents, conditions, timesteps and noise, then `p_losses`.

        Images of the word's class, where the batch has some under `prior`, add their own loss:
        the model shall go on drawing the class as it did.
        """
        result = self.p_losses(*self._draws(batch))
        if "prior" not in batch:
            return result
        prior = self._denoising_loss(*self._draws(batch["prior"])).loss
        loss = result.loss + self.prior_weight * prior
        return LossResult(
            loss, result.terms | {"loss_prior": prior.detach(), "loss": loss.detach()}
        )

    def _draws(self, batch: Mapping[str, Any]) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Return what `p_losses` takes: latents, condition, timesteps and noise of a batch."""
        z = self.latents(batch)
        cond = None
        if self.cond_stage_model is not None:
            cond = self.get_learned_conditioning(self.conditions(batch))
        t = self.draw_timesteps(batch, len(z))
        return z, cond, t, self.draw_noise(batch, z.shape, Purpose.NOISE)

    # -- steps ------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Tell the words how far training is: progressive words count optimiser steps.

        At a run's first batch, a scale that is to be measured becomes 1/std of its latents.
        """
        self._step_before = self.global_step
        if self.embedding_manager is not None:
            self.embedding_manager.set_step(self.global_step)
        first = self.global_step == 0 and batch_idx == 0
        if first and isinstance(self.scale_factor, Tensor) and self.scale_factor == 1.0:
            self.scale_factor.copy_(1.0 / self.latents(batch).std())

    def _log(self, split: str, terms: Mapping[str, Tensor], batch: Any, end: str = "") -> None:
        size = len(batch["sample"] if "sample" in batch else batch[self.cond_stage_key])
        named = {f"{split}/{k}{end}": v for k, v in terms.items()}
        # Several processes each see a part of the validation images; their mean is reported.
        self.log_dict(named, batch_size=size, sync_dist=split != "train")

    def training_step(self, batch: Mapping[str, Any], _batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        result = self.shared_step(batch)
        self._log("train", result.terms, batch)
        return result.loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], _batch_idx: int) -> None:
        """Log the loss of a validation batch, with the weights as they are and averaged."""
        own = averaged = self.shared_step(batch).terms
        if self.model_ema is not None:
            with self.ema_scope():
                averaged = self.shared_step(batch).terms
        self._log("val", own, batch)
        self._log("val", averaged, batch, "_ema")

    @torch.no_grad()
    def test_step(self, batch: Mapping[str, Any], *_: Any) -> None:
        """Log the loss of a test batch."""
        self._log("test", self.shared_step(batch).terms, batch)

    # -- averaged weights -------------------------------------------------------------------------

    @property
    def trains_model(self) -> bool:
        """Whether the U-Net is trained, not the words alone."""
        return self.embedding_manager is None or self.unfreeze_model

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the averaged weights follow each optimiser step; not each accumulated batch."""
        stepped = self.global_step > self._step_before
        if self.model_ema is not None and self.trains_model and stepped:
            self.model_ema(self.model)

    def ema_scope(self, _context: str | None = None) -> AbstractContextManager[None]:
        """Within it the U-Net has its averaged weights, if there are some."""
        return nullcontext() if self.model_ema is None else self.model_ema.applied_to(self.model)

    # -- optimiser --------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return every weight that training moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """AdamW with torch's defaults (weight decay 0.01), or what the words bring."""
        if self.embedding_manager is None:
            optimizer: Any = torch.optim.AdamW(self.trainable_parameters(), lr=self.learning_rate)
        else:
            words = list(self.embedding_manager.embedding_parameters())
            own = {id(word) for word in words}
            others = [p for p in self.trainable_parameters() if id(p) not in own]
            texts: list[nn.Parameter] = []
            if self.text_lr is not None:
                of_texts = {id(p) for p in self.cond_stage_model.parameters()}
                texts = [p for p in others if id(p) in of_texts]
                others = [p for p in others if id(p) not in of_texts]
            groups: list[dict[str, Any]] = [{"params": words}]
            for weights, rate in ((others, self.model_lr), (texts, self.text_lr)):
                if weights:
                    groups.append({"params": weights, "lr": rate})
            optimizer = self.embedding_manager.make_optimizer(groups, self.learning_rate)
        if self.scheduler_config is None:
            return optimizer
        schedule = instantiate_from_config(self.scheduler_config)
        # LambdaLR saves the arguments of an object, but not those of a function: a resumed run
        # follows the schedule in its own configuration.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    # -- checkpoints of a run ---------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained and what goes with it; the frozen model has its own file."""
        kept = {name for name, p in self.named_parameters() if p.requires_grad} | {"scale_factor"}
        prefixes: tuple[str, ...] = ("embedding_manager.",)
        if self.trains_model:
            prefixes += ("model_ema.",)
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in kept or name.startswith(prefixes)
        }
