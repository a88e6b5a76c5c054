"""diffusers' parts of the same shapes, used as by its own training script and pipeline.

The step is that of `examples/textual_inversion/textual_inversion.py`. It encodes the images,
samples noise and timesteps, and moves the whole token table. Then it restores all rows but the
word's. With `--mixed_precision bf16` U-Net and autoencoder are cast, and the text encoder runs in
autocast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from ldm.experiments.benchmark.sides import TOKENIZER, Side, Size, random_weights
from ldm.util import UserError

PROMPT = "a photo of a *"


@dataclass(frozen=True)
class Parts:
    """diffusers' U-Net, autoencoder, text encoder and tokenizer."""

    unet: Any
    vae: Any
    text: Any
    tokenizer: Any


def _diffusers() -> Any:
    """Return the library, which has no types; UserError where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise UserError(f"comparing needs diffusers ({error}): pip install diffusers") from error


def _unet(params: DictConfig) -> Any:
    diffusers = _diffusers()
    attends = [2**i in params.attention_resolutions for i in range(len(params.channel_mult))]
    return diffusers.UNet2DConditionModel(
        sample_size=params.image_size,
        in_channels=params.in_channels,
        out_channels=params.out_channels,
        block_out_channels=tuple(params.model_channels * mult for mult in params.channel_mult),
        layers_per_block=params.num_res_blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        cross_attention_dim=params.context_dim,
        attention_head_dim=params.num_heads,  # diffusers' name of the number of heads
        norm_num_groups=params.get("num_groups", 32),
    )


def _vae(params: DictConfig) -> Any:
    diffusers = _diffusers()
    networks = params.ddconfig
    levels = len(networks.ch_mult)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(networks.ch * mult for mult in networks.ch_mult),
        layers_per_block=networks.num_res_blocks,
        latent_channels=networks.z_channels,
        norm_num_groups=networks.get("num_groups", 32),
    )


def _text(params: DictConfig) -> Any:
    bert: Any = importlib.import_module(
        "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion"
    )
    return bert.LDMBertModel(
        bert.LDMBertConfig(
            vocab_size=params.get("vocab_size", 30522),
            max_position_embeddings=params.get("max_seq_len", 77),
            encoder_layers=params.n_layer,
            encoder_ffn_dim=4 * params.n_embed,
            encoder_attention_heads=params.get("heads", 8),
            head_dim=params.get("dim_head", 64),
            d_model=params.n_embed,
            dropout=0.0,
        )
    )


def _tokenizer(length: int) -> Any:
    """Return the miniature's tokenizer; it cuts texts to `length` and ignores the pipeline's 77."""
    tokenizers: Any = importlib.import_module("transformers")

    class Cutting(tokenizers.BertTokenizerFast):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            return super().__call__(*args, **{**options, "max_length": length})

    return Cutting.from_pretrained(str(TOKENIZER))


def build(size: Size, side: Side, device: str) -> Parts:
    """Build the parts with random weights; UserError where diffusers is not installed."""
    _diffusers().utils.logging.disable_progress_bar()
    params = size.read().params
    with torch.device("meta"):
        unet = _unet(params.unet_config.params)
        vae = _vae(params.first_stage_config.params)
        text = _text(params.cond_stage_config.params)
    for part in (unet, vae, text):
        # Autocast casts the text encoder at each use, as Accelerate does it.
        kind = torch.float32 if part is text else side.dtype
        random_weights(part, device, kind).requires_grad_(False)
    length = params.cond_stage_config.params.get("max_seq_len", 77)
    return Parts(unet, vae, text.train(), _tokenizer(length))


def training_step(parts: Parts, side: Side, count: int, device: str) -> Callable[[], float]:
    """Return a function that takes one optimizer step of the word and returns the loss."""
    scheduler = _diffusers().DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    table = parts.text.get_input_embeddings()
    table.requires_grad_(True)
    optimizer = torch.optim.AdamW(table.parameters(), lr=5e-4, weight_decay=1e-2)
    original = table.weight.detach().clone()
    pixels = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    images = torch.rand(count, 3, pixels, pixels, device=device, dtype=side.dtype) * 2 - 1
    ids = parts.tokenizer([PROMPT] * count, padding="max_length", return_tensors="pt").input_ids
    ids = ids.to(device)
    others = torch.ones(len(table.weight), dtype=torch.bool, device=device)
    others[parts.tokenizer.convert_tokens_to_ids("*")] = False

    def step() -> float:
        with torch.no_grad():
            latents = parts.vae.encode(images).latent_dist.sample() * 0.18215
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (count,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        half = torch.autocast(torch.device(device).type, torch.bfloat16)
        with half if side.half else nullcontext():
            hidden = parts.text(ids)[0].to(side.dtype)
        predicted = parts.unet(noisy, timesteps, hidden).sample
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table.weight[others] = original[others]
        return float(loss.detach())

    return step


def generation(parts: Parts, size: Size) -> Callable[[], object]:
    """Return a function that generates images by `LDMTextToImagePipeline`, guided, by DDIM."""
    diffusers = _diffusers()
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    pipeline = diffusers.LDMTextToImagePipeline(
        vqvae=parts.vae,
        bert=parts.text.eval(),
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = [PROMPT] * size.images
    return lambda: pipeline(prompts, num_inference_steps=size.steps, guidance_scale=5.0)
