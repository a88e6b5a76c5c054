r"""Find an image's noise by bipartite (DDIM) inversion, and generate from it with other prompts.

Writes noise.safetensors, the image reconstructed from it, and images of other prompts from it at
several guidance scales.

Examples:
  find the noise of an image that a learned word describes, and change the prompt:
    python scripts/invert.py --image cat.png --prompt "a photo of *" --embedding_path cat.pt \
        --edit "a painting of *" "a photo of * on the beach" --scales 1 3 5
  with the miniature model, which comes with the project:
    python scripts/invert.py --model models/miniature --prompt "a photo of a red mug" \
        --image examples/concepts/red-mug/1.png --edit "a photo of a blue mug" --steps 50
  generate from the noise of an earlier run, without inverting again:
    python scripts/invert.py --image cat.png --noise outputs/invert/noise.safetensors \
        --embedding_path cat.pt --edit "a mosaic of *"
The image is generated with its longer side at the model's own size (256 pixels for the published
model, 64 for the miniature), its proportions kept as nearly as the model can.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.cli.common import option
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.editing.inversion import InvertedNoise
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.sampling import Sampling

logger = logging.getLogger(__name__)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/invert.py", description=__doc__)
    group = parser.add_argument_group("the image and the prompts")
    option(group, "--image FILE", "the image", required=True)
    text = 'prompt that describes the image, as "a photo of *"'
    option(group, "--prompt TEXT", text, action=common.Once)
    option(group, "--noise FILE", "noise that was found before, in place of --prompt")
    option(group, "--edit TEXT", "prompts to generate from the noise", [])
    scales, text = [1.0, 3.0, 5.0], "guidance scales of the edits (1 3 5)"
    option(group, "--scales SCALE", text, scales, nargs="+", type=float)
    common.add_generation(parser)
    group = parser.add_argument_group("how to invert")
    option(group, "--steps", "steps of DDIM, 2..1000", 250)
    option(group, "--inversion_scale", "guidance scale of the inversion; 1 is none", 1.0)
    text = "further predictions a step, for few steps or guidance; 0 is the paper's formula"
    option(group, "--refinements", text, 0)
    group = parser.add_argument_group("results (images are not overwritten)")
    common.add_options(group, outdir="outputs/invert")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> Sampling:
    """Return the settings of the inversion; raise UserError for a value out of range."""
    sampling = common.sampling_of(options, scale="inversion_scale")
    if options.steps < 2:
        raise UserError(f"--steps must lie in 2..1000, got {options.steps}")
    for scale in options.scales:
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"--scales must be at least 0, got {scale}")
    common.check_least(options, 0, "refinements")
    if (options.prompt is None) == (options.noise is None):
        raise UserError("give either --prompt TEXT, which describes the image, or --noise FILE")
    if options.noise is not None and not options.edit:
        raise UserError("nothing to do: with --noise FILE give --edit TEXT")
    return sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; find mistakes before weights are read."""
    options = parse(arguments)
    sampling = check(options)
    folder = common.check_output_folder(options.outdir)
    common.find_model(options.model, options.config)

    from ldm.editing.images import model_size, resized
    from ldm.editing.inversion import invert_image, read_noise, reconstruction, write_noise
    from ldm.image_io import open_rgb

    noise_file = folder / "noise.safetensors"
    if options.noise is None and noise_file.exists():
        raise UserError(f"{noise_file} exists: give another --outdir, or use it with --noise")
    original = open_rgb(options.image)
    known = read_noise(options.noise) if options.noise is not None else None
    prompts = [options.prompt if known is None else known.prompt, *options.edit]
    device = common.choose_device(options.device)
    model = common.load(options, prompts)
    made_by = common.image_facts(options)
    if known is not None:
        _check_same(known, made_by, options.noise)
    size = model_size(model, original.size)
    if size != original.size:
        logger.info("the image is generated at %d x %d", *size)
    original = resized(original, size)
    model.to(device)
    if known is None:
        found = invert_image(
            *(model, original, options.prompt, sampling),
            refinements=options.refinements,
            progress=sys.stderr.isatty(),
        )
        known = replace(found, facts=made_by)
        write_noise(noise_file, known)
        logger.info("%s", noise_file)
    _generate(model, known, reconstruction(model, original), options, folder)
    return 0


def _check_same(known: InvertedNoise, made_by: dict[str, str], path: str) -> None:
    """Raise UserError where noise was found for another image or with another model."""
    stored = known.facts or {}
    for name, said in (("image", "image"), ("checkpoint", "model")):
        if stored.get(f"{name}_hash") != made_by[f"{name}_hash"]:
            raise UserError(
                f"noise {path} is of another {said}, {stored.get(name)}: give that, or find this "
                "one's noise with --prompt"
            )


def _generate(
    model: LatentDiffusion,
    found: InvertedNoise,
    best: Image.Image,
    options: argparse.Namespace,
    folder: Path,
) -> None:
    """Reconstruct the image and generate the edits: a row of the grid for each prompt."""
    from ldm.editing.images import psnr
    from ldm.editing.inversion import regenerate
    from ldm.image_io import pil_grid, safe_name, save_png

    progress = sys.stderr.isatty()
    settings = {
        "inversion_prompt": found.prompt,
        "inversion_scale": found.scale,
        "steps": found.steps,
        "refinements": found.refinements,
        **(found.facts or {}),
    }
    back = regenerate(model, found, [found.prompt], progress=progress)[0]
    level = psnr(back, best)
    logger.info("reconstructed without guidance: %.1f dB against the autoencoder's own", level)
    save_png(best, folder / "autoencoder.png", settings)
    back_settings = {**settings, "prompt": found.prompt, "scale": 1.0, "psnr_db": round(level, 2)}
    save_png(back, folder / "drawn_back.png", back_settings)
    if not options.edit:
        return
    columns = [
        regenerate(model, found, options.edit, scale, progress=progress) for scale in options.scales
    ]
    for prompt, row in zip(options.edit, zip(*columns, strict=True), strict=True):
        for scale, image in zip(options.scales, row, strict=True):
            path = folder / f"{safe_name(prompt)}_scale{scale:g}.png"
            save_png(image, path, {**settings, "prompt": prompt, "scale": scale})
    rows = [image for row in zip(*columns, strict=True) for image in (best, *row)]
    grid = pil_grid(rows, 1 + len(options.scales))
    facts_of_grid = {**settings, "prompts": options.edit, "scales": options.scales}
    path = save_png(grid, folder / "grid.png", facts_of_grid)
    logger.info("%s: a row a prompt; the image, then scales %s", path, options.scales)
