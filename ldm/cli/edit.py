r"""Edit an image inside a mask, by Blended Latent Diffusion; the selector's best comes first.

Examples:
  a learned word in an image's masked part (white in the mask is what changes):
    python scripts/edit.py --image room.png --mask mask.png --prompt "an oil painting of *" \
        --embedding_path embeddings.pt
  with the miniature model, which comes with the project:
    python scripts/edit.py --model models/miniature --image examples/concepts/teal-star/1.png \
        --mask mask.png --prompt "a red mug on the beach"
  a line or another thin mask: begin four latent points wider, and shrink to the mask itself:
    python scripts/edit.py --image room.png --mask line.png --prompt "a rope" --dilate 4
The image is generated with its longer side at the model's own size (256 pixels for the published
model, 64 for the miniature), its proportions kept as nearly as the model can; the mask has the size
of the image as it is given.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.cli.common import option
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.editing.blended import Edit
    from ldm.evaluation.similarity import FeatureExtractor

logger = logging.getLogger(__name__)

BACKGROUNDS = ("paste", "decoder", "none")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/edit.py", description=__doc__)
    group = parser.add_argument_group("what to edit")
    option(group, "--image FILE", "the image", required=True)
    option(group, "--mask FILE", "of the image's size; white is what changes", required=True)
    text = "the text to generate there"
    option(group, "--prompt TEXT", text, action=common.Once, required=True)
    common.add_generation(parser)
    group = parser.add_argument_group("how to generate")
    common.add_options(group, steps=50, scale=5.0, seed=42, n_samples=4, batch_size=4)
    common.add_options(group, negative_prompt="", weighted_prompts=False, clip_skip=1)
    option(
        group,
        "--dilate N",
        "for thin masks: begin N latent points wider, and shrink over the steps",
        0,
    )
    text = (
        "paste: the image's own pixels outside the mask; decoder: a decoder tuned to each image "
        "(slower, no seam); none: as decoded"
    )
    option(group, "--background", text, "paste", choices=BACKGROUNDS)
    text = (
        'ranks the images: a CLIP\'s folder or name, or "none"; by default the selector beside the '
        "weights, or else openai/clip-vit-base-patch32; a single image is not ranked"
    )
    option(group, "--extractor FOLDER|NAME", text)
    group = parser.add_argument_group("results (nothing is overwritten)")
    common.add_options(group, outdir="outputs/edit")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Raises UserError, before weights are read if possible."""
    options = parse(arguments)
    sampling = common.sampling_of(options)
    common.check_least(options, 1, "n_samples")
    common.check_least(options, 0, "dilate")
    folder = common.check_output_folder(options.outdir)
    common.find_model(options.model, options.config)

    from ldm.editing.blended import edit, latent_mask_of
    from ldm.editing.images import model_size, open_mask, resized
    from ldm.image_io import open_rgb

    original = open_rgb(options.image)
    mask = open_mask(options.mask, original.size)
    device = common.choose_device(options.device)
    selector = _selector(options, device)
    model = common.load(options, [options.prompt, options.negative_prompt])
    size = model_size(model, original.size)
    if size != original.size:
        logger.info("the image is generated at %d x %d", *size)
    original, mask = resized(original, size), resized(mask, size)
    latent_mask_of(model, mask)  # raises its errors before the model is read
    edits = edit(
        *(model.to(device), original, mask, options.prompt, sampling),
        samples=options.n_samples,
        dilate=options.dilate,
        background=options.background,
        scorer=selector,
        progress=sys.stderr.isatty(),
    )
    _save(edits, original, folder, common.image_facts(options))
    return 0


def _selector(options: argparse.Namespace, device: str) -> FeatureExtractor | None:
    """Return the extractor that ranks the images; log if there is none."""
    from ldm.evaluation.extractors import default_selector, find_extractor

    if options.extractor == "none" or options.n_samples == 1:
        return None
    _, weights = common.find_model(options.model, options.config)
    try:
        return find_extractor(options.extractor or default_selector(weights), device)
    except UserError as error:
        if options.extractor:
            raise
        logger.warning("the images are not ranked: %s", error)
        return None


def _save(
    edits: Sequence[Edit], original: Image.Image, folder: Path, made_by: dict[str, str]
) -> None:
    """Write the images in their order, and a grid of the given one and them."""
    from ldm.image_io import pil_grid, save_png

    for place, found in enumerate(edits, 1):
        score = {} if found.score is None else {"score": round(found.score, 4)}
        settings = {**found.settings, **score, **made_by}
        path = save_png(found.image, folder / f"{place:02d}_{found.seed}.png", settings)
        ranked = "" if found.score is None else f"  similarity {found.score:.3f}"
        error = found.settings["background_error"]
        logger.info("%s%s  background within %d of 255", path, ranked, error)
    grid = pil_grid([original, *(found.image for found in edits)])
    path = save_png(grid, folder / "grid.png", {**edits[0].settings, **made_by})
    logger.info("%s: the image, then the edits", path)
