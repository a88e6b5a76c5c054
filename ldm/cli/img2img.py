r"""Generate images of a prompt that start from a given image (SDEdit).

Examples:
  a learned word in the composition of an image:
    python scripts/img2img.py --init-img sketch.png --prompt "a painting of *" \
        --embedding_path embeddings.pt --strength 0.75
  with the miniature model, which comes with the project:
    python scripts/img2img.py --model models/miniature --prompt "a blue mug on the beach" \
        --init-img examples/concepts/red-mug/1.png --strength 0.5
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ldm.cli import common
from ldm.cli.common import option
from ldm.util import UserError

log = logging.getLogger(__name__)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/img2img.py", description=__doc__)
    group = parser.add_argument_group("what to generate")
    option(group, "--init-img --image FILE", "the image", dest="image", required=True)
    option(group, "--prompt TEXT", "the text", action=common.Once, required=True)
    text = "share of the steps to take: 0 keeps the image, 1 keeps nothing of it"
    option(group, "--strength", text, 0.75)
    common.add_generation(parser)
    group = parser.add_argument_group("how to generate")
    common.add_options(group, steps=50, sampler="ddim", karras=False, eta=0.0, scale=5.0)
    common.add_options(group, negative_prompt="", weighted_prompts=False, clip_skip=1)
    common.add_options(group, seed=42, n_samples=4, batch_size=4)
    group = parser.add_argument_group("results (nothing is overwritten)")
    common.add_options(group, outdir="outputs/img2img-samples")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; most errors come before weights are read."""
    options = parse(arguments)
    sampling = common.sampling_of(options)
    if not 0 < options.strength <= 1:
        raise UserError(f"--strength must lie in (0, 1], got {options.strength}")
    common.check_least(options, 1, "n_samples")
    folder = common.check_output_folder(options.outdir)
    common.find_model(options.model, options.config)

    from ldm.editing.guided import from_image
    from ldm.image_io import open_rgb, pil_grid, safe_name, save_png

    image = open_rgb(options.image)
    device = common.choose_device(options.device)
    model = common.load(options, [options.prompt, options.negative_prompt]).to(device)
    made = from_image(
        *(model, image, options.prompt, sampling),
        samples=options.n_samples,
        strength=options.strength,
        progress=sys.stderr.isatty(),
    )
    made_by, name = common.image_facts(options), safe_name(options.prompt)
    for one in made:
        path = folder / "samples" / f"{name}_{one.seed}.png"
        save_png(one.image, path, {**one.settings, **made_by})
    grid = pil_grid([image.resize(made[0].image.size), *(one.image for one in made)])
    settings = {**made[0].settings, **made_by}
    path = save_png(grid, folder / f"{name}.png", settings)
    log.info("%s: the image, then the results", path)
    return 0
