"""Latent diffusion: first stage, conditioner, noise schedule, U-Net and the word's training loss.

`LatentDiffusion` is the class that YAML files name; its state-dict names (twelve schedule buffers at the
root, `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*`, `model_ema.*`) and the methods
that other tools call (`apply_model`, `q_sample`, `get_learned_conditioning`, …) are a public contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.diffusion.schedule import make_beta_schedule, make_schedule, variational_weights
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.randomness import Purpose, integers, normal
from ldm.util import instantiate_from_config

Posterior = DiagonalGaussianDistribution | Tensor


@dataclass(frozen=True)
class LossResult:
    """What `p_losses` gives: the scalar to minimise, and its detached parts by name."""

    loss: Tensor
    terms: dict[str, Tensor]


class LatentDiffusion(pl.LightningModule):
    """Diffusion in the latent space of a first stage, conditioned on text, classes or pictures.

    With `personalization_config` everything but the words is frozen (paper §3), unless
    `unfreeze_model`.

    Args:
        unet_config, first_stage_config, cond_stage_config: target and params of the parts;
            `cond_stage_config` may be `__is_first_stage__` or `__is_unconditional__`.
        personalization_config: target and params of the embedding manager; `embedding_manager_ckpt`
            among the params is a file of words to start from.
        timesteps, beta_schedule, linear_start, linear_end, cosine_s, given_betas: the noise schedule.
        loss_type: `l2` (the paper's) or `l1`.
        parameterization: what the U-Net's output means: `eps`, `x0`, or `v` (Salimans & Ho 2022).
            `apply_model` gives the noise for `eps` and `v`, the latent for `x0`.
        image_size: side of the latent, or [h, w].
        channels: of the latent.
        first_stage_key, cond_stage_key: keys of the batch.
        scale_factor: multiplies latents; with `scale_by_std` it is stored in the state dict.
        embedding_reg_weight: λ of λ‖v − v_coarse‖² (paper §4, "regularised").
        unfreeze_model, model_lr: train the U-Net and conditioner too, at their own rate.
        loss_weighting: `simple`, the paper's, weighs all timesteps alike; `v` divides the error of the
            noise by ā_t, which makes it the error of v: for training a model from nothing.
        use_ema: keep averaged weights of the U-Net.
        monitor: the logged value that picks the best checkpoint.
        scheduler_config: target and params of a learning-rate multiplier.

    Raises:
        ValueError: an option's value is not one that exists.
    """

    learning_rate: float = 5e-3
    seed: int = 23

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        personalization_config: Mapping[str, Any] | None = None,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        v_posterior: float = 0.0,
        loss_type: str = "l2",
        parameterization: str = "eps",
        l_simple_weight: float = 1.0,
        original_elbo_weight: float = 0.0,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        loss_weighting: str = "simple",
        image_size: int | Sequence[int] = 256,
        channels: int = 3,
        first_stage_key: str = "image",
        cond_stage_key: str = "image",
        conditioning_key: str | None = None,
        concat_mode: bool = True,
        cond_stage_trainable: bool = False,
        cond_stage_forward: str | None = None,
        num_timesteps_cond: int | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        embedding_reg_weight: float = 0.0,
        unfreeze_model: bool = False,
        model_lr: float = 0.0,
        use_ema: bool = True,
        ema_decay: float = 0.9999,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
    ) -> None:
        super().__init__()
        if loss_type not in ("l1", "l2"):
            raise ValueError(f"loss_type must be 'l1' or 'l2', got {loss_type!r}")
        if loss_weighting not in ("simple", "v"):
            raise ValueError(f"loss_weighting must be 'simple' or 'v', got {loss_weighting!r}")
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"num_timesteps_cond must be 1, got {num_timesteps_cond}")
        self.loss_type, self.parameterization = loss_type, parameterization
        self.l_simple_weight, self.original_elbo_weight = l_simple_weight, original_elbo_weight
        self.image_size, self.channels = image_size, channels
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.cond_stage_forward, self.cond_stage_trainable = (
            cond_stage_forward,
            cond_stage_trainable,
        )
        self.embedding_reg_weight = embedding_reg_weight
        self.unfreeze_model, self.model_lr = unfreeze_model, model_lr
        self.scheduler_config, self.monitor = scheduler_config, monitor
        self.log_every_t, self.clip_denoised = log_every_t, clip_denoised
        self.use_ema = use_ema
        self.posterior_source: Callable[[Mapping[str, Any]], Posterior] | None = None

        unconditional = cond_stage_config == "__is_unconditional__"
        if conditioning_key is None and not unconditional:
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.model = DiffusionWrapper(unet_config, None if unconditional else conditioning_key)
        self._register_schedule(
            make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
            if given_betas is None
            else given_betas,
            v_posterior,
            loss_weighting,
        )
        logvar = torch.full((self.num_timesteps,), float(logvar_init), device="cpu")
        self.learn_logvar = learn_logvar
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)
        self.scale_factor: Any
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(scale_factor))
        else:
            self.scale_factor = scale_factor
        self.model_ema = LitEma(self.model, ema_decay) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self._freeze(self.first_stage_model)
        self.cond_stage_model = self._make_conditioner(cond_stage_config)
        if ckpt_path is not None:
            self._read(ckpt_path, ignore_keys, load_only_unet)
        self.embedding_manager: Any = None
        if personalization_config is not None:
            self.embedding_manager = self._make_words(personalization_config)

    # -- building ---------------------------------------------------------------------------------

    def _register_schedule(self, betas: Any, v_posterior: float, loss_weighting: str) -> None:
        schedule = make_schedule(betas, v_posterior)
        for name, table in schedule.tables().items():
            self.register_buffer(name, table)
        self.num_timesteps = len(schedule.betas)
        weights = variational_weights(schedule, self.parameterization)
        self.register_buffer("lvlb_weights", weights, persistent=False)
        ones = torch.ones_like(schedule.alphas_cumprod)
        weight = ones / schedule.alphas_cumprod if loss_weighting == "v" else ones
        self.register_buffer("timestep_weights", weight, persistent=False)

    @staticmethod
    def _freeze(module: nn.Module) -> None:
        module.eval().requires_grad_(False)

    def _make_conditioner(self, config: Mapping[str, Any] | str) -> Any:
        if config == "__is_first_stage__":
            return self.first_stage_model
        if config == "__is_unconditional__":
            return None
        conditioner = instantiate_from_config(config)  # type: ignore[arg-type]
        if not self.cond_stage_trainable:
            self._freeze(conditioner)
        return conditioner

    def _make_words(self, config: Mapping[str, Any]) -> Any:
        params = dict(config.get("params") or {})
        words = params.pop("embedding_manager_ckpt", None)
        manager = instantiate_from_config(
            {"target": config["target"], "params": params}, embedder=self.cond_stage_model
        )
        if words:
            manager.load(words)
        if not self.unfreeze_model:
            self._freeze(self.model)
            self._freeze(self.cond_stage_model)
            if self.learn_logvar:
                self.logvar.requires_grad_(False)
        return manager

    def _read(self, path: str, ignore_keys: Sequence[str], only_unet: bool) -> None:
        from ldm.checkpoint import load_state, read_state_dict

        state = read_state_dict(path)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(ignore_keys))}
        if only_unet:
            state = {k: v for k, v in state.items() if k.startswith("model.")}
        load_state(self, state)

    @property
    def first_stage_downsampling(self) -> int:
        """Pixels of a picture to an element of its latent, along a side."""
        return int(self.first_stage_model.downsampling)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of what is trained; what is frozen stays as it is used, in evaluation mode."""
        super().train(mode)
        for part in (self.model, self.first_stage_model, self.cond_stage_model):
            if part is not None and not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    # -- the diffusion process --------------------------------------------------------------------

    @staticmethod
    def _at(table: Tensor, t: Tensor) -> Tensor:
        """Entries of a table [timesteps] for t [b], shaped to multiply [b, c, h, w]."""
        return rearrange(table[t], "b -> b 1 1 1")

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Noise latents to timesteps t: √ā_t·x_0 + √(1−ā_t)·ε (Ho et al. 2020, equation 4).

        Args:
            x_start: [b, c, h, w].
            t: [b], in [0, num_timesteps).
            noise: ε, like x_start; drawn here where not given.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self._at(self.sqrt_alphas_cumprod, t) * x_start
        return signal + self._at(self.sqrt_one_minus_alphas_cumprod, t) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the x_0 that x_t and its noise imply, [b, c, h, w]."""
        scaled = self._at(self.sqrt_recip_alphas_cumprod, t) * x_t
        return scaled - self._at(self.sqrt_recipm1_alphas_cumprod, t) * noise

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return the predicted noise in x_noisy [b, c, h, w] at t [b]; for `x0` models, the latent.

        Args:
            cond: a tensor, a list of tensors, or {"c_concat": […], "c_crossattn": […]}.
        """
        output: Tensor = self.model(x_noisy, t, **self.model.conditions(cond))
        if self.parameterization != "v":
            return output
        # ε = √ā_t·v + √(1−ā_t)·x_t: whoever samples sees a model of the noise.
        signal = self._at(self.sqrt_alphas_cumprod, t) * output
        return signal + self._at(self.sqrt_one_minus_alphas_cumprod, t) * x_noisy

    # -- first stage and conditioner --------------------------------------------------------------

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Posterior:
        """Picture [b, 3, h, w] in [−1, 1] → posterior (KL) or latent (VQ), not yet scaled."""
        return self.first_stage_model.encode(x)  # type: ignore[no-any-return]

    def get_first_stage_encoding(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """Return a scaled latent: a *sample* of the posterior (paper §3), or the latent itself."""
        if isinstance(posterior, DiagonalGaussianDistribution):
            posterior = posterior.sample(noise)
        return self.scale_factor * posterior

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent [b, c, h, w] → picture [b, 3, f·h, f·w], about [−1, 1]."""
        return self.first_stage_model.decode(z / self.scale_factor)  # type: ignore[no-any-return]

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """Encode conditions; texts pass through the embedding manager, the empty one too."""
        if self.cond_stage_forward is not None:
            encoded = getattr(self.cond_stage_model, self.cond_stage_forward)(c)
        elif self.embedding_manager is not None:
            encoded = self.cond_stage_model.encode(c, embedding_manager=self.embedding_manager)
        else:
            encoded = self.cond_stage_model.encode(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    # -- training ---------------------------------------------------------------------------------

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> LossResult:
        """Return the loss ‖ε − ε_θ(z_t, t, c)‖² (paper, equation 2), averaged over the batch.

        Args:
            x_start: latents [b, c, h, w].
            cond: as `apply_model` takes it.
            t: [b].
            noise: ε, like x_start; drawn here where not given.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        target = x_start if self.parameterization == "x0" else noise
        difference = output.float() - target.float()
        error = difference.abs() if self.loss_type == "l1" else difference**2
        simple = error.flatten(1).mean(1)
        logvar = self.logvar[t]
        weighted = (simple * self.timestep_weights[t] / logvar.exp() + logvar).mean()
        vlb = (self.lvlb_weights[t] * simple).mean()
        loss = self.l_simple_weight * weighted + self.original_elbo_weight * vlb
        terms = {"loss_simple": simple.mean(), "loss_vlb": vlb}
        if self.embedding_reg_weight > 0 and self.embedding_manager is not None:
            terms["loss_embedding_reg"] = self.embedding_manager.coarse_loss()
            loss = loss + self.embedding_reg_weight * terms["loss_embedding_reg"]
        terms["loss"] = loss
        return LossResult(loss, {name: term.detach() for name, term in terms.items()})

    def _draw(self, batch: Mapping[str, Any], shape: Sequence[int], purpose: Purpose) -> Tensor:
        """N(0, 1) for a batch, [b, *shape]: by sample index where the batch carries one."""
        if "sample" in batch:
            return normal(self.seed, batch["sample"].tolist(), shape, purpose).to(self.device)
        size = len(batch[self.cond_stage_key])
        return torch.randn(size, *shape, device=self.device)

    def _timesteps(self, batch: Mapping[str, Any]) -> Tensor:
        """t ∼ U{0 … T−1} for a batch, [b]."""
        if "sample" in batch:
            samples = batch["sample"].tolist()
            t = integers(self.seed, samples, self.num_timesteps, Purpose.TIMESTEP)
            return t.to(self.device)
        size = len(batch[self.cond_stage_key])
        return torch.randint(self.num_timesteps, (size,), device=self.device)

    def pictures(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the batch's pictures, [b, c, h, w] in [−1, 1], on the model's device."""
        x = rearrange(batch[self.first_stage_key], "b h w c -> b c h w")
        return x.to(self.device, torch.float32).contiguous()

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
            noise = self._draw(batch, posterior.mean.shape[1:], Purpose.POSTERIOR)
        return self.get_first_stage_encoding(posterior, noise)

    def shared_step(self, batch: Mapping[str, Any]) -> LossResult:
        """Return the loss of a batch: latents, conditions, timesteps and noise, then `p_losses`."""
        z = self.latents(batch)
        cond = None
        if self.cond_stage_model is not None:
            cond = self.get_learned_conditioning(batch[self.cond_stage_key])
        t = self._timesteps(batch)
        return self.p_losses(z, cond, t, self._draw(batch, z.shape[1:], Purpose.NOISE))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tell the words how far training is: progressive words count optimiser steps."""
        if self.embedding_manager is not None:
            self.embedding_manager.set_step(self.global_step)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        result = self.shared_step(batch)
        size = len(batch[self.cond_stage_key])
        self.log_dict({f"train/{k}": v for k, v in result.terms.items()}, batch_size=size)
        return result.loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of a validation batch, with the averaged weights where there are some."""
        with self.ema_scope():
            terms = self.shared_step(batch).terms
        size = len(batch[self.cond_stage_key])
        self.log_dict({f"val/{k}_ema": v for k, v in terms.items()}, batch_size=size)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of a test batch."""
        terms = self.shared_step(batch).terms
        size = len(batch[self.cond_stage_key])
        self.log_dict({f"test/{k}": v for k, v in terms.items()}, batch_size=size)

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the averaged weights follow."""
        if self.model_ema is not None and self.embedding_manager is None:
            self.model_ema(self.model)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within it the U-Net has its averaged weights, if there are some."""
        if self.model_ema is None:
            yield
            return
        self.model_ema.store(self.model)
        self.model_ema.copy_to(self.model)
        try:
            yield
        finally:
            self.model_ema.restore(self.model)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return every weight that training moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """AdamW with torch's defaults (weight decay 0.01), over what is trained."""
        if self.embedding_manager is None:
            groups: list[dict[str, Any]] = [{"params": self.trainable_parameters()}]
        else:
            words = list(self.embedding_manager.embedding_parameters())
            own = {id(word) for word in words}
            others = [p for p in self.trainable_parameters() if id(p) not in own]
            groups = [{"params": words}]
            if others:
                groups.append({"params": others, "lr": self.model_lr})
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        if self.scheduler_config is None:
            return optimizer
        schedule = instantiate_from_config(self.scheduler_config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    # -- checkpoints of a run ---------------------------------------------------------------------

    @property
    def strict_loading(self) -> bool:
        """A run's checkpoint holds what is trained, so names are missing from it by design."""
        return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained and what goes with it; the frozen model is in its own file."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in trained or name.startswith(("embedding_manager.", "model_ema."))
        }
