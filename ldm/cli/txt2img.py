"""`scripts/txt2img.py` and `scripts/stable_txt2img.py`: check, load, generate, save."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.cli.common import option
from ldm.evaluation.prompts import read_prompts
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.inference import GeneratedImage

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  a learned word:
    python {command} --prompt "a photo of * on the moon" --embedding_path embeddings.pt
  with the miniature model, which comes with the project:
    python {command} --model models/miniature --prompt "a red star on the beach"
  two words, the second of which was also learned as "*":
    python {command} --embedding_path cat.pt @=style.pt --prompt "a photo of * in the style of @"
  many prompts, a line each, from a file or a pipe:
    python {command} --from-file prompts.txt
    cat prompts.txt | python {command} --from-file -
"""


@dataclass(frozen=True)
class Defaults:
    """Default values of one of the two commands; those of scripts/txt2img.py by default."""

    command: str = "scripts/txt2img.py"
    description: str = "Generate images from text with the 1.4B latent diffusion model and words."
    checkpoint: str = common.PUBLISHED
    steps: int = 200
    scale: float = 5.0
    iterations: int = 1
    samples: int = 4
    precision: str = "full"


LATENT_DIFFUSION = Defaults()
STABLE_DIFFUSION = Defaults(
    command="scripts/stable_txt2img.py",
    description="Generate images from text with Stable Diffusion 1, and learned words.",
    checkpoint="models/ldm/stable-diffusion-v1/model.ckpt",
    steps=50,
    scale=7.5,
    iterations=2,
    samples=3,
    precision="autocast",
)


def parse(defaults: Defaults, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(
        prog=defaults.command,
        description=defaults.description,
        epilog=EXAMPLES.format(command=defaults.command),
    )
    group = parser.add_argument_group("what to generate")
    option(group, "--prompt TEXT", "the text to generate images from (repeatable)", action="append")
    text = 'prompts, one a line; # begins a comment; "-" is the standard input'
    option(group, "--from-file FILE", text)
    common.add_options(group, negative_prompt="", weighted_prompts=False, clip_skip=1)
    common.add_options(group, embedding_path=[], seed=42)
    option(group, "--fixed_code", "start every prompt with the same seed", False)

    group = parser.add_argument_group("the model")
    common.add_model(group, defaults.checkpoint)
    common.add_options(group, weight_delta=None, device="auto", precision=defaults.precision)
    option(group, "--C N", "latent channels; only checked", type=int)
    option(group, "--f N", "downsampling factor; only checked", type=int)

    group = parser.add_argument_group("how to generate")
    common.add_options(group, ddim_steps=defaults.steps, sampler="ddim")
    text = "as --sampler plms"
    group.add_argument("--plms", dest="sampler", action="store_const", const="plms", help=text)
    common.add_options(group, karras=False, ddim_eta=0.0, scale=defaults.scale)
    option(group, "--H PIXELS", "height (the model's own)", type=int)
    option(group, "--W PIXELS", "width (the model's own)", type=int)
    option(group, "--n_samples", "images of a prompt at a time", defaults.samples)
    text = "how many times n_samples images of each prompt"
    option(group, "--n_iter", text, defaults.iterations)

    group = parser.add_argument_group("results (nothing is overwritten)")
    common.add_options(group, outdir="outputs/txt2img-samples")
    option(group, "--skip_grid", "no grid for each prompt", False)
    option(group, "--skip_save", "no single images", False)
    option(group, "--n_rows", "images in a row of the grid (n_samples)", 0)
    return parser.parse_args(arguments)


def main(defaults: Defaults, arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; find most mistakes before weights are read."""
    options = parse(defaults, arguments)
    common.check_least(options, 1, "n_samples", "n_iter")
    common.check_least(options, 0, "n_rows")
    if options.skip_grid and options.skip_save:
        raise UserError("--skip_grid and --skip_save together leave nothing to write")
    flags = {"steps": "ddim_steps", "eta": "ddim_eta", "batch_size": "n_samples"}
    sampling = common.sampling_of(options, **flags, height="H", width="W")
    if bool(options.prompt) == (options.from_file is not None):
        raise UserError("give either --prompt TEXT or --from-file FILE")
    prompts = options.prompt or read_prompts(options.from_file)
    folder = common.check_output_folder(options.outdir)
    config, weights = common.find_model(options.model, options.config)
    device = common.choose_device(options.device)

    from ldm.inference import generate, latent_shape

    texts = [*prompts, options.negative_prompt]
    model = common.load(options, texts)
    for flag, have in (("C", model.channels), ("f", model.first_stage_downsampling)):
        wanted = getattr(options, flag)
        if wanted is not None and wanted != have:
            raise UserError(f"--{flag} {wanted} does not fit the model, which has {have}")
    latent_shape(model, options.H, options.W)
    model.to(device)
    facts = {
        **common.model_facts(weights, options),
        "checkpoint": str(weights),
        "embeddings": list(options.embedding_path),
    }
    if config is not None:
        facts["config"] = str(config)
    count = options.n_iter * options.n_samples
    progress = sys.stderr.isatty()
    for number, prompt in enumerate(prompts):
        first = options.seed + (0 if options.fixed_code else number * count)
        own = replace(sampling, seed=first)
        made = generate(model, prompt, own, samples_per_prompt=count, progress=progress)
        _save(made, folder, options, facts)
    return 0


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
