"""Options of scripts/txt2img.py and scripts/stable_txt2img.py: two sets of defaults, one parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.cli.common import Parser, add_difference, add_model, add_words, sampling_of
from ldm.sampling import PRECISIONS, SAMPLERS, Sampling
from ldm.util import UserError


@dataclass(frozen=True)
class Defaults:
    """Default values of one of the two commands."""

    command: str
    description: str
    checkpoint: str
    steps: int
    scale: float
    iterations: int
    samples: int
    precision: str


LATENT_DIFFUSION = Defaults(
    command="scripts/txt2img.py",
    description="Generate images from text with the 1.4B latent diffusion model and words.",
    checkpoint="models/ldm/text2img-large/model.ckpt",
    steps=200,
    scale=5.0,
    iterations=1,
    samples=4,
    precision="full",
)
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


def parse(defaults: Defaults, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options.
    """
    parser = Parser(
        prog=defaults.command,
        description=defaults.description,
        epilog=EXAMPLES.format(command=defaults.command),
    )
    _add_what(parser)
    _add_model(parser, defaults)
    _add_how(parser, defaults)
    _add_output(parser)
    return parser.parse_args(arguments)


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to generate")
    group.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="the text to generate images from (repeatable)",
    )
    group.add_argument(
        "--negative_prompt", metavar="TEXT", default="", help="what guidance leads away from"
    )
    group.add_argument(
        "--weighted_prompts",
        action="store_true",
        help="(word:1.2), (word) and [word] are weights; prompts may be longer than the encoder",
    )
    group.add_argument(
        "--clip_skip", type=int, default=1, metavar="N", help="CLIP's layer; 2 is one before (1)"
    )
    group.add_argument(
        "--from-file",
        metavar="FILE",
        help='prompts, one a line; # begins a comment; "-" is the standard input',
    )
    add_words(group)
    group.add_argument(
        "--seed",
        type=int,
        default=42,
        help="seed of the first image; image i has seed + i (42)",
    )
    group.add_argument(
        "--fixed_code", action="store_true", help="start every prompt with the same seed"
    )


def _add_model(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    group = parser.add_argument_group("the model")
    add_model(group, defaults.checkpoint)
    add_difference(group)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=defaults.precision,
        help=f"float32, or half precision where it is safe ({defaults.precision})",
    )
    group.add_argument("--C", type=int, metavar="N", help="latent channels; only checked")
    group.add_argument("--f", type=int, metavar="N", help="downsampling factor; only checked")


def _add_how(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    group = parser.add_argument_group("how to generate")
    group.add_argument(
        "--ddim_steps",
        type=int,
        default=defaults.steps,
        help=f"steps, 1..1000 ({defaults.steps})",
    )
    group.add_argument("--sampler", choices=SAMPLERS, default="ddim", help="the sampler (ddim)")
    group.add_argument(
        "--plms", dest="sampler", action="store_const", const="plms", help="as --sampler plms"
    )
    group.add_argument(
        "--karras", action="store_true", help="space noise levels as Karras et al.: few steps"
    )
    group.add_argument("--ddim_eta", type=float, default=0.0, help="0 is deterministic, 1 is DDPM")
    group.add_argument(
        "--scale", type=float, default=defaults.scale, help=f"guidance scale ({defaults.scale})"
    )
    group.add_argument("--H", type=int, metavar="PIXELS", help="height (the model's own)")
    group.add_argument("--W", type=int, metavar="PIXELS", help="width (the model's own)")
    group.add_argument(
        "--n_samples",
        type=int,
        default=defaults.samples,
        help=f"images of a prompt at a time ({defaults.samples})",
    )
    group.add_argument(
        "--n_iter",
        type=int,
        default=defaults.iterations,
        help=f"how many times n_samples images of each prompt ({defaults.iterations})",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to put it (nothing is overwritten)")
    group.add_argument("--outdir", metavar="DIR", default="outputs/txt2img-samples")
    group.add_argument("--skip_grid", action="store_true", help="no grid for each prompt")
    group.add_argument("--skip_save", action="store_true", help="no single images")
    group.add_argument("--n_rows", type=int, default=0, help="images in a row of the grid")


def check(options: argparse.Namespace) -> None:
    """Check what can be checked without any file.

    Raises:
        UserError: a value out of range.
    """
    for flag in ("n_samples", "n_iter"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag} must be at least 1, got {getattr(options, flag)}")
    if options.n_rows < 0:
        raise UserError(f"--n_rows must be at least 0, got {options.n_rows}")
    if options.skip_grid and options.skip_save:
        raise UserError("--skip_grid and --skip_save together leave nothing to write")


def sampling_settings(options: argparse.Namespace) -> Sampling:
    """Return the sampling settings of the options; errors as `check`'s."""
    return sampling_of(
        options,
        steps="ddim_steps",
        eta="ddim_eta",
        height="H",
        width="W",
        batch_size="n_samples",
    )
