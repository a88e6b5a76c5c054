"""`--init_word auto`: choose the initializer word.

The candidates are the text encoder's whole words. A CLIP chooses the one whose caption is nearest
to the images. Without a CLIP, the model chooses by the loss of a fixed batch.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from ldm.data.personalized import PersonalizedBase
from ldm.evaluation.extractors import default_selector, find_extractor
from ldm.image_io import open_rgb
from ldm.training.class_images import device_of
from ldm.training.config import RunConfig, load
from ldm.training.run import build_data
from ldm.util import UserError, instantiate_from_config
from ldm.words.tokens import whole_words

log = logging.getLogger(__name__)

AUTO = "auto"
# How many words the loss compares: vocabularies begin with the most common ones.
MOST_BY_LOSS = 1000
# Noise levels of the fixed batch, spread evenly.
LEVELS = 8


def with_chosen_words(options: argparse.Namespace) -> argparse.Namespace:
    """Return options of main.py in which a word stands for each "auto" of --init_word.

    Raises UserError for a run without a base, or with several placeholders, or bad images.
    """
    chosen = copy.copy(options)
    if len(options.init_word) > max(1, len(options.data_roots)):
        raise UserError(f"--init_word {AUTO}: give one placeholder for each --data_root")
    roots = options.data_roots or [options.data_root]
    chosen.init_word = [
        _choose(options, root) if word == AUTO else word
        for root, word in zip(roots, options.init_word, strict=False)
    ]
    return chosen


def _choose(options: argparse.Namespace, root: str) -> str:
    own = copy.copy(options)
    own.init_word, own.data_root, own.data_roots = [], root, [root]
    config = load(own)
    base, dataset = config.run.base_checkpoint, build_data(config).datasets["train"]
    if not base or not isinstance(dataset, PersonalizedBase):
        raise UserError(f"--init_word {AUTO} needs a trained base and a folder of images")
    with torch.device("meta"):
        embedder = instantiate_from_config(config.model.params.cond_stage_config)
    words = whole_words(embedder.tokenizer)
    caption = next(text for text in dataset.texts() if dataset.shown in text)
    captions = [caption.replace(dataset.shown, word) for word in words]
    device, name = device_of(config), default_selector(Path(base))
    try:
        clip = find_extractor(name, device)
    except UserError as error:
        log.info(f"{error}. The loss chooses the initializer word")
        compared = captions[:MOST_BY_LOSS]
        best, chooser = by_loss(config, dataset, compared, device), "the loss of a fixed batch"
    else:
        compared, chooser = captions, f"the CLIP {name}"
        images = clip.image_features([open_rgb(path) for path in dataset.files()]).mean(0)
        best = int((clip.text_features(captions) @ images).argmax())
    log.info(f"{root}: initializer word {words[best]!r}, of {len(compared)} words by {chooser}")
    return words[best]


@torch.no_grad()
def by_loss(
    config: RunConfig, dataset: PersonalizedBase, captions: Sequence[str], device: str
) -> int:
    """Return the index of the caption with the lowest loss of one image at each of `LEVELS`.

    All captions see the same images, timesteps and noise.
    """
    from ldm.checkpoint.loading import load_model

    plain = OmegaConf.create({"model": OmegaConf.to_container(config.model)})
    plain.model.params.pop("personalization_config", None)
    model = load_model(plain, config.run.base_checkpoint, device)
    samples = [dataset[i % len(dataset.files())]["image"] for i in range(LEVELS)]
    images = torch.from_numpy(np.stack(samples)).movedim(-1, 1).to(device)
    latents = model.get_first_stage_encoding(model.encode_first_stage(images).mode())
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(config.run.seed))
    t = ((torch.arange(LEVELS) + 0.5) / LEVELS * model.num_timesteps).long().to(device)
    losses = [
        model.p_losses(
            latents, model.get_learned_conditioning([text] * LEVELS), t, noise.to(latents)
        ).loss
        for text in captions
    ]
    return int(torch.stack(losses).argmin())
