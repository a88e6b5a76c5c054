"""The sides of the benchmark, which do the same work, and the sizes of their models.

Weights are random, because time does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.inference import Sampling, generate
from ldm.resources import ROOT
from ldm.util import UserError, instantiate_from_config

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

TOKENIZER = ROOT / "models/miniature/tokenizer"
# Random weights are copies of one block of this many numbers.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Size:
    """A model and an amount of work.

    Attributes:
        name: as it is printed.
        config: YAML file of a word's run; `overrides` are entries of it.
        batch: images in a training step.
        images, steps: images generated at once, and steps of the sampler.
    """

    name: str
    config: Path
    batch: int
    images: int
    steps: int
    overrides: tuple[str, ...] = ()

    def read(self) -> DictConfig:
        """Return the model's section of the configuration, with the miniature's tokenizer.

        Raises UserError for a file that is not there, or that learns no word.
        """
        if not self.config.is_file():
            raise UserError(f"--config {self.config}: no such file")
        config = OmegaConf.merge(
            OmegaConf.load(self.config), OmegaConf.from_dotlist(list(self.overrides))
        )
        personal = OmegaConf.select(config, "model.params.personalization_config")
        if personal is None:
            raise UserError(f"{self.config} learns no word: it has no personalization_config")
        personal.params.initializer_words = ["star"]
        config.model.params.cond_stage_config.params.tokenizer = str(TOKENIZER)
        model: DictConfig = config.model
        return model


SIZES = {
    "miniature": Size("miniature", ROOT / "configs/miniature/paper.yaml", 8, 16, 20),
    "1.4B": Size("1.4B", ROOT / "configs/finetune.yaml", 1, 1, 4),
}


@dataclass(frozen=True)
class Side:
    """One way to do the work.

    Attributes:
        name: as it is printed.
        peer: diffusers' parts, driven as its `textual_inversion.py` drives them.
        half: networks in bfloat16.
        cached: latents from kept posteriors, not from encoding the images at every step.
        fused: attention in one kernel, not as softmax(q kᵀ) v with the matrix in memory.
        recomputed: activations are computed again in the backward pass.
        channels_last: the U-Net's convolutions have the channels of a pixel side by side in memory.
    """

    name: str
    peer: bool = False
    half: bool = False
    cached: bool = True
    fused: bool = True
    recomputed: bool = False
    channels_last: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the networks' weights."""
        return torch.bfloat16 if self.half else torch.float32


SIDES = {
    side.name: side
    for side in (
        Side("ours, float32"),
        Side("ours, bfloat16", half=True),
        Side("diffusers, float32", peer=True),
        Side("diffusers, bfloat16", peer=True, half=True),
        Side("the original's algorithm", cached=False, fused=False),
        Side("ours, float32, activations recomputed", recomputed=True),
        Side("ours, float32, channels last", channels_last=True),
        Side("ours, bfloat16, channels last", half=True, channels_last=True),
    )
}


def random_weights(model: nn.Module, device: str, dtype: torch.dtype, keep: str = "-") -> nn.Module:
    """Give a model on the meta device small random weights.

    Buffers that have values, and modules whose names begin with `keep`, stay as they are.
    """
    block = 0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    block = block.to(device, dtype)
    for name, module in model.named_modules():
        if name.startswith(keep):
            continue
        for key, weight in module.named_parameters(recurse=False):
            times = -(-weight.numel() // BLOCK)
            filled = block.repeat(times)[: weight.numel()].clone().view(weight.shape)
            module._parameters[key] = nn.Parameter(filled, weight.requires_grad)
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[key] = torch.zeros_like(buffer, device=device)
    return model.to(device)


def build(size: Size, side: Side, device: str) -> LatentDiffusion:
    """Build this project's model with random weights, ready to learn a word."""
    with torch.device("meta"):
        model: LatentDiffusion = instantiate_from_config(size.read())
    random_weights(model, device, side.dtype, keep="embedding_manager")
    assert model.embedding_manager is not None
    model.embedding_manager.initialize()
    for module in model.modules():
        if isinstance(getattr(module, "use_checkpoint", None), bool):
            setattr(module, "use_checkpoint", side.recomputed)  # noqa: B010
    if side.channels_last:
        model.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.learning_rate, model.seed = 1e-3, 0
    return model.train()


def applied(side: Side) -> AbstractContextManager[None]:
    """Return a context in which attention is computed as on a side."""
    return nullcontext() if side.fused else sdpa_kernel(SDPBackend.MATH)


def make_batch(model: LatentDiffusion, count: int) -> dict[str, Any]:
    """Return a batch of noise images under one caption, as it is before `batch_noise`."""
    assert isinstance(model.image_size, int)
    assert model.embedding_manager is not None
    side = model.image_size * model.first_stage_downsampling
    word = model.embedding_manager.placeholders[0]
    images = torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(0))
    return {
        "image": images * 2 - 1,
        "caption": [f"a photo of a {word}"] * count,
        "sample": torch.arange(count),
    }


def training_step(model: LatentDiffusion, side: Side, count: int) -> Callable[[], float]:
    """Return a function that takes one optimizer step of the word and returns the loss.

    The step includes sampling its random numbers.
    """
    assert model.embedding_manager is not None
    batch, noise = make_batch(model, count), model.batch_noise()
    if side.cached:
        posterior: Any = model.encode_first_stage(model.images(batch))
        batch["moments"] = posterior.parameters.float().cpu()
    optimizer = torch.optim.AdamW(model.embedding_manager.embedding_parameters(), lr=1e-3)

    def step() -> float:
        loss = model.shared_step(batch | noise(batch)).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def generation(model: LatentDiffusion, size: Size) -> Callable[[], object]:
    """Return a function that generates images of one prompt with guidance, by DDIM."""
    assert model.embedding_manager is not None
    prompt = f"a photo of a {model.embedding_manager.placeholders[0]}"
    sampling = Sampling(steps=size.steps, scale=5.0, batch_size=size.images)
    return lambda: generate(model, prompt, sampling, samples_per_prompt=size.images)


@dataclass(frozen=True)
class Times:
    """Seconds of each repetition, on the clock and of all threads together.

    Other programs on the machine hardly change the latter.
    """

    wall: list[float]
    cpu: list[float]


def timed(work: Callable[[], object], repeat: int, device: str) -> Times:
    """Return the times of repetitions of some work."""
    times = Times([], [])
    for _ in range(repeat):
        synchronize(device)
        start, cpu = time.perf_counter(), time.process_time()
        work()
        synchronize(device)
        times.wall.append(time.perf_counter() - start)
        times.cpu.append(time.process_time() - cpu)
    return times


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
