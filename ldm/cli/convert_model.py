"""`scripts/convert_model.py`: a base as one file, or as a folder of diffusers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.util import Parser

EXAMPLES = """examples:
  the 1.4B model from the Hub as the file that the other commands take by default:
    python scripts/convert_model.py CompVis/ldm-text2im-large-256 \\
        models/ldm/text2img-large/model.ckpt
  a file as a folder that diffusers' pipelines open:
    python scripts/convert_model.py v1-5-pruned-emaonly.safetensors stable-diffusion-1.5/
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options.
    """
    parser = Parser(
        prog="scripts/convert_model.py",
        description="Write a base as one file in the published (CompVis) names, or as a folder of "
        "diffusers. Values and their types stay as they are.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", metavar="IN", help="a file, a folder of diffusers or a Hub name")
    parser.add_argument(
        "target", metavar="OUT", help="a .ckpt or .safetensors file; any other name is a folder"
    )
    parser.add_argument("--config", metavar="YAML", help="of IN; by default as it is recognized")
    parser.add_argument("--half", action="store_true", help="write float16: half the size")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    from ldm.checkpoint.convert import convert

    convert(options.source, options.target, options.config, options.half)
    return 0
