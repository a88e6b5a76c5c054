"""Images of the word's class, which the base model generates before the networks are tuned."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from omegaconf import OmegaConf

from ldm.image_io import save_png
from ldm.inference import Sampling, generate
from ldm.training.config import RunConfig
from ldm.training.processes import gather, together
from ldm.training.validate import class_images_of
from ldm.util import quote

log = logging.getLogger(__name__)

# The settings of the paper's evaluation: 50 steps of DDIM, guidance scale 5.
STEPS, SCALE, BATCH_SIZE = 50, 5.0, 8
ROOT_ENTRY = "data.params.train.params.class_root"


def with_class_images(config: RunConfig, folder: Path) -> RunConfig:
    """Generate the class images in a folder; return the configuration that names it.

    Images that exist, from a run that was interrupted, are kept: image i depends on its seed
    alone. Processes that began together share the work. Errors as `class_images_of`.
    """
    prompt, count = class_images_of(config.sections)
    seeds = range(config.run.seed, config.run.seed + count)
    missing = [seed for seed in seeds if not _file(folder, seed).is_file()]
    if missing:
        log.info(f"generating {len(missing)} class images, {quote(prompt)}, in {folder}")
    rank, world = together()
    # Batches begin at fixed seeds, so that an image does not depend on the number of processes.
    starts = range(seeds.start, seeds.stop, BATCH_SIZE)[rank::world]
    batches = [range(start, min(start + BATCH_SIZE, seeds.stop)) for start in starts]
    if wanted := [batch for batch in batches if set(batch) & set(missing)]:
        _generate(config, prompt, wanted, folder)
    gather("class_images")
    return config.with_entry(ROOT_ENTRY, str(folder))


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:010}.png"


def device_of(config: RunConfig) -> str:
    """Return the device on which this process generates: its own GPU, or the CPU."""
    wanted = config.trainer.get("accelerator") or "auto"
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    place = int(os.environ.get("LOCAL_RANK", 0))
    devices = config.trainer["devices"]
    return f"cuda:{devices[place] if isinstance(devices, list) else place}"


def _generate(config: RunConfig, prompt: str, batches: list[range], folder: Path) -> None:
    """Generate the images of each batch of consecutive seeds that do not exist."""
    from ldm.checkpoint.loading import load_model

    model_config = OmegaConf.create({"model": config.model})
    # The prompt names no word, so neither words nor their files are needed.
    model_config.model.params.personalization_config = None
    assert config.run.base_checkpoint is not None
    model = load_model(model_config, config.run.base_checkpoint, device_of(config))
    for batch in batches:
        images = generate(
            model,
            prompt,
            Sampling(steps=STEPS, scale=SCALE, seed=batch.start, batch_size=len(batch)),
            samples_per_prompt=len(batch),
        )
        for image in images:
            if not _file(folder, image.seed).is_file():
                save_png(image.image, _file(folder, image.seed), image.settings)
