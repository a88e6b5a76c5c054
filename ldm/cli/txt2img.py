"""What scripts/txt2img.py and scripts/stable_txt2img.py do: check, load, draw, save."""

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
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.inference import GeneratedImage

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace, defaults: Defaults) -> int:
    """Draw what the options say.

    Raises:
        UserError: anything wrong with them, before weights are read where that can be known.
    """
    check(options)
    sampling = sampling_settings(options)
    prompts = read_prompts(options.prompt, options.from_file)
    folder = check_output_folder(options.outdir)
    config, weights = find_model(options.ckpt_path, options.config, defaults.config)
    words = [split_word(item) for item in options.embedding_path]
    device = choose_device(options.device)

    from ldm.checkpoint.loading import checkpoint_hash
    from ldm.inference import generate, latent_shape, load_model
    from ldm.words.files import read_words

    for _, path in words:
        read_words(path)
    # On the CPU the weights lie unread in the mapped file until all is checked.
    model = load_model(config, weights, difference=options.difference)
    _check_latent(model, options)
    latent_shape(model, options.H, options.W)
    _load_words(model, words, [*prompts, options.negative_prompt])
    model.to(device)
    facts = {
        "checkpoint": str(weights),
        "checkpoint_hash": checkpoint_hash(weights),
        "config": str(config),
        "embeddings": list(options.embedding_path),
    }
    if options.difference:
        facts["difference"] = options.difference
    count = options.n_iter * options.n_samples
    progress = sys.stderr.isatty()
    for number, prompt in enumerate(prompts):
        first = options.seed + (0 if options.fixed_code else number * count)
        own = replace(sampling, seed=first)
        made = generate(model, prompt, own, samples_per_prompt=count, progress=progress)
        _save(made, folder, options, facts)
    return 0


def read_prompts(prompt: str | None, from_file: str | None) -> list[str]:
    """Return the prompts: the one given, or a file's lines without the empty ones.

    Raises:
        UserError: none, both, or an unreadable file.
    """
    if (prompt is None) == (from_file is None):
        raise UserError("give either --prompt TEXT or --from-file FILE")
    if prompt is not None:
        return [prompt]
    try:
        if from_file == "-":
            text = sys.stdin.read()
        else:
            text = Path(str(from_file)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"--from-file {from_file}: {reason}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"--from-file {from_file}: no prompts in it")
    return prompts


def split_word(item: str) -> tuple[str | None, str]:
    """Split WORD=FILE, where there is no file of that whole name: (word or None, file)."""
    word, equals, path = item.partition("=")
    if equals and word and path and not Path(item).exists():
        return word, path
    return None, item


def _load_words(model: Any, words: Sequence[tuple[str | None, str]], prompts: list[str]) -> None:
    from ldm.inference import load_words
    from ldm.words.files import read_words
    from ldm.words.placeholders import occurrences

    manager = model.embedding_manager
    if not words and manager is not None:
        # Words that come from the configuration alone were never learned.
        for word in manager.placeholders:
            for prompt in prompts:
                if occurrences(prompt, word):
                    raise UserError(
                        f"prompt {prompt!r} names {word!r}, but no word is loaded: give its file "
                        "as --embedding_path"
                    )
        manager.clear()
    for name, path in words:
        rename = None
        if name is not None:
            held = list(read_words(path).words)
            if len(held) != 1:
                raise UserError(f"{name}={path}: the file holds {len(held)} words: {held}")
            rename = {held[0]: name}
        loaded = load_words(model, path, rename=rename)
        logger.info("%s: %s", path, " ".join(loaded))
    if words:
        model.embedding_manager.check_prompts(prompts)
        held = model.embedding_manager.placeholders
        if not any(occurrences(prompt, word) for prompt in prompts for word in held):
            logger.warning(
                "no prompt names a loaded word (%s): they have no effect", " ".join(held)
            )


def _check_latent(model: Any, options: argparse.Namespace) -> None:
    for flag, have in (("C", model.channels), ("f", model.first_stage_downsampling)):
        wanted = getattr(options, flag)
        if wanted is not None and wanted != have:
            raise UserError(f"--{flag} {wanted} does not fit the model, which has {have}")


def _save(
    pictures: Sequence[GeneratedImage],
    folder: Path,
    options: argparse.Namespace,
    facts: dict[str, Any],
) -> None:
    """Write single images to samples/, and a prompt's grid beside that folder."""
    from ldm.image_io import pil_grid, safe_name, save_png

    name = safe_name(pictures[0].prompt)
    if not options.skip_save:
        for picture in pictures:
            path = folder / "samples" / f"{name}_{picture.seed}.png"
            save_png(picture.image, path, {**picture.settings, **facts})
    if not options.skip_grid:
        grid = pil_grid([p.image for p in pictures], options.n_rows or options.n_samples)
        settings = {**pictures[0].settings, "pictures": len(pictures), **facts}
        logger.info("%s", save_png(grid, folder / f"{name}.png", settings))
    else:
        logger.info("%d images in %s", len(pictures), folder / "samples")


def main(defaults: Defaults, arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands."""
    return run(parse(defaults, arguments), defaults)
