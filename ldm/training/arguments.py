"""The command line of `main.py`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from ldm.util import Parser, UserError

EXAMPLES = """examples:
  learn a word from the images in DIR, as the paper did; the model decides the configuration:
    python main.py --model models/ldm/text2img-large/model.ckpt -t --data_root DIR \\
        --init_word cat --gpus 0
  on the same weights from the Hub, or on Stable Diffusion:
    python main.py --model CompVis/ldm-text2im-large-256 -t --data_root DIR --init_word cat
    python main.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 -t --data_root DIR \\
        --init_word cat
  one of the paper's variants (configs/variants): pivotal tuning, two vectors, a style, ...
    python main.py --base configs/finetune.yaml --variant pivotal -t --data_root DIR \\
        --init_word cat --model models/ldm/text2img-large/model.ckpt
  independent words of several folders in one run, each as if it were alone:
    python main.py --model models/miniature -t --variant fast --data_root A B C \\
        --init_word cat dog cup
  go on with an interrupted run:
    python main.py -t --resume logs/DIR2026-01-31T12-00-00_finetune
  change any entry of the configuration:
    python main.py --base X.yaml -t data.params.batch_size=2 lightning.trainer.max_steps=500
"""

# An entry of the configuration and its value. Options whose value may be left out would take it.
OVERRIDE = re.compile(r"(--)?\w+(\.[\w-]+)+=")

# Handed to the Lightning trainer as they are; `lightning.trainer.NAME=VALUE` reaches the rest.
TRAINER_FLAGS = {
    "max_steps": int,
    "max_epochs": int,
    "accumulate_grad_batches": int,
    "accelerator": str,
    "devices": str,
    "num_nodes": int,
    "strategy": str,
    "precision": str,
    "log_every_n_steps": int,
    "val_check_interval": int,
    "limit_val_batches": int,
    "gradient_clip_val": float,
}
PRECISION = (
    "32 (default); bf16 or fp16 cast frozen networks once and keep words in float32; auto; "
    "or Lightning's own, such as bf16-mixed"
)


def flag(text: str) -> bool:
    """Read yes/true/t/y/1 or no/false/f/n/0."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument(
        "-b", "--base", nargs="*", metavar="YAML", default=[], help="configurations, merged"
    )
    group.add_argument(
        "--variant",
        nargs="+",
        action="extend",
        metavar="NAME",
        default=[],
        help="lay configs/variants/NAME.yaml over them",
    )
    group.add_argument(
        "-t", "--train", type=flag, nargs="?", const=True, default=False, help="train"
    )
    group.add_argument(
        "--no-test", type=flag, nargs="?", const=True, default=False, help="no test at the end"
    )
    group.add_argument(
        "-r", "--resume", metavar="PATH", default="", help="log folder or checkpoint to go on from"
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="check all, take one step, say what a run would do, and write nothing",
    )
    group.add_argument("-s", "--seed", type=int, help="seed of everything random (default 23)")
    group.add_argument(
        "--scale_lr",
        type=flag,
        nargs="?",
        const=True,
        help="rate = accumulation x GPUs x batch x base_learning_rate (default true)",
    )
    group.add_argument("--threads", type=int, help="CPU threads of torch")
    group.add_argument(
        "-d", "--debug", type=flag, nargs="?", const=True, default=False, help="full error traces"
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the log folder, LOGDIR/<data><date>_<name><postfix>")
    group.add_argument("-l", "--logdir", default="logs", help="parent of log folders (logs)")
    group.add_argument("-n", "--name", default="", help="name of the run")
    group.add_argument("-p", "--project", default="", help="parent folder inside LOGDIR")
    group.add_argument("-f", "--postfix", default="", help="text after the name")
    group.add_argument(
        "--datadir_in_name",
        type=flag,
        nargs="?",
        const=True,
        default=True,
        help="begin with the data folder's name (default true)",
    )


def _add_word(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("learning a word")
    group.add_argument(
        "--data_root",
        nargs="+",
        metavar="DIR",
        default=[],
        help="folder of training images; several folders teach independent words in one run",
    )
    group.add_argument(
        "--second_root", metavar="DIR", default="", help="of the second word's (variant joint)"
    )
    group.add_argument(
        *("--model", "--actual_resume"),
        dest="actual_resume",
        metavar="MODEL",
        default="",
        help="a .ckpt or .safetensors file, a folder of diffusers, or a Hub name; without --base "
        "it decides the configuration",
    )
    group.add_argument(
        "--embedding_manager_ckpt", metavar="FILE", default="", help="words to start from"
    )
    group.add_argument(
        "--placeholder_string", nargs="+", metavar="WORD", default=[], help="the new word (*)"
    )
    group.add_argument(
        "--init_word", nargs="+", metavar="WORD", default=[], help="its first value; one for each"
    )
    group.add_argument("--templates", metavar="FILE", default="", help="captions, one a line")
    group.add_argument("--captions", action="store_true", help="use image.txt beside image.jpg")
    group.add_argument("--center_crop", action="store_true", help="crop, do not squash")
    group.add_argument(
        "--skip_bad", action="store_true", help="go without images that cannot be read"
    )
    group.add_argument("--num_workers", type=int, help="processes that load images")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `main.py`."""
    parser = Parser(
        prog="main.py",
        description="Train a model from a configuration, or teach a frozen one a new word.",
        epilog=EXAMPLES,
    )
    _add_run(parser)
    _add_word(parser)
    _add_folder(parser)
    group = parser.add_argument_group("the trainer (Lightning)")
    group.add_argument("--gpus", metavar="LIST", help="GPU numbers, as 0 or 0,1")
    for name, kind in TRAINER_FLAGS.items():
        text = PRECISION if name == "precision" else None
        group.add_argument(f"--{name}", type=kind, metavar=kind.__name__.upper(), help=text)
    parser.add_argument_group("overrides", "any a.b=c sets that entry of the configuration")
    return parser


def _part(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Return (the rest, the overrides); what an option needs as its value is no override."""
    needing = {
        name for action in parser._actions if action.nargs is None for name in action.option_strings
    } | {"--data_root"}
    rest: list[str] = []
    overrides: list[str] = []
    for before, text in zip(["", *argv], argv, strict=False):
        wanted = OVERRIDE.match(text) and before not in needing
        (overrides if wanted else rest).append(text)
    return rest, [text.removeprefix("--") for text in overrides]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; every "a.b=c", wherever it stands, goes to the list `overrides`.

    Raises UserError where an argument is unknown, or has no value that serves.
    """
    parser = build_parser()
    rest, overrides = _part(sys.argv[1:] if argv is None else argv, parser)
    options, strangers = parser.parse_known_args(rest)
    for text in strangers:
        if text.startswith("-") or "=" not in text:
            raise UserError(f"unknown argument {text!r}: see --help; overrides are written a.b=c")
    options.overrides = [*overrides, *strangers]
    options.data_roots = options.data_root
    options.data_root = options.data_roots[0] if options.data_roots else ""
    return options
