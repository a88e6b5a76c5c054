"""What tuning the networks needs: images of the class before, a file of differences after."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.loading import load_model
from ldm.checkpoint.weight_delta import save_difference
from ldm.data.personalized_prior import CLASS_IMAGES, class_prompt_of
from ldm.image_io import save_png
from ldm.inference import generate
from ldm.training.checkpoints import Saver
from ldm.training.config import RunConfig, accepts
from ldm.training.words import save_words
from ldm.util import UserError

log = logging.getLogger(__name__)

DIFFERENCE = "difference.safetensors"
# Class images are drawn as the paper's evaluation draws: 50 steps of DDIM, guidance 5.
STEPS, SCALE, AT_A_TIME = 50, 5.0, 8


@dataclass(frozen=True)
class DifferenceSaver:
    """Writes what a run moved the networks by, at each save; nothing where only words are trained.

    Attributes:
        base: the checkpoint that the networks started from.
        half: store half precision.
    """

    base: Path
    half: bool

    def __call__(self, trainer: pl.Trainer, module: Any, folder: Path) -> None:
        """Write `difference.safetensors` over the one of the last save."""
        if not tunes(module):
            return
        of_words = module.embedding_manager.metadata
        facts = {name: of_words[name] for name in ("config_hash",) if name in of_words}
        facts["step"] = str(trainer.global_step)
        save_difference(module, folder / DIFFERENCE, self.base, half=self.half, facts=facts)


def tunes(module: Any) -> bool:
    """Tell whether a model's networks are trained beside its words."""
    return getattr(module, "embedding_manager", None) is not None and bool(module.trains_model)


def network_rates(module: Any) -> str:
    """Say at what rates the networks of a `LatentDiffusion` are tuned."""
    rate = module.model_lr if module.text_lr is None else module.text_lr
    trained = any(weight.requires_grad for weight in module.cond_stage_model.parameters())
    texts = f"text encoder's {rate:.4g}" if trained else "text encoder frozen"
    return f"U-Net's rate {module.model_lr:.4g}, {texts} (not scaled)"


def savers(config: RunConfig) -> tuple[Saver, ...]:
    """Return what a run saves beside its checkpoint."""
    base = config.run.base_checkpoint
    if not base:  # nothing to be different from
        return (save_words,)
    return save_words, DifferenceSaver(Path(base), config.run.half_difference)


def wants_class_images(config: RunConfig) -> bool:
    """Tell whether the training set needs images of the word's class that are not there yet."""
    train = config.data.params.get("train")
    if not train or not accepts(train, "class_pictures"):
        return False
    return not (train.get("params") or {}).get("class_root")


def class_images_of(config: RunConfig) -> tuple[str, int]:
    """Return what class images are drawn from, and how many: cheap, to be asked early.

    Raises:
        UserError: no base model, no class, or a number out of range.
    """
    if not config.run.base_checkpoint:
        raise UserError(
            "class images are drawn by the base model: name its weights with --actual_resume, or "
            "give images as class_root"
        )
    params = config.data.params.train.params
    prompt = params.get("class_prompt") or class_prompt_of(params.get("first_word"))
    count = params.get("class_pictures", CLASS_IMAGES)
    if count < 1:
        raise UserError(f"class_pictures must be at least 1, got {count}")
    return prompt, count


def draw_class_images(config: RunConfig, folder: Path) -> None:
    """Draw the class by the base model, and enter their folder into the configuration.

    Images that are there already, from a run that was stopped, are kept: image i depends on its
    seed alone. Several processes may do this at once; each image appears whole.

    Args:
        config: whose data wants them; `data.params.train.params.class_root` is set.
        folder: where they go.

    Raises:
        UserError: as `class_pictures_of`; or the folder cannot be written to.
    """
    prompt, count = class_images_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(config.run.seed, config.run.seed + count)
    missing = sum(not _picture_file(folder, seed).is_file() for seed in seeds)
    if missing:
        log.info(f"drawing {missing} class images, {prompt!r}, in {folder}")
        _draw(config, prompt, seeds, folder)
    config.data.params.train.params.class_root = str(folder)


def _picture_file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:010}.png"


def _draw(config: RunConfig, prompt: str, seeds: range, folder: Path) -> None:
    wanted = config.lightning.trainer.get("accelerator") or "auto"
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    model_config = OmegaConf.create({"model": config.model})
    # Neither words nor their files are wanted: the prompt names none.
    model_config.model.params.personalization_config = None
    model = load_model(model_config, config.run.base_checkpoint, device)
    for first in range(seeds.start, seeds.stop, AT_A_TIME):
        batch = range(first, min(first + AT_A_TIME, seeds.stop))
        if all(_picture_file(folder, seed).is_file() for seed in batch):
            continue
        pictures = generate(
            model,
            prompt,
            samples_per_prompt=len(batch),
            steps=STEPS,
            scale=SCALE,
            seed=first,
            batch_size=len(batch),
        )
        for picture in pictures:
            path = _picture_file(folder, picture.seed)
            # Under a hidden name first, which no set takes for an image.
            save_png(picture.image, path.with_name(f".{path.name}"), picture.settings).replace(path)
