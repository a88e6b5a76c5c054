"""The command line of `main.py`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
  resume an interrupted run:
    python main.py -t --resume logs/DIR2026-01-31T12-00-00_finetune
  change any entry of the configuration:
    python main.py --base X.yaml -t data.params.batch_size=2 lightning.trainer.max_steps=500
"""

# An entry of the configuration and its value. Options whose value may be left out would take it.
OVERRIDE = re.compile(r"(--)?\w+(\.[\w-]+)+=")

# Options that the Lightning trainer gets unchanged; `lightning.trainer.NAME=VALUE` sets others.
TRAINER_FLAGS: dict[str, type] = {
    **dict.fromkeys(("max_steps", "max_epochs", "accumulate_grad_batches", "num_nodes"), int),
    **dict.fromkeys(("accelerator", "devices", "strategy", "precision"), str),
    **dict.fromkeys(("log_every_n_steps", "val_check_interval", "limit_val_batches"), int),
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


# An option that stands for true alone, and takes a value too.
FLAG: Mapping[str, Any] = {"type": flag, "nargs": "?", "const": True}
WORDS: Mapping[str, Any] = {"nargs": "+", "metavar": "WORD", "default": []}
FILE: Mapping[str, Any] = {"metavar": "FILE", "default": ""}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `main.py`."""
    parser = Parser(
        prog="main.py",
        description="Train a model from a configuration, or teach a frozen one a new word.",
        epilog=EXAMPLES,
    )
    _add_run(parser.add_argument_group("the run").add_argument)
    _add_word(parser.add_argument_group("learning a word").add_argument)
    title = "the log folder, LOGDIR/<data><date>_<name><postfix>"
    add = parser.add_argument_group(title).add_argument
    add("-l", "--logdir", default="logs", help="parent of log folders (logs)")
    add("-n", "--name", default="", help="name of the run")
    add("-p", "--project", default="", help="parent folder inside LOGDIR")
    add("-f", "--postfix", default="", help="text after the name")
    text = "begin with the data folder's name (default true)"
    add("--datadir_in_name", **FLAG, default=True, help=text)
    add = parser.add_argument_group("the trainer (Lightning)").add_argument
    add("--gpus", metavar="LIST", help="GPU numbers, as 0 or 0,1")
    for name, kind in TRAINER_FLAGS.items():
        help_text = PRECISION if name == "precision" else None
        add(f"--{name}", type=kind, metavar=kind.__name__.upper(), help=help_text)
    parser.add_argument_group("overrides", "any a.b=c sets that entry of the configuration")
    return parser


def _add_run(add: Callable[..., object]) -> None:
    add("-b", "--base", nargs="*", metavar="YAML", default=[], help="configurations, merged")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("--variant", **several, metavar="NAME", help="lay configs/variants/NAME.yaml over them")
    add("-t", "--train", **FLAG, default=False, help="train")
    add("--no-test", **FLAG, default=False, help="no test at the end")
    text = "log folder or checkpoint to resume from"
    add("-r", "--resume", metavar="PATH", default="", help=text)
    text = "check all, take one step, say what a run would do, and write nothing"
    add("--dry_run", action="store_true", help=text)
    add("-s", "--seed", type=int, help="seed of all random numbers (default 23)")
    text = "rate = accumulation x GPUs x batch x base_learning_rate (default true)"
    add("--scale_lr", **FLAG, help=text)
    add("--threads", type=int, help="CPU threads of torch")
    text = "compile the U-Net: for long runs on a GPU (default false)"
    add("--compile", **FLAG, help=text)
    add("-d", "--debug", **FLAG, default=False, help="full error traces")


def _add_word(add: Callable[..., object]) -> None:
    text = "folder of training images; several folders teach independent words in one run"
    add("--data_root", nargs="+", metavar="DIR", default=[], help=text)
    text = "folder of the second word's images (variant joint)"
    add("--second_root", metavar="DIR", default="", help=text)
    text = (
        "a .ckpt or .safetensors file, a folder of diffusers, or a Hub name; without --base it "
        "decides the configuration"
    )
    names = ("--model", "--actual_resume")
    add(*names, dest="actual_resume", metavar="MODEL", default="", help=text)
    add("--embedding_manager_ckpt", **FILE, help="words to start from")
    add("--placeholder_string", **WORDS, help="the new word (*)")
    add("--init_word", **WORDS, help="the initializer word, its first value; auto chooses one")
    add("--templates", **FILE, help="file of captions, one in each line")
    add("--captions", action="store_true", help="use image.txt beside image.jpg")
    add("--center_crop", action="store_true", help="cut out the middle square, do not squash")
    add("--skip_bad", action="store_true", help="leave out images that cannot be read")
    add("--num_workers", type=int, help="processes that load images")


def _part(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Return (other arguments, overrides); a value that an option needs is not an override."""
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
