"""Options of scripts/evaluate_model.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.cli.common import (
    MINIATURE,
    Parser,
    add_difference,
    add_model,
    add_words,
    sampling_of,
)
from ldm.sampling import PRECISIONS, SAMPLERS
from ldm.util import UserError

EXAMPLES = """examples:
  a word of the miniature, which comes with the project:
    python scripts/evaluate_model.py --embedding_path examples/words/teal-star.safetensors \\
        --data_root examples/concepts/teal-star
  the paper's protocol at 1.4B, with CLIP ViT-B/32 and DINO from the hub or its cache:
    python scripts/evaluate_model.py --model models/ldm/text2img-large/model.ckpt \\
        --embedding_path embeddings.safetensors --data_root DIR --dino facebook/dino-vits16
  what the paper compares with:
    python scripts/evaluate_model.py --data_root DIR --variant human_captions \\
        --captions "a teal star with yellow dots"
    python scripts/evaluate_model.py --data_root DIR --variant image_only
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options.
    """
    parser = Parser(
        prog="scripts/evaluate_model.py",
        description="Score a learned word by the paper's protocol: likeness to its training "
        "pictures and to its prompts, with 95% bootstrap intervals; writes scores.json and "
        "scores.csv.",
        epilog=EXAMPLES,
    )
    _add_what(parser)
    _add_model(parser)
    _add_how(parser)
    _add_output(parser)
    return parser.parse_args(arguments)


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to score")
    add_words(group)
    group.add_argument(
        "--data_root", metavar="DIR", required=True, help="folder of the training images"
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="of configs/variants: human_captions, image_only and prompt_only need no word",
    )
    group.add_argument(
        "--captions",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT|FILE",
        help="for human_captions; by default those beside the images",
    )
    group.add_argument("--prompts", metavar="FILE", help="a prompt a line; # begins a comment")
    group.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="one more prompt (repeatable)"
    )
    group.add_argument(
        "--image_prompt",
        metavar="TEXT",
        default="A photo of *",
        help='drawn for the image similarity ("A photo of *"); * becomes the word',
    )
    group.add_argument(
        "--placeholder",
        action="append",
        default=[],
        metavar="WORD",
        help="words that prompts name (those of the files, or *)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what draws and what scores")
    add_model(group, MINIATURE)
    add_difference(group)
    group.add_argument(
        "--extractor",
        metavar="FOLDER|NAME",
        help="CLIP that scores; by default the one beside the weights, or else "
        "openai/clip-vit-base-patch32",
    )
    group.add_argument(
        "--dino", metavar="FOLDER|NAME", help="score by DINO too, e.g. facebook/dino-vits16"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--precision", choices=PRECISIONS, default="full", help="of drawing (full)")


def _add_how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to draw and to score")
    group.add_argument("--pictures", type=int, default=64, help="of each prompt (64)")
    group.add_argument("--steps", type=int, default=50, help="sampling steps, 1..1000 (50)")
    group.add_argument("--sampler", choices=SAMPLERS, default="ddim", help="the sampler (ddim)")
    group.add_argument("--karras", action="store_true", help="Karras spacing, for few steps")
    group.add_argument("--scale", type=float, default=5.0, help="guidance (5)")
    group.add_argument("--seed", type=int, default=42, help="of the first image (42)")
    group.add_argument(
        "--batch_size", type=int, default=0, help="pictures at a time; 0, the default, fits them"
    )
    group.add_argument(
        "--resamples", type=int, default=1000, help="of the images, for the intervals (1000)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to put it")
    group.add_argument(
        "--output", metavar="DIR", help="folder of the results (outputs/evaluation/NAME)"
    )
    group.add_argument("--name", help="in the results (the word's file, or the variant)")
    group.add_argument("--save_pictures", action="store_true", help="keep what was drawn")
    group.add_argument("--again", action="store_true", help="replace scores that are there")


def check(options: argparse.Namespace) -> None:
    """Check what can be checked without any file.

    Raises:
        UserError: a value out of range.
    """
    check_drawing(options)
    if options.resamples < 1:
        raise UserError(f"--resamples must be at least 1, got {options.resamples}")


def check_drawing(options: argparse.Namespace) -> None:
    """Check how images are to be drawn; errors as `check`'s."""
    for flag, least in (("pictures", 1), ("batch_size", 0)):
        if getattr(options, flag) < least:
            raise UserError(f"--{flag} must be at least {least}, got {getattr(options, flag)}")
    sampling_of(options)
