"""Images of a run's progress: inputs, reconstructions and generated images.

`ImageLogger` and its parameters are the original's.
"""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from ldm.image_io import pil_grid, to_pil, write_image
from ldm.inference import encode_mean, generate
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling import Sampling
from ldm.training.callbacks import ends_step
from ldm.util import UserError, at_least

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "validation"}
COLUMNS = 4
# Guidance of `samples_scaled`, the paper's in evaluation.
GUIDANCE = 5.0
# Smallest side, in pixels, at which a caption can be read.
CAPTION_SIDE = 192
# Of the original's `log_images_kwargs`, sampling settings and their names in `Sampling`.
OPTIONS = {"ddim_steps": "steps", "ddim_eta": "eta", "unconditional_guidance_scale": "scale"}


def write_caption(text: str, side: int) -> Image.Image:
    """Return a white square of `side` pixels with a text on it."""
    side = max(side, CAPTION_SIDE)
    image = Image.new("RGB", (side, side), "white")
    lines = "\n".join(textwrap.wrap(text, 24))
    ImageDraw.Draw(image).text((4, 4), lines, "black", ImageFont.load_default(side // 16))
    return image


@contextlib.contextmanager
def quietly(module: LightningModule) -> Iterator[None]:
    """Return a context to generate in; it restores the model's mode and the random state."""
    was_training = module.training
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            module.train(was_training)


class ImageLogger(Callback):
    """Save grids as `images/{train,val}/<key>_gs-…_e-…_b-….jpg`, and to TensorBoard.

    The images and captions are the same each time, the first of each set, and so is the noise:
    grids can be compared. Keys: `inputs`, `reconstruction`, and of a diffusion model
    `conditioning`, `samples` and `samples_scaled` (guided). Only the first process generates.

    Args:
        batch_frequency: optimizer steps between two grids.
        max_images: images in a grid.
        clamp, rescale: accepted for old configurations; images are always brought to 0…255.
        increase_log_steps: generate at steps 1, 2, 4, 8 … below `batch_frequency` too.
        disabled: generate nothing.
        log_on_batch_idx: count micro-batches instead of steps.
        log_first_step: generate before the first step too.
        log_images_kwargs: the original's options: `ddim_steps`, `ddim_eta`, `N`,
            `unconditional_guidance_scale`; others are left out, with a note.
        ddim_steps: steps of the DDIM sampler.
        ddim_eta: noise that the sampler adds; 0 adds none.
        guidance: guidance scale.
        seed: seed of the images' noise.
        splits: which of "train" and "val" to generate.

    Raises:
        ValueError: a value out of range; the message names the parameter.
    """

    def __init__(
        self,
        batch_frequency: int = 500,
        max_images: int = 4,
        clamp: bool = True,
        increase_log_steps: bool = False,
        rescale: bool = True,
        disabled: bool = False,
        log_on_batch_idx: bool = False,
        log_first_step: bool = False,
        log_images_kwargs: Mapping[str, Any] | None = None,
        ddim_steps: int = 25,
        ddim_eta: float = 0.0,
        guidance: float = GUIDANCE,
        seed: int = 23,
        splits: Sequence[str] = ("train", "val"),
    ) -> None:
        at_least(1, batch_frequency=batch_frequency)
        if not set(splits) <= set(SPLITS):
            raise ValueError(f"splits may hold {list(SPLITS)}, got {list(splits)}")
        self.clamp, self.rescale = clamp, rescale
        self.batch_frequency = batch_frequency
        self.disabled, self.log_on_batch_idx = disabled, log_on_batch_idx
        self.log_first_step, self.splits = log_first_step, tuple(splits)
        self.folder = Path("images")
        given: dict[str, Any] = {"steps": ddim_steps, "eta": ddim_eta, "scale": guidance}
        keys = {"steps": "ddim_steps", "eta": "ddim_eta", "scale": "guidance", "N": "max_images"}
        for name, value in (log_images_kwargs or {}).items():
            if name not in (*OPTIONS, "N"):
                log.info(f"image_logger.params.log_images_kwargs.{name} is left out")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"log_images_kwargs.{name} must be a number, got {value!r}")
            given[OPTIONS.get(name, name)] = value
            keys[OPTIONS.get(name, name)] = f"log_images_kwargs.{name}"
        self.max_images = int(given.pop("N", max_images))
        at_least(1, **{keys["N"]: self.max_images})
        try:
            self.sampling = Sampling(seed=seed, **given)
        except UserError as error:  # it begins with the name in `Sampling`
            name, _, problem = str(error).partition(" ")
            raise ValueError(f"{keys.get(name, name)} {problem}") from error
        doublings = range((batch_frequency - 1).bit_length() if increase_log_steps else 0)
        self.early = {2**n for n in doublings}
        self.generated: dict[str, int] = {}

    def due(self, count: int) -> bool:
        """Tell whether images are to be generated after `count` steps."""
        return count > 0 and (count % self.batch_frequency == 0 or count in self.early)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers and trainer.loggers[0].save_dir:
            self.folder = Path(trainer.loggers[0].save_dir) / "images"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate with the untrained word, if `log_first_step` asks for it."""
        if self.log_first_step and trainer.global_step == 0:
            self.generate(trainer, pl_module, "train", 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Generate training images if they are due, at most once a step."""
        count = batch_idx + 1 if self.log_on_batch_idx else trainer.global_step
        if (self.log_on_batch_idx or ends_step(trainer, batch_idx)) and self.due(count):
            self.generate(trainer, pl_module, "train", batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and self.due(trainer.global_step):
            self.generate(trainer, pl_module, "val", 0)

    def generate(self, trainer: Trainer, module: LightningModule, split: str, place: int) -> None:
        """Generate a set's grids and save them."""
        datasets = getattr(trainer.datamodule, "datasets", {})  # type: ignore[attr-defined]
        dataset: Any = datasets.get(SPLITS[split])
        skip = self.disabled or split not in self.splits or dataset is None
        if skip or not trainer.is_global_zero or self.generated.get(split) == trainer.global_step:
            return
        self.generated[split] = trainer.global_step
        problem = ""  # an error in its images must not end a run
        try:
            with quietly(module):
                first = [dataset[i] for i in range(min(self.max_images, len(dataset)))]
                grids = self.grids(module, default_collate(first))
        except ValueError as error:
            problem = str(error)
        except torch.OutOfMemoryError:
            problem = "not enough memory; lower image_logger.params.max_images"
        if problem:
            torch.cuda.empty_cache()  # does nothing where there is no GPU
            log.warning(f"no images at step {trainer.global_step}: {problem}")
            return
        name = f"_gs-{trainer.global_step:06}_e-{trainer.current_epoch:06}_b-{place:06}.jpg"
        folder = self.folder / split
        for key, images in grids.items():
            sheet = pil_grid(images, COLUMNS)
            write_image(sheet, folder / f"{key}{name}", quality=95)
            for logger in trainer.loggers:
                board = getattr(getattr(logger, "experiment", None), "add_image", None)
                if board is not None:
                    pixels = np.asarray(sheet)
                    board(f"{split}/{key}", pixels, trainer.global_step, dataformats="HWC")

    def grids(self, module: LightningModule, batch: dict[str, Any]) -> dict[str, list[Image.Image]]:
        """Return a batch's images by key: those of the model's own `log_images`, or of samples."""
        maker: Callable[..., dict[str, Tensor]] | None = getattr(module, "log_images", None)
        if maker is not None:
            return {key: [to_pil(p) for p in x] for key, x in maker(batch).items()}
        if not isinstance(module, LatentDiffusion):
            return {}
        x = module.images(batch)
        z = encode_mean(module, x)
        grids = {
            "inputs": [to_pil(p) for p in x],
            "reconstruction": [to_pil(p) for p in module.decode_first_stage(z)],
        }
        captions = batch.get(module.cond_stage_key)
        if not isinstance(captions, list) or not isinstance(captions[0], str):
            return grids
        height, width = x.shape[-2:]
        own = replace(self.sampling, height=height, width=width, batch_size=len(captions))
        grids["conditioning"] = [write_caption(text, width) for text in captions]
        for key, scale in (("samples", 1.0), ("samples_scaled", self.sampling.scale)):
            made = generate(module, captions, replace(own, scale=scale))
            grids[key] = [one.image for one in made]
        return grids
