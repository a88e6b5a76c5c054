r"""Write a base as one file in the published (CompVis) names, or as a folder of diffusers.

Values and their types do not change.

Examples:
  the 1.4B model from the Hub as the file that the other commands take by default:
    python scripts/convert_model.py CompVis/ldm-text2im-large-256 \
        models/ldm/text2img-large/model.ckpt
  a file as a folder that diffusers' pipelines open:
    python scripts/convert_model.py v1-5-pruned-emaonly.safetensors stable-diffusion-1.5/
  a weight delta as a LoRA of rank 16 with the word, for other tools:
    python scripts/convert_model.py v1-5-pruned-emaonly.safetensors my-cat.safetensors \
        --weight_delta logs/RUN/checkpoints/weight_delta.safetensors --lora 16 \
        --embedding_path my-cat=logs/RUN/checkpoints/embeddings.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.cli.common import Parser, option
from ldm.util import UserError


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="scripts/convert_model.py", description=__doc__)
    option(parser, "source IN", "a file, a folder of diffusers or a Hub name")
    option(parser, "target OUT", "a .ckpt or .safetensors file; any other name is a folder")
    option(parser, "--config YAML", "configuration of IN; by default IN is recognized")
    text = "weight delta that tuning of IN wrote; OUT is the tuned model, or with --lora a LoRA"
    option(parser, "--weight_delta FILE", text)
    text = "write --weight_delta as a LoRA of this rank in kohya's names, and print its error"
    option(parser, "--lora RANK", text, type=int)
    text = "learned words to store in the LoRA's file, where A1111, Forge and ComfyUI read them"
    option(parser, "--embedding_path [WORD=]FILE", text)
    option(parser, "--half", "write float16, half of the size", False)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    if options.weight_delta is not None:
        return _export(options)
    if options.lora is not None or options.embedding_path is not None:
        raise UserError("--lora and --embedding_path need --weight_delta FILE")
    from ldm.checkpoint.convert import convert

    convert(options.source, options.target, options.config, options.half)
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write a tuned model or its LoRA."""
    if options.half:
        raise UserError("--half is for bases: a tuned model keeps the base's precision")
    from ldm.checkpoint.lora import export_delta
    from ldm.words.files import read_words, renamed
    from ldm.words.loading import renaming, split_items

    words = None
    if options.embedding_path is not None:
        ((path, name),) = split_items(options.embedding_path)
        words = read_words(path)
        words = renamed(words, renaming(path, words, name), path)
    source, target = options.source, options.target
    export_delta(options.weight_delta, source, target, options.config, options.lora, words)
    return 0
