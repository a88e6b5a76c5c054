"""`scripts/txt2img.py` and `scripts/stable_txt2img.py`: check, load, generate, save."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import check_output_folder, choose_device, find_model
from ldm.cli.txt2img_options import Defaults, check, parse, sampling_settings
from ldm.evaluation.prompts import read_prompts
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.inference import GeneratedImage
    from ldm.models.diffusion.ddpm import LatentDiffusion

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Generate the images that the options describe.

    Raises:
        UserError: a wrong option; most are found before weights are read.
    """
    check(options)
    sampling = sampling_settings(options)
    prompts = _prompts(options)
    folder = check_output_folder(options.outdir)
    config, weights = find_model(options.model, options.config)
    device = choose_device(options.device)

    from ldm.checkpoint.loading import checkpoint_hash
    from ldm.inference import generate, latent_shape, load_model, load_words
    from ldm.words.loading import check_words

    texts = [*prompts, options.negative_prompt]
    check_words(options.embedding_path, texts)
    # On the CPU the weights lie unread in the mapped file until all is checked.
    model = load_model(config, weights, weight_delta=options.weight_delta)
    _check_latent(model, options)
    latent_shape(model, options.H, options.W)
    # Weighted prompts have no end that could be cut off.
    load_words(model, options.embedding_path, () if options.weighted_prompts else texts)
    model.to(device)
    facts = {
        "checkpoint": str(weights),
        "checkpoint_hash": checkpoint_hash(weights),
        "embeddings": list(options.embedding_path),
    }
    if config is not None:
        facts["config"] = str(config)
    if options.weight_delta:
        facts["weight_delta"] = options.weight_delta
    count = options.n_iter * options.n_samples
    progress = sys.stderr.isatty()
    for number, prompt in enumerate(prompts):
        first = options.seed + (0 if options.fixed_code else number * count)
        own = replace(sampling, seed=first)
        made = generate(model, prompt, own, samples_per_prompt=count, progress=progress)
        _save(made, folder, options, facts)
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts given, or those of a file.

    Raises:
        UserError: none, both, or text that is not UTF-8.
    """
    if bool(options.prompt) == (options.from_file is not None):
        raise UserError("give either --prompt TEXT or --from-file FILE")
    prompts = options.prompt or read_prompts(options.from_file)
    return list(prompts)


def _check_latent(model: LatentDiffusion, options: argparse.Namespace) -> None:
    for flag, have in (("C", model.channels), ("f", model.first_stage_downsampling)):
        wanted = getattr(options, flag)
        if wanted is not None and wanted != have:
            raise UserError(f"--{flag} {wanted} does not fit the model, which has {have}")


def _save(
    images: Sequence[GeneratedImage],
    folder: Path,
    options: argparse.Namespace,
    facts: dict[str, Any],
) -> None:
    """Write single images to samples/, and a prompt's grid beside that folder."""
    from ldm.image_io import pil_grid, safe_name, save_png

    name = safe_name(images[0].prompt)
    if not options.skip_save:
        for one in images:
            path = folder / "samples" / f"{name}_{one.seed}.png"
            save_png(one.image, path, {**one.settings, **facts})
    if options.skip_grid:
        log.info("%d images in %s", len(images), folder / "samples")
        return
    grid = pil_grid([one.image for one in images], options.n_rows or options.n_samples)
    settings = {**images[0].settings, "images": len(images), **facts}
    log.info("%s", save_png(grid, folder / f"{name}.png", settings))


def main(defaults: Defaults, arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands."""
    return run(parse(defaults, arguments))
