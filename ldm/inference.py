"""Drawing: prompts in, images out. Command lines, evaluation and image logging all use it.

In three lines:

    model = load_model("models/miniature/config.yaml", "models/miniature/model.safetensors")
    load_words(model, "embeddings.pt")
    images = generate(model, ["a photo of *", "a painting of *"])

Image i of a call starts from the noise of seed + i and nothing else, so neither the batch size
nor the other prompts change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ldm.checkpoint.loading import load_model as load_base
from ldm.checkpoint.weight_delta import apply_difference, check_difference
from ldm.image_io import to_pil
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import NoiseSource, Sampler
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.randomness import Purpose, normal
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager

__all__ = ["GeneratedImage", "generate", "load_model", "load_words", "seeded_noise"]

SAMPLERS: Mapping[str, type[Sampler]] = {"ddim": DDIMSampler, "plms": PLMSSampler}
PRECISIONS = ("full", "autocast")


@dataclass(frozen=True)
class GeneratedImage:
    """One drawn image.

    Attributes:
        image: RGB.
        prompt: the text it was drawn from.
        seed: draws it alone: `generate(model, [prompt], seed=seed, ...)`.
        settings: everything else that decided it, as plain values.
    """

    image: Image.Image
    prompt: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)


def load_model(
    config: DictConfig | Mapping[str, Any] | str | Path,
    checkpoint: str | Path | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    difference: str | Path | None = None,
) -> Any:
    """Build a model and load its weights, in evaluation mode (`ldm.checkpoint.loading`).

    Args:
        config: a configuration with `model`, or the path of its YAML file.
        checkpoint: the weights' file; None builds the model with new weights.
        device: where the model goes.
        dtype: the weights' type; float32 by default. Learned words stay in float32.
        difference: what tuning moved the weights by, as `difference.safetensors` has it.

    Raises:
        UserError: files missing, unreadable, or of another architecture; a difference to another
            base. Of these the last is seen before weights are read.
    """
    if difference is not None:
        check_difference(difference, checkpoint)
    model = load_base(config, checkpoint, device, dtype)
    if difference is not None:
        apply_difference(model, difference, checkpoint)
    return model


def load_words(
    model: Any, *paths: str | Path, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Load learned words from embedding files; the files decide the number of vectors.

    Args:
        model: a `LatentDiffusion`.
        paths: embedding files of any form that `ldm.words.files` reads.
        rename: stored placeholder → placeholder to use, for the files that hold it.

    Returns:
        The placeholders that prompts may now use.

    Raises:
        UserError: a file is unreadable or for another text encoder, or a word is taken.
    """
    if model.embedding_manager is None:
        model.embedding_manager = EmbeddingManager(model.cond_stage_model, placeholder_strings=[])
    words: list[str] = []
    for path in paths:
        words += model.embedding_manager.load(path, rename=rename)
    return words


def seeded_noise(seeds: Sequence[int]) -> NoiseSource:
    """Noise in which sample i depends on seeds[i] alone, float32 on the CPU."""

    def source(draw: int, shape: Sequence[int]) -> Tensor:
        purpose = Purpose.INITIAL_NOISE if draw == 0 else Purpose.STEP_NOISE
        return torch.cat([normal(seed, [draw], shape[1:], purpose) for seed in seeds])

    return source


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[str] | str,
    *,
    samples_per_prompt: int = 1,
    steps: int = 50,
    scale: float = 5.0,
    eta: float = 0.0,
    seed: int = 42,
    height: int | None = None,
    width: int | None = None,
    sampler: str = "ddim",
    negative_prompt: str = "",
    batch_size: int = 4,
    precision: str = "full",
    restart_seeds: bool = False,
    progress: bool = False,
) -> list[GeneratedImage]:
    """Draw images from prompts.

    Args:
        model: a `LatentDiffusion`, with its words loaded.
        prompts: texts, which may name loaded words.
        samples_per_prompt: images for each; a prompt's images stand together in the result.
        steps: of the sampler, 1..1000.
        scale: of classifier-free guidance; 1 is none.
        eta: 0 is deterministic, 1 adds as much noise as DDPM; DDIM only.
        seed: of the first image; image i has seed + i.
        height: in pixels; that of the model's training by default.
        width: likewise.
        sampler: "ddim" or "plms".
        negative_prompt: what guidance leads away from, in place of the empty text.
        batch_size: images drawn at a time; does not change them.
        precision: "full", or "autocast" to half precision (bfloat16 on a CPU).
        restart_seeds: begin each prompt at `seed`, so that prompts share their noises.
        progress: show a bar for each batch.

    Raises:
        UserError: a prompt that would lose a word it names; a size the model cannot draw.
        ValueError: another argument out of range.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    _check(texts, samples_per_prompt, steps, scale, eta, seed, sampler, batch_size, precision)
    shape = latent_shape(model, height, width)
    if model.embedding_manager is not None:
        model.embedding_manager.check_prompts([*texts, negative_prompt])
    settings = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "scale": scale,
        "eta": eta,
        "sampler": sampler,
        "height": shape[1] * model.first_stage_downsampling,
        "width": shape[2] * model.first_stage_downsampling,
        "precision": precision,
    }
    jobs = [
        (text, seed + j + (0 if restart_seeds else i * samples_per_prompt))
        for i, text in enumerate(texts)
        for j in range(samples_per_prompt)
    ]
    images: list[Image.Image] = []
    training = model.training
    model.eval()
    try:
        with model.ema_scope(), _precision(model.device, precision):
            negative = model.get_learned_conditioning([negative_prompt]) if scale != 1 else None
            for start in range(0, len(jobs), batch_size):
                batch = jobs[start : start + batch_size]
                conditioning = model.get_learned_conditioning([text for text, _ in batch])
                latents, _ = SAMPLERS[sampler](model).sample(
                    S=steps,
                    batch_size=len(batch),
                    shape=shape,
                    conditioning=conditioning,
                    eta=eta,
                    unconditional_guidance_scale=scale,
                    unconditional_conditioning=_repeat(negative, len(batch)),
                    noise_source=seeded_noise([s for _, s in batch]),
                    verbose=progress,
                )
                pictures = _finite(model.decode_first_stage(latents))
                images += [to_pil(picture) for picture in pictures]
    finally:
        model.train(training)
    return [
        GeneratedImage(image, text, s, {"prompt": text, "seed": s, **settings})
        for image, (text, s) in zip(images, jobs, strict=True)
    ]


def latent_shape(model: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Return the latent's [c, h, w] for an image of a size in pixels; None is the model's own.

    Raises:
        UserError: a side that the autoencoder and the U-Net cannot halve as often as they do.
    """
    own = model.image_size
    own_height, own_width = (own, own) if isinstance(own, int) else own
    factor, multiple = model.first_stage_downsampling, side_multiple(model)
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < multiple or side % multiple):
            raise UserError(f"{name} must be a multiple of {multiple} for this model, got {side}")
    return (
        model.channels,
        height // factor if height is not None else own_height,
        width // factor if width is not None else own_width,
    )


def side_multiple(model: Any) -> int:
    """Return what the sides of a model's images must be multiples of, in pixels."""
    blocks = getattr(model.model.diffusion_model, "input_blocks", ())
    halvings = sum(any(isinstance(m, Downsample) for m in block.modules()) for block in blocks)
    multiple: int = model.first_stage_downsampling * 2**halvings
    return multiple


def _check(
    prompts: Sequence[str],
    samples_per_prompt: int,
    steps: int,
    scale: float,
    eta: float,
    seed: int,
    sampler: str,
    batch_size: int,
    precision: str,
) -> None:
    if not prompts:
        raise ValueError("prompts must hold at least one text, got none")
    for name, value in (("samples_per_prompt", samples_per_prompt), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps must lie in 1..1000, got {steps}")
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, got {scale}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler == "plms" and eta != 0:
        raise ValueError(f"eta must be 0 with plms, got {eta}; use ddim for eta > 0")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def _precision(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "full":
        return nullcontext()
    half = torch.bfloat16 if device.type == "cpu" else torch.float16
    return torch.autocast(device.type, dtype=half)


def _repeat(conditioning: Tensor | None, batch_size: int) -> Tensor | None:
    """[1, n, d] → [b, n, d]."""
    return None if conditioning is None else conditioning.expand(batch_size, -1, -1)


def _finite(pictures: Tensor) -> Tensor:
    if not pictures.isfinite().all():
        raise UserError("half precision gave undefined numbers: draw with --precision full")
    return pictures.float()
