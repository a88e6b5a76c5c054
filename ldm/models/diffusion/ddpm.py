"""Latent diffusion: first stage, conditioner, noise schedule, U-Net and the word's training loss.

`LatentDiffusion` is the class that YAML files name. Its state-dict names (twelve schedule buffers
at the root, `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*`, `model_ema.*`)
and the methods that other tools call (`apply_model`, `q_sample`, `get_learned_conditioning`, …) are
a public contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.schedule import make_beta_schedule, make_schedule
from ldm.models.diffusion.steps import DiffusionTraining, LossResult, Posterior
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config

__all__ = ["LatentDiffusion", "LossResult"]


def _precision(module: nn.Module, inputs: Tensor) -> torch.dtype:
    """What a module computes with; the inputs' own type where it has no weights."""
    return next(module.parameters(), inputs).dtype


class LatentDiffusion(DiffusionTraining):
    """Diffusion in the latent space of a first stage, conditioned on text, classes or images.

    With `personalization_config` everything but the words is frozen (paper §3), unless
    `unfreeze_model`.

    Args:
        unet_config, first_stage_config, cond_stage_config: target and params of the parts;
            `cond_stage_config` may be `__is_first_stage__` or `__is_unconditional__`.
        personalization_config: target and params of the embedding manager; `embedding_manager_ckpt`
            among the params is a file of words to start from.
        timesteps, beta_schedule, linear_start, linear_end, cosine_s, given_betas: the schedule.
        loss_type: `l2` (the paper's) or `l1`.
        parameterization: what the U-Net's output means: `eps`, `x0`, or `v` (Salimans & Ho 2022).
            `apply_model` gives the noise for `eps` and `v`, the latent for `x0`.
        timestep_power: above 1, training draws high noise levels more often, with a density that
            grows as t^(power−1): where noise hides a shape, the text decides it. 1, the paper's, is
            uniform.
        image_size: side of the latent, or [h, w].
        channels: of the latent.
        first_stage_key, cond_stage_key: keys of the batch.
        scale_factor: multiplies latents; with `scale_by_std` it is an entry of the state dict, and
            training measures it at its first batch where it is 1.
        embedding_reg_weight: λ of λ‖v − v_coarse‖² (paper §4, "regularised").
        unfreeze_model, model_lr: train the U-Net and conditioner too, at their own rate.
        text_lr: rate of the conditioner, where it is another than `model_lr`.
        prior_weight: λ of the class images' loss, where a batch has such images under `prior`
            (DreamBooth, Ruiz et al. 2022, equation 2).
        loss_weighting: `simple`, the paper's, weighs all timesteps alike; `v` divides the squared
            error of the noise by ā_t, which makes it that of v: for training from nothing.
        use_ema: keep averaged weights of the U-Net.
        monitor: the logged value that picks the best checkpoint.
        scheduler_config: target and params of a learning-rate multiplier.

    Raises:
        ValueError: an option's value is not one that exists.
    """

    model: DiffusionWrapper
    logvar: Tensor

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
        timestep_power: float = 1.0,
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
        text_lr: float | None = None,
        prior_weight: float = 1.0,
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
        self.strict_loading = False  # a run's checkpoint lacks what is frozen, by design
        if loss_type not in ("l1", "l2"):
            raise ValueError(f"loss_type must be 'l1' or 'l2', got {loss_type!r}")
        if loss_weighting == "v" and (loss_type, parameterization == "x0") != ("l2", False):
            raise ValueError("loss_weighting 'v' needs loss_type 'l2' and a model of eps or v")
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"num_timesteps_cond must be 1, got {num_timesteps_cond}")
        self.loss_type = loss_type
        self.l_simple_weight, self.original_elbo_weight = l_simple_weight, original_elbo_weight
        self.image_size, self.channels = image_size, channels
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.cond_stage_forward, self.cond_stage_trainable = (
            cond_stage_forward,
            cond_stage_trainable,
        )
        self.embedding_reg_weight = embedding_reg_weight
        self.unfreeze_model, self.model_lr, self.text_lr = unfreeze_model, model_lr, text_lr
        self.prior_weight = prior_weight
        self.scheduler_config, self.monitor = scheduler_config, monitor
        self.log_every_t, self.clip_denoised = log_every_t, clip_denoised
        self.use_ema = use_ema
        self.posterior_source = None

        unconditional = cond_stage_config == "__is_unconditional__"
        if conditioning_key is None and not unconditional:
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.model = DiffusionWrapper(unet_config, None if unconditional else conditioning_key)
        betas: Any = given_betas
        if given_betas is None:
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        schedule = make_schedule(betas, v_posterior)
        self._register_schedule(schedule, parameterization, loss_weighting)
        if timestep_power <= 0:
            raise ValueError(f"timestep_power must be above 0, got {timestep_power}")
        self.timestep_power = timestep_power
        logvar = torch.full((self.num_timesteps,), float(logvar_init), device="cpu")
        self.learn_logvar = learn_logvar
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor), device="cpu"))
        else:
            self.scale_factor = scale_factor
        self.model_ema = LitEma(self.model, ema_decay) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self._freeze(self.first_stage_model)
        self.cond_stage_model = self._make_conditioner(cond_stage_config)
        self._check_widths()
        if ckpt_path is not None:
            self._read(ckpt_path, ignore_keys, load_only_unet)
        self.embedding_manager = None
        if personalization_config is not None:
            self.embedding_manager = self._make_words(personalization_config)

    # -- building ---------------------------------------------------------------------------------

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

    def _check_widths(self) -> None:
        """Raise ValueError where the U-Net could not read what the text encoder gives."""
        given = getattr(self.cond_stage_model, "width", None)
        read = getattr(self.model.diffusion_model, "context_dim", None)
        if self.model.conditioning_key == "crossattn" and given and read and given != read:
            raise ValueError(
                f"the text encoder gives vectors of width {given}, but unet_config's context_dim "
                f"is {read}: set one to the other"
            )

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
        from ldm.checkpoint.loading import load_state, read_state_dict

        state = read_state_dict(path)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(ignore_keys))}
        if only_unet:
            state = {k: v for k, v in state.items() if k.startswith("model.")}
        load_state(self, state)

    @property
    def first_stage_downsampling(self) -> int:
        """Pixels of an image to an element of its latent, along a side."""
        return int(self.first_stage_model.downsampling)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in (self.model, self.first_stage_model, self.cond_stage_model):
            if part is not None and not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    # -- network, first stage and conditioner -----------------------------------------------------

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return the predicted noise, [b, c, h, w]: whoever samples sees a model of the noise.

        Args:
            x_noisy: latents noised to t, [b, c, h, w].
            t: [b].
            cond: a tensor, a list of tensors, or {"c_concat": […], "c_crossattn": […]}.
        """
        output = self._network(x_noisy, t, cond)
        if self.parameterization == "v":
            return self.predict_noise_from_v(x_noisy, t, output)
        if self.parameterization == "x0":
            return self.predict_noise_from_start(x_noisy, t, output)
        return output

    def _network(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return what the U-Net itself gives: noise, latent or v, as `parameterization` says."""
        output: Tensor = self.model(x_noisy, t, **self.model.conditions(cond))
        return output

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Posterior:
        """Picture [b, 3, h, w] in [−1, 1] → posterior (KL) or latent (VQ), not yet scaled."""
        return self.first_stage_model.encode(x.to(_precision(self.first_stage_model, x)))

    def get_first_stage_encoding(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """Return a scaled latent: a *sample* of the posterior (paper §3), or the latent itself."""
        if isinstance(posterior, DiagonalGaussianDistribution):
            posterior = posterior.sample(noise)
        return self.scale_factor * posterior

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent [b, c, h, w] → image [b, 3, f·h, f·w], about [−1, 1]."""
        z = z / self.scale_factor
        picture: Tensor = self.first_stage_model.decode(z.to(_precision(self.first_stage_model, z)))
        return picture.to(z.dtype)

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """Encode conditions; texts pass through the embedding manager, the empty one too."""
        if self.cond_stage_forward is not None:
            encoded = getattr(self.cond_stage_model, self.cond_stage_forward)(c)
        elif self.embedding_manager is not None:
            encoded = self.cond_stage_model.encode(c, embedding_manager=self.embedding_manager)
        elif hasattr(self.cond_stage_model, "encode"):
            encoded = self.cond_stage_model.encode(c)
        else:
            encoded = self.cond_stage_model(c)
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
        result = self._denoising_loss(x_start, cond, t, noise)
        if self.embedding_reg_weight <= 0 or self.embedding_manager is None:
            return result
        distance = self.embedding_manager.coarse_loss()
        loss = result.loss + self.embedding_reg_weight * distance
        more = {"loss_embedding_reg": distance.detach(), "loss": loss.detach()}
        return LossResult(loss, result.terms | more)

    def _denoising_loss(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None
    ) -> LossResult:
        """Return `p_losses` without what holds the words near their first words."""
        noise = torch.randn_like(x_start) if noise is None else noise
        of_latents = self.parameterization == "x0"
        predict = self._network if of_latents else self.apply_model
        output = predict(self.q_sample(x_start, t, noise), t, cond)
        target = x_start if of_latents else noise
        difference = output.float() - target.float()
        error = difference.abs() if self.loss_type == "l1" else difference**2
        simple = error.flatten(1).mean(1)
        logvar = self.logvar[t]
        weighted = (simple * self.timestep_weights[t] / logvar.exp() + logvar).mean()
        vlb = (self.lvlb_weights[t] * simple).mean()
        loss = self.l_simple_weight * weighted + self.original_elbo_weight * vlb
        terms = {"loss_simple": simple.mean(), "loss_vlb": vlb, "loss": loss}
        return LossResult(loss, {name: term.detach() for name, term in terms.items()})
