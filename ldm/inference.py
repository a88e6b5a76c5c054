"""Generate images from prompts. Command lines, evaluation and image logging all use it.

In three lines:

    model = load_model("miniature")  # or a file, a folder of diffusers, a Hub name
    load_words(model, "embeddings.pt")
    images = generate(model, ["a photo of *", "a painting of *"], Sampling(steps=50))

Image i of a call starts from the noise of seed + i. Neither the batch size nor the other prompts
change it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ldm.checkpoint.hub import locate_base
from ldm.checkpoint.loading import load_model as load_base
from ldm.checkpoint.weight_delta import apply_weight_delta, check_weight_delta
from ldm.image_io import to_pil
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.few_steps import DPMSolverSampler, EulerAncestralSampler, EulerSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import (
    Conditioning,
    DiffusionModel,
    NoiseSource,
    Sampler,
    map_conditioning,
)
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.randomness import Purpose, normal
from ldm.sampling import Sampling
from ldm.util import UserError, at_least
from ldm.words.loading import check_prompts, load_words
from ldm.words.prompts import count_chunks, encode_weighted

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

__all__ = ["GeneratedImage", "Sampling", "generate", "load_model", "load_words", "seeded_noise"]

log = logging.getLogger(__name__)

# By the names of `ldm.sampling.SAMPLERS`.
SAMPLERS: Mapping[str, type[Sampler]] = {
    "ddim": DDIMSampler,
    "plms": PLMSSampler,
    "dpmpp_2m": DPMSolverSampler,
    "euler": EulerSampler,
    "euler_a": EulerAncestralSampler,
}

# A generous guess of the memory that one image takes on a GPU, in bytes for each of its pixels: the
# decoder's last level holds 128 channels of 4 bytes, about a dozen times. A batch that turns out
# too large is halved, so a wrong guess costs one failed batch.
BYTES_A_PIXEL = 8 * 1024
LARGEST_BATCH = 64
LARGEST_BATCH_ON_CPU = 32


@dataclass(frozen=True)
class GeneratedImage:
    """One generated image.

    Attributes:
        image: RGB.
        prompt: the text it was generated from.
        seed: `generate(model, prompt, Sampling(seed=seed, ...))` makes the same image.
        settings: all settings that decided the image, as plain values; `Sampling.from_metadata`
            reads them.
    """

    image: Image.Image
    prompt: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)


def load_model(
    base: DictConfig | Mapping[str, Any] | str | Path | None,
    checkpoint: str | Path | None = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    weight_delta: str | Path | None = None,
) -> LatentDiffusion:
    """Build a model and load its weights, in evaluation mode (`ldm.checkpoint.loading`).

    `load_model(X)` needs nothing else: the configuration is that beside the weights, or that of the
    family that the weights belong to. `load_model(config, X)` takes another configuration.

    Args:
        base: X, if no `checkpoint` is given: a `.ckpt` or `.safetensors` file, a folder of
            diffusers, a model's folder such as "miniature", or a Hub name such as
            "CompVis/ldm-text2im-large-256" or "hf:NAME@REVISION". With a `checkpoint`: a
            configuration with `model`, the path of its YAML file, or None for its own.
        checkpoint: X; None builds the configuration's model with new weights.
        device: where the model goes.
        dtype: the weights' type; float32 by default. Learned words stay in float32.
        weight_delta: file that tuning wrote, `weight_delta.safetensors`.

    Raises:
        UserError: files missing, unreadable, or of another architecture; a base that is not
            supported; a Hub name that cannot be had; a weight delta of another base. The last is
            checked before weights are read.
    """
    config: DictConfig | Mapping[str, Any] | str | Path | None = base
    if checkpoint == "":
        if not isinstance(base, str | Path):
            raise ValueError("give a file, folder or Hub name, or a configuration and one of these")
        config, checkpoint = None, locate_base(base)
    if weight_delta is not None:
        check_weight_delta(weight_delta, checkpoint)
    model = load_base(config, checkpoint, device, dtype)
    if weight_delta is not None:
        apply_weight_delta(model, weight_delta, checkpoint)
    return model


def make_sampler(model: DiffusionModel, sampling: Sampling) -> Sampler:
    """Return the sampler that the settings name."""
    kind = SAMPLERS[sampling.sampler]
    return kind(model, sampling.karras) if issubclass(kind, EulerSampler) else kind(model)


def seeded_noise(seeds: Sequence[int]) -> NoiseSource:
    """Noise in which sample i depends on seeds[i] alone, float32 on the CPU."""

    def source(number: int, shape: Sequence[int]) -> Tensor:
        purpose = Purpose.INITIAL_NOISE if number == 0 else Purpose.STEP_NOISE
        return torch.cat([normal(seed, [number], shape[1:], purpose) for seed in seeds])

    return source


@contextmanager
def generating(model: LatentDiffusion, precision: str = "full") -> Iterator[None]:
    """Return a context to generate in: evaluation mode, averaged weights, no gradients."""
    training, device = model.training, model.device.type
    half = torch.bfloat16 if device == "cpu" else torch.float16
    casts = nullcontext() if precision == "full" else torch.autocast(device, dtype=half)
    model.eval()
    try:
        with torch.no_grad(), model.ema_scope(), casts:
            yield
    finally:
        model.train(training)


def generate(
    model: LatentDiffusion,
    prompts: Sequence[str] | str,
    sampling: Sampling | None = None,
    *,
    samples_per_prompt: int = 1,
    restart_seeds: bool = False,
    keep: Callable[[Sequence[GeneratedImage]], object] | None = None,
    progress: bool = False,
) -> list[GeneratedImage]:
    """Generate images from prompts.

    Args:
        model: with its words loaded.
        prompts: texts, which may name loaded words.
        sampling: sampler, steps, guidance scale, size, seed, …; `Sampling()` by default.
        samples_per_prompt: images for each prompt; they stand together in the result.
        restart_seeds: start each prompt at the first seed, so that prompts share their noises.
        keep: called with each batch as soon as it is made, for example to save it.
        progress: show a bar for each batch.

    Raises:
        UserError: a prompt that would lose a word it names; a size that the model cannot generate;
            a batch that does not fit into memory; undefined numbers.
        ValueError: no prompts, or `samples_per_prompt` below 1.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("prompts must hold at least one text, got none")
    at_least(1, samples_per_prompt=samples_per_prompt)
    sampling = sampling or Sampling()
    height, width = image_size(model, sampling)
    sampling = replace(sampling, height=height, width=width)
    check_texts(model, sampling, texts)
    jobs = [
        (text, sampling.seed + j + (0 if restart_seeds else i * samples_per_prompt))
        for i, text in enumerate(texts)
        for j in range(samples_per_prompt)
    ]
    images: list[GeneratedImage] = []
    size = sampling.batch_size or fitting_batch(model)
    with generating(model, sampling.precision):
        negative = negative_conditioning(model, sampling, 1, texts)
        while len(images) < len(jobs):
            batch = jobs[len(images) : len(images) + size]
            try:
                made = _generate_batch(model, batch, sampling, negative, progress)
            except torch.OutOfMemoryError as error:
                size = _smaller(len(batch), sampling, error)
                continue
            if keep is not None:
                keep(made)
            images += made
    return images


def check_texts(model: LatentDiffusion, sampling: Sampling, prompts: Sequence[str]) -> None:
    """Raise UserError for a prompt that would lose a word. Weighted prompts have no end."""
    if not sampling.weighted_prompts:
        check_prompts(model, [*prompts, sampling.negative_prompt])


def negative_conditioning(
    model: LatentDiffusion, sampling: Sampling, b: int, prompts: Sequence[str] = ()
) -> Conditioning | None:
    """Return the negative prompt's conditioning for b samples; None without guidance.

    With weighted prompts it is as long as the longest of `prompts` needs. Without a negative
    prompt it is the empty text; for SDXL it is zeros (`FrozenXLEmbedder.without_text`).
    """
    if sampling.scale == 1:
        return None
    negative = _conditioning(model, [sampling.negative_prompt] * b, sampling, prompts)
    without_text = getattr(model.cond_stage_model, "without_text", None)
    if without_text is not None and not sampling.negative_prompt:
        return without_text(negative)
    return negative


def _conditioning(
    model: LatentDiffusion,
    texts: Sequence[str],
    sampling: Sampling,
    prompts: Sequence[str] = (),
    negative: Conditioning | None = None,
) -> Conditioning:
    """Encode texts for the settings' images, as long as `prompts` need or as `negative` is."""
    options: dict[str, Any] = {"size": image_size(model, sampling)}
    if sampling.clip_skip != 1:
        options["clip_skip"] = sampling.clip_skip
    if not sampling.weighted_prompts:
        return model.get_learned_conditioning(list(texts), **options)
    if negative is None:
        count = count_chunks(model, [*texts, *prompts])
    else:
        context = negative["c_crossattn"][0] if isinstance(negative, Mapping) else negative
        count = context.shape[1] // model.cond_stage_model.max_length
    return encode_weighted(model, texts, count, **options)


def sample_latents(
    model: LatentDiffusion,
    sampling: Sampling,
    prompts: Sequence[str],
    seeds: Sequence[int],
    shape: Sequence[int],
    negative: Conditioning | None,
    **more: Any,
) -> Tensor:
    """Run the sampler of the settings: latents [b, c, h, w], not yet decoded.

    Args:
        model: generates.
        sampling: the settings.
        prompts: b texts.
        seeds: b seeds of the noise.
        shape: [c, h, w] of a latent.
        negative: the negative prompt's conditioning for b samples; None without guidance.
        more: further arguments of `Sampler.sample`.
    """
    latents, _ = make_sampler(model, sampling).sample(
        S=sampling.steps,
        batch_size=len(seeds),
        shape=shape,
        conditioning=_conditioning(model, prompts, sampling, negative=negative),
        eta=sampling.eta,
        unconditional_guidance_scale=sampling.scale,
        unconditional_conditioning=negative,
        noise_source=seeded_noise(seeds),
        **more,
    )
    return latents


def _generate_batch(
    model: LatentDiffusion,
    jobs: Sequence[tuple[str, int]],
    sampling: Sampling,
    negative: Conditioning | None,
    progress: bool,
) -> list[GeneratedImage]:
    """Generate one image for each (prompt, seed); `negative` is for one sample."""
    texts, seeds = zip(*jobs, strict=True)
    shape = latent_shape(model, sampling.height, sampling.width)
    unconditional = map_conditioning(lambda c: c.expand(len(jobs), *c.shape[1:]), negative)
    latents = sample_latents(model, sampling, texts, seeds, shape, unconditional, verbose=progress)
    decoded = _finite(model.decode_first_stage(latents), sampling.precision)
    return [
        GeneratedImage(
            to_pil(image), text, seed, {"prompt": text, **sampling.metadata(), "seed": seed}
        )
        for image, (text, seed) in zip(decoded, jobs, strict=True)
    ]


def encode_mean(model: LatentDiffusion, images: Tensor) -> Tensor:
    """Return the scaled latents [b, c, h, w] of images, each the mean of its posterior."""
    posterior = model.encode_first_stage(images)
    if isinstance(posterior, DiagonalGaussianDistribution):
        posterior = posterior.mode()
    return model.get_first_stage_encoding(posterior)


def fitting_batch(model: LatentDiffusion) -> int:
    """Return how many images a model's device holds at a time, at most 64."""
    if model.device.type != "cuda":
        return LARGEST_BATCH_ON_CPU
    pixels = (max(model.latent_size) * model.first_stage_downsampling) ** 2
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(LARGEST_BATCH, free // (BYTES_A_PIXEL * pixels)))


def _smaller(size: int, sampling: Sampling, error: Exception) -> int:
    """Return half a batch that was too large, unless it is the user's own."""
    if sampling.batch_size or size == 1:
        advice = "lower the batch size" if size > 1 else "use precision autocast"
        raise UserError(f"out of memory for {size} images at a time: {advice}") from error
    log.info("out of memory for %d images at a time: trying %d", size, size // 2)
    return size // 2


def latent_shape(
    model: LatentDiffusion, height: int | None, width: int | None
) -> tuple[int, int, int]:
    """Return the latent's [c, h, w] for an image of a size in pixels; None is the model's own.

    Raises:
        UserError: a side that the autoencoder and the U-Net cannot halve as often as they do.
    """
    own_height, own_width = model.latent_size
    factor, multiple = model.first_stage_downsampling, side_multiple(model)
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < multiple or side % multiple):
            raise UserError(f"{name} must be a multiple of {multiple} for this model, got {side}")
    return (
        model.channels,
        height // factor if height is not None else own_height,
        width // factor if width is not None else own_width,
    )


def image_size(model: LatentDiffusion, sampling: Sampling) -> tuple[int, int]:
    """Return the settings' height and width in pixels, as the model has them if not given."""
    _, height, width = latent_shape(model, sampling.height, sampling.width)
    factor = model.first_stage_downsampling
    return height * factor, width * factor


def side_multiple(model: LatentDiffusion) -> int:
    """Return the number of pixels of which the sides of a model's images must be multiples."""
    blocks = getattr(model.model.diffusion_model, "input_blocks", ())
    halvings = sum(any(isinstance(m, Downsample) for m in block.modules()) for block in blocks)
    multiple: int = model.first_stage_downsampling * 2**halvings
    return multiple


def _finite(images: Tensor, precision: str) -> Tensor:
    if not images.isfinite().all():
        advice = "the weights or the word are not usable with these settings"
        if precision != "full":
            advice = "half precision may be the cause: try --precision full"
        raise UserError(f"the model gave undefined numbers: {advice}")
    return images.float()
