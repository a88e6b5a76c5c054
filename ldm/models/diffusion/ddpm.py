"""Latent diffusion: first stage, conditioner, noise schedule, U-Net and the word's training loss.

`LatentDiffusion` is the class that YAML files name. Its state-dict names (twelve schedule buffers
at the root, `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*`, `model_ema.*`)
and the methods that other tools call (`apply_model`, `q_sample`, `get_learned_conditioning`, …) are
a public contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.checkpoint.names import match_names
from ldm.models.base import TrainedModel
from ldm.models.diffusion.batch_noise import BatchNoise, timesteps_of
from ldm.models.diffusion.schedule import Schedule, make_beta_schedule, make_schedule
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.modules.x_transformer import EmbeddingHook
from ldm.util import at_least, instantiate_from_config, one_of
from ldm.words.manager import EmbeddingManager

Posterior = DiagonalGaussianDistribution | Tensor


@dataclass(frozen=True)
class LossResult:
    """The loss to minimize, a scalar, and its detached parts by name."""

    loss: Tensor
    terms: dict[str, Tensor]


def _precision(module: nn.Module, inputs: Tensor) -> torch.dtype:
    """Return the type of a module's weights, or the type of the inputs if it has no weights."""
    return next(module.parameters(), inputs).dtype


class LatentDiffusion(TrainedModel):
    """Diffusion in the latent space of a first stage, conditioned on text, classes or images.

    With `personalization_config` training moves only the words (paper, section 3), unless
    `unfreeze_model`.

    Args:
        unet_config: target and params of the U-Net.
        first_stage_config: target and params of the autoencoder.
        cond_stage_config: target and params of the conditioner, such as a text encoder; or
            `__is_first_stage__` or `__is_unconditional__`.
        personalization_config: target and params of the embedding manager; `embedding_manager_ckpt`
            among the params is a file of words to start from.
        timesteps: number of timesteps of the diffusion process.
        beta_schedule: `linear`, `sqrt_linear`, `sqrt` or `cosine`; see `make_beta_schedule`.
        linear_start: the first β; for `sqrt`, its square.
        linear_end: the last β; for `sqrt`, its square.
        loss_type: `l2` (the paper) or `l1`.
        parameterization: the meaning of the U-Net's output: `eps`, `x0`, or `v` (Salimans & Ho
            2022). `apply_model` returns the noise for all of them.
        loss_weighting: `simple` (the paper) weighs all timesteps alike. `v` divides the squared
            error of the noise by ā_t, which gives the error of v: for training from new weights.
        timestep_power: above 1, training samples high noise levels more often, with a density that
            grows as t^(power−1). Where noise hides a shape, the text decides it. 1 is uniform.
        timestep_strata: timesteps of so many consecutive samples are spread evenly over the
            schedule, which lowers the gradient's variance. The density of each one stays the same.
            Set it to the images of a step; 1 (the paper) samples each alone.
        independent_words: n words that are learned side by side, each from its own n-th part of
            the batch. The loss is the sum of the words' losses, not their mean.
        image_size: side of the latent, or [h, w].
        channels: channels of the latent.
        first_stage_key: the batch's key for images.
        cond_stage_key: the batch's key for conditions, such as captions.
        conditioning_key: how the U-Net reads the condition: `concat`, `crossattn`, `hybrid`, `adm`
            or `crossattn-adm`, as in `DiffusionWrapper`. The default follows from `concat_mode`.
        concat_mode: the default of `conditioning_key` is `concat`; if false, `crossattn`.
        cond_stage_trainable: train the conditioner too.
        cond_stage_forward: method of the conditioner that encodes; default `encode`.
        scale_factor: multiplies latents.
        scale_by_std: `scale_factor` is an entry of the state dict, and training measures it at its
            first batch if it is 1.
        embedding_reg_weight: λ of λ‖v − v_initial‖² (paper, section 4, "regularized"), which keeps
            a word near its initializer word; 0 is off.
        unfreeze_model: train the U-Net and the conditioner too.
        model_lr: their learning rate.
        text_lr: learning rate of the conditioner, if it differs from `model_lr`.
        prior_weight: λ of the loss of the class images, if a batch has such images under `prior`
            (DreamBooth, Ruiz et al. 2022, equation 2).
        use_ema: keep averaged weights of the U-Net.
        ema_decay: share of the average that a step keeps.
        monitor: the logged value that picks the best checkpoint.
        scheduler_config: target and params of a multiplier of the learning rate.
        ckpt_path: a file of weights to start from.
        ignore_keys: prefixes of the file's names to leave out.
        load_only_unet: load the U-Net alone from the file.
        log_every_t, clip_denoised, num_timesteps_cond: accepted for old configurations.

    Raises:
        ValueError: an unknown value of an option, or options that contradict each other.
    """

    # Parameters of the original, and the values at which they have no effect.
    dropped: ClassVar[Mapping[str, Any]] = {
        "learn_logvar": False,
        "logvar_init": 0.0,
        "original_elbo_weight": 0.0,
        "l_simple_weight": 1.0,
        "given_betas": None,
        "v_posterior": 0.0,
        "cosine_s": 8e-3,
    }
    learning_rate = 5e-3
    model: DiffusionWrapper
    embedding_manager: EmbeddingManager | None
    scale_factor: float | Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    timestep_weights: Tensor

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
        loss_type: str = "l2",
        parameterization: str = "eps",
        loss_weighting: str = "simple",
        timestep_power: float = 1.0,
        timestep_strata: int = 1,
        independent_words: int = 1,
        image_size: int | Sequence[int] = 256,
        channels: int = 3,
        first_stage_key: str = "image",
        cond_stage_key: str = "image",
        conditioning_key: str | None = None,
        concat_mode: bool = True,
        cond_stage_trainable: bool = False,
        cond_stage_forward: str | None = None,
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
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        log_every_t: int = 100,  # noqa: ARG002
        clip_denoised: bool = True,  # noqa: ARG002
        num_timesteps_cond: int | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # the checkpoint of a run has no frozen weights
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"num_timesteps_cond must be 1, got {num_timesteps_cond}")
        self.loss_type, self.parameterization = loss_type, parameterization
        self.timestep_power, self.timestep_strata = timestep_power, timestep_strata
        self.independent_words = independent_words
        self.image_size, self.channels = image_size, channels
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.cond_stage_forward = cond_stage_forward
        self.cond_stage_trainable = cond_stage_trainable
        self.embedding_reg_weight, self.prior_weight = embedding_reg_weight, prior_weight
        self.unfreeze_model, self.model_lr, self.text_lr = unfreeze_model, model_lr, text_lr
        self.scheduler_config, self.monitor = scheduler_config, monitor
        self.use_ema = use_ema

        unconditional = cond_stage_config == "__is_unconditional__"
        if conditioning_key is None and not unconditional:
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.model = DiffusionWrapper(unet_config, None if unconditional else conditioning_key)
        betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end)
        self._register_schedule(make_schedule(betas), loss_weighting)
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor), device="cpu"))
        else:
            self.scale_factor = scale_factor
        self.model_ema = LitEma(self.model, ema_decay) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self._freeze(self.first_stage_model)
        self.cond_stage_model = self._make_conditioner(cond_stage_config)
        self._check_options()
        if ckpt_path is not None:
            self.read_weights(ckpt_path, ignore_keys, "model." if load_only_unet else "")
        self.embedding_manager = None
        if personalization_config is not None:
            self.embedding_manager = self._make_words(personalization_config)

    # -- building ---------------------------------------------------------------------------------

    def _register_schedule(self, schedule: Schedule, loss_weighting: str) -> None:
        for name, table in schedule.tables().items():
            self.register_buffer(name, table)
        # Samplers read ā_t on the host; it follows the buffer when a checkpoint is loaded.
        self.alphas_bar: list[float] = schedule.alphas_cumprod.double().tolist()
        self.num_timesteps = len(schedule.betas)
        one_of(("simple", "v"), loss_weighting=loss_weighting)
        if loss_weighting == "v" and (self.loss_type, self.parameterization) not in (
            ("l2", "eps"),
            ("l2", "v"),
        ):
            raise ValueError("loss_weighting 'v' needs loss_type 'l2' and a model of eps or v")
        ones = torch.ones_like(schedule.alphas_cumprod)
        weights = ones if loss_weighting == "simple" else ones / schedule.alphas_cumprod
        self.register_buffer("timestep_weights", weights, persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        # Entries under other published names, such as SDXL's `conditioner.`, get ours.
        theirs = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        for name, ours in match_names(list(self.state_dict()), theirs).items():
            if name != ours and prefix + ours not in state_dict:
                state_dict[prefix + ours] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)
        stored = state_dict.get(f"{prefix}alphas_cumprod")
        if isinstance(stored, Tensor) and not stored.is_meta:
            self.alphas_bar = stored.detach().cpu().double().tolist()

    @staticmethod
    def _freeze(module: nn.Module) -> None:
        module.eval().requires_grad_(False)

    def _make_conditioner(self, config: Mapping[str, Any] | str) -> Any:
        if config == "__is_first_stage__":
            return self.first_stage_model
        if config == "__is_unconditional__":
            return None
        conditioner = instantiate_from_config(config)  # type: ignore[arg-type]
        if self.cond_stage_trainable:
            conditioner.requires_grad_(True)  # CLIP's encoders freeze themselves
        else:
            self._freeze(conditioner)
        return conditioner

    def _check_options(self) -> None:
        """Raise ValueError for an unknown value, or parts that do not fit together."""
        one_of(("l1", "l2"), loss_type=self.loss_type)
        one_of(("eps", "x0", "v"), parameterization=self.parameterization)
        if self.timestep_power <= 0:
            raise ValueError(f"timestep_power must be above 0, got {self.timestep_power}")
        at_least(1, timestep_strata=self.timestep_strata)
        at_least(0, embedding_reg_weight=self.embedding_reg_weight, prior_weight=self.prior_weight)
        if not float(self.scale_factor) > 0:
            raise ValueError(f"scale_factor must be above 0, got {float(self.scale_factor):g}")
        self._check_conditioning()

    def _check_conditioning(self) -> None:
        """Raise ValueError where the U-Net does not read what the conditioner gives."""
        key, network = self.model.conditioning_key, self.model.diffusion_model
        conditioner = self.cond_stage_model
        given = getattr(conditioner, "width", None)  # of a text encoder
        read = getattr(network, "context_dim", None)
        if given and key in ("concat", "adm"):
            raise ValueError(f"conditioning_key {key} reads no text: use crossattn")
        if given and read and key is not None and given != read:
            raise ValueError(
                f"the text encoder gives vectors of width {given}, but unet_config's context_dim "
                f"is {read}: set one to the other"
            )
        if key == "crossattn-adm" and not getattr(conditioner, "reads_size", True):
            raise ValueError(
                "conditioning_key crossattn-adm needs a vector beside the text, which "
                f"{type(conditioner).__name__} does not give: use crossattn, or FrozenXLEmbedder"
            )
        classes = getattr(network, "num_classes", None)
        if hasattr(network, "num_classes") and (classes is None) == (
            key in ("adm", "crossattn-adm")
        ):
            raise ValueError(
                f"conditioning_key {key} does not fit unet_config's num_classes {classes}: "
                "adm and crossattn-adm need one, others have none"
            )

    def _make_words(self, config: Mapping[str, Any]) -> EmbeddingManager:
        params = dict(config.get("params") or {})
        words = params.pop("embedding_manager_ckpt", None)
        manager: EmbeddingManager = instantiate_from_config(
            {"target": config["target"], "params": params}, embedder=self.cond_stage_model
        )
        if words:
            manager.load(words)
        if not self.unfreeze_model:
            self._freeze(self.model)
            self._freeze(self.cond_stage_model)
        return manager

    @property
    def first_stage_downsampling(self) -> int:
        """Pixels of an image to an element of its latent, along a side."""
        return int(self.first_stage_model.downsampling)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the model was trained on."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of the parts that are trained; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in (self.model, self.first_stage_model, self.cond_stage_model):
            if part is not None and not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    # -- the diffusion process --------------------------------------------------------------------

    @staticmethod
    def _at(table: Tensor, t: Tensor) -> Tensor:
        """Return the entries of a table [timesteps] for t [b], as [b, 1, 1, 1].

        A t between two timesteps, as `CompVisDenoiser` of k-diffusion gives it, interpolates.
        """
        if t.is_floating_point():
            low = t.long().clamp(0, len(table) - 2)
            values = torch.lerp(table[low], table[low + 1], (t - low).to(table))
            return rearrange(values, "b -> b 1 1 1")
        return rearrange(table[t], "b -> b 1 1 1")

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return √ā_t·x_0 + √(1−ā_t)·ε, the latents noised to t (Ho et al. 2020, equation 4).

        Args:
            x_start: latents [b, c, h, w].
            t: [b], in [0, num_timesteps).
            noise: ε, like x_start; the default is torch's N(0, 1).
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self._at(self.sqrt_alphas_cumprod, t) * x_start
        return signal + self._at(self.sqrt_one_minus_alphas_cumprod, t) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the x_0 that x_t and its noise imply, [b, c, h, w]."""
        scaled = self._at(self.sqrt_recip_alphas_cumprod, t) * x_t
        return scaled - self._at(self.sqrt_recipm1_alphas_cumprod, t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """Return the ε that x_t and its x_0 imply, [b, c, h, w]."""
        scaled = self._at(self.sqrt_recip_alphas_cumprod, t) * x_t
        return (scaled - x_start) / self._at(self.sqrt_recipm1_alphas_cumprod, t)

    def predict_noise_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Return ε = √ā_t·v + √(1−ā_t)·x_t (Salimans & Ho 2022, appendix D), [b, c, h, w]."""
        turned = self._at(self.sqrt_alphas_cumprod, t) * v
        return turned + self._at(self.sqrt_one_minus_alphas_cumprod, t) * x_t

    # -- network, first stage and conditioner -----------------------------------------------------

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return the predicted noise ε, [b, c, h, w], for every `parameterization`.

        In k-diffusion `CompVisDenoiser` fits every model, also one of v: not `CompVisVDenoiser`,
        which takes the output for v.

        Args:
            x_noisy: latents noised to t, [b, c, h, w].
            t: [b].
            cond: a tensor, a list of tensors, or a mapping; see `DiffusionWrapper.forward`.
        """
        output = self._network(x_noisy, t, cond)
        if self.parameterization == "v":
            return self.predict_noise_from_v(x_noisy, t, output)
        if self.parameterization == "x0":
            return self.predict_noise_from_start(x_noisy, t, output)
        return output

    def _network(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return the output of the U-Net: noise, latent or v, by `parameterization`."""
        output: Tensor = self.model(x_noisy, t, **self.model.conditions(cond))
        return output

    def constant_context(self) -> AbstractContextManager[None]:
        """Return a context manager for sampling; see `DiffusionWrapper.constant_context`."""
        return self.model.constant_context()

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Posterior:
        """Return the posterior (KL) or the latent (VQ), unscaled, of images [b, 3, h, w]."""
        return self.first_stage_model.encode(x.to(_precision(self.first_stage_model, x)))

    def get_first_stage_encoding(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """Return a scaled latent: a *sample* of the posterior (paper, section 3)."""
        if isinstance(posterior, DiagonalGaussianDistribution):
            posterior = posterior.sample(noise)
        return self.scale_factor * posterior

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Return the images, [b, 3, f·h, f·w] in about [−1, 1], of scaled latents [b, c, h, w]."""
        z = z / self.scale_factor
        images: Tensor = self.first_stage_model.decode(z.to(_precision(self.first_stage_model, z)))
        return images.to(z.dtype)

    def get_learned_conditioning(
        self, c: Any, size: tuple[int, int] | None = None, **options: Any
    ) -> Any:
        """Encode conditions. All texts pass through the embedding manager, also the empty one.

        Args:
            c: texts, labels or images.
            size: height and width of the image in pixels, for SDXL; default: the model's own.
            options: further arguments of the text encoder's `embed`, such as `clip_skip`, and
                `embedding_manager`, what takes the place of the model's own.

        Returns:
            A condition as `apply_model` takes it: of SDXL a mapping, of other models a tensor.
        """
        if getattr(self.cond_stage_model, "reads_size", False):
            height, width = (side * self.first_stage_downsampling for side in self.latent_size)
            options["size"] = size or (height, width)
        if self.embedding_manager is not None:
            options.setdefault("embedding_manager", self.embedding_manager)
        if self.cond_stage_forward is not None:
            encoded = getattr(self.cond_stage_model, self.cond_stage_forward)(c)
        elif hasattr(self.cond_stage_model, "encode"):
            encoded = self.cond_stage_model.encode(c, **options)
        else:
            encoded = self.cond_stage_model(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> LossResult:
        """Return the loss ‖ε − ε_θ(z_t, t, c)‖² (paper, equation 2), averaged over the batch.

        Args:
            x_start: latents [b, c, h, w].
            cond: as `apply_model` takes it.
            t: [b].
            noise: ε, like x_start; the default is torch's N(0, 1).
        """
        result = self._denoising_loss(x_start, cond, t, noise)
        if self.embedding_reg_weight <= 0 or self.embedding_manager is None:
            return result
        distance = self.embedding_manager.distance_to_initializers()
        loss = result.loss + self.embedding_reg_weight * distance
        more = {"loss_embedding_reg": distance.detach(), "loss": loss.detach()}
        return LossResult(loss, result.terms | more)

    def _denoising_loss(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None
    ) -> LossResult:
        """Return the loss of `p_losses` without the regularization of the words."""
        simple = self._errors(x_start, cond, t, noise)
        loss = (simple * self.timestep_weights[t]).mean()
        if self.independent_words > 1:
            loss = self.independent_words * loss
        return LossResult(loss, {"loss_simple": simple.mean().detach(), "loss": loss.detach()})

    def _errors(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None) -> Tensor:
        """Return the mean error of each sample, [b], before the weights of timesteps."""
        noise = torch.randn_like(x_start) if noise is None else noise
        of_latents = self.parameterization == "x0"
        predict = self._network if of_latents else self.apply_model
        output = predict(self.q_sample(x_start, t, noise), t, cond)
        target = x_start if of_latents else noise
        error = output.float() - target.float()
        error = error.abs() if self.loss_type == "l1" else error**2
        return error.flatten(1).mean(1)

    # -- from a batch to its loss -----------------------------------------------------------------

    def batch_noise(self) -> BatchNoise:
        """Return the function that samples the random numbers of this model's batches."""
        return BatchNoise(
            self.seed,
            self.channels,
            self.first_stage_downsampling,
            self.first_stage_key,
            self.num_timesteps,
            self.timestep_power,
            self.timestep_strata,
        )

    def images(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the batch's images, [b, c, h, w] in [−1, 1], on the model's device."""
        x = rearrange(batch[self.first_stage_key], "b h w c -> b c h w")
        return x.to(self.device, torch.float32).contiguous()

    def conditions(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's conditions as the conditioner takes them; images as in `images`."""
        conditions = batch[self.cond_stage_key]
        if not isinstance(conditions, Tensor):
            return conditions
        if conditions.ndim == 4:
            conditions = rearrange(conditions, "b h w c -> b c h w").float().contiguous()
        return conditions.to(self.device)

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Any]) -> Tensor:
        """Return a batch's scaled latents, [b, c, h, w], each a sample of its posterior.

        The batch holds `moments`, the posterior's parameters, or images to encode.
        """
        posterior: Posterior
        if "moments" in batch:
            posterior = DiagonalGaussianDistribution(batch["moments"].to(self.device))
        else:
            posterior = self.encode_first_stage(self.images(batch))
        return self.get_first_stage_encoding(posterior, batch.get("posterior_noise"))

    @torch.no_grad()
    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str | None = None,
        return_first_stage_outputs: bool = False,
        force_c_encode: bool = False,
        cond_key: str | None = None,
        return_original_cond: bool = False,
        bs: int | None = None,
    ) -> list[Any]:
        """Return what the original's scripts take from a batch.

        Args:
            batch: images [b, h, w, c] in [−1, 1] under `k`, conditions under `cond_key`.
            k: the default is `first_stage_key`.
            return_first_stage_outputs: add the images [b, c, h, w] and their reconstructions.
            force_c_encode: encode the conditions of a conditioner that is trained too.
            cond_key: the default is `cond_stage_key`.
            return_original_cond: add the conditions as they are.
            bs: take the first samples alone.

        Returns:
            Scaled latents [b, c, h, w], conditions (None without a conditioner), and what was asked
            for, in the order of the arguments.
        """
        data = {self.first_stage_key: batch[k or self.first_stage_key][:bs]}
        images, z, given, encoded = self.images(data), self.latents(data), None, None
        if self.cond_stage_model is not None:
            data = {self.cond_stage_key: batch[cond_key or self.cond_stage_key][:bs]}
            given = encoded = self.conditions(data)
            if force_c_encode or not self.cond_stage_trainable:
                height, width = images.shape[-2:]
                encoded = self.get_learned_conditioning(given, size=(height, width))
        found = [z, encoded]
        if return_first_stage_outputs:
            found += [images, self.decode_first_stage(z)]
        return [*found, given] if return_original_cond else found

    def shared_step(self, batch: Mapping[str, Any]) -> LossResult:
        """Return the loss of a batch.

        Images of the word's class, under `prior`, add their own loss, so that the model keeps its
        images of the class (DreamBooth, Ruiz et al. 2022, equation 2).
        """
        result = self.p_losses(*self._inputs(batch))
        if "prior" not in batch:
            return result
        prior = self._denoising_loss(*self._inputs(batch["prior"])).loss
        loss = result.loss + self.prior_weight * prior
        return LossResult(
            loss, result.terms | {"loss_prior": prior.detach(), "loss": loss.detach()}
        )

    def sample_losses(self, batch: Mapping[str, Any], embedding_manager: EmbeddingHook) -> Tensor:
        """Return the loss of each sample of a batch, [b], with other words than the model's own.

        Neither the regularization of the words nor images of the class are part of it.
        """
        z, cond, t, noise = self._inputs(batch, embedding_manager=embedding_manager)
        return self._errors(z, cond, t, noise) * self.timestep_weights[t]

    def _inputs(
        self, batch: Mapping[str, Any], **options: Any
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Return the arguments of `p_losses`: latents, condition, timesteps and noise of a batch.

        Timesteps and noise that the loader did not put in come from torch's generator.
        """
        z = self.latents(batch)
        cond = None
        if self.cond_stage_model is not None:
            height, width = (side * self.first_stage_downsampling for side in z.shape[-2:])
            given = self.conditions(batch)
            cond = self.get_learned_conditioning(given, size=(height, width), **options)
        if "timestep" not in batch:
            u = torch.rand(len(z), device=self.device)
            return (
                z,
                cond,
                timesteps_of(u, self.num_timesteps, self.timestep_power),
                torch.randn_like(z),
            )
        return z, cond, batch["timestep"].to(self.device), batch["noise"].to(z)

    # -- steps ------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Tell the words the global step: progressive words count optimizer steps.

        At the first batch of a run, `scale_factor` becomes 1/std of the latents, if it is to be
        measured.
        """
        super().on_train_batch_start(batch, batch_idx)
        if self.embedding_manager is not None:
            self.embedding_manager.set_step(self.global_step)
        first = self.global_step == 0 and batch_idx == 0
        if first and isinstance(self.scale_factor, Tensor) and self.scale_factor == 1.0:
            self.scale_factor.copy_(1.0 / self.latents(batch).std())

    def _log(self, split: str, terms: Mapping[str, Tensor], batch: Any, end: str = "") -> None:
        size = len(batch["sample"] if "sample" in batch else batch[self.cond_stage_key])
        named = {f"{split}/{k}{end}": v for k, v in terms.items()}
        # Each process sees a part of the validation images; their mean is reported.
        self.log_dict(named, batch_size=size, sync_dist=split != "train")

    def training_step(self, batch: Mapping[str, Any], _batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        result = self.shared_step(batch)
        self._log("train", result.terms, batch)
        return result.loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], _batch_idx: int) -> None:
        """Log the loss of a validation batch, with the present and with the averaged weights."""
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

    @property
    def averaged_network(self) -> nn.Module:
        """The U-Net."""
        return self.model

    @property
    def trains_model(self) -> bool:
        """Whether the U-Net is trained, not the words alone."""
        return self.embedding_manager is None or self.unfreeze_model

    # -- optimizer --------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the weights that training moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """Return AdamW with torch's defaults (weight decay 0.01), or the words' own optimizer."""
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
        return self.scheduled(optimizer)

    # -- checkpoints of a run ---------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what training moves; the frozen model has a file of its own."""
        kept = {name for name, p in self.named_parameters() if p.requires_grad} | {"scale_factor"}
        prefixes: tuple[str, ...] = ("embedding_manager.",)
        if self.trains_model:
            prefixes += ("model_ema.",)
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in kept or name.startswith(prefixes)
        }
