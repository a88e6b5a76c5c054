"""The commands, each a function without arguments: scripts and the installed `ldm-*` call them."""

from __future__ import annotations

from importlib import import_module

from ldm.util import cli_main


def train() -> None:
    """Run `main.py`: train a model or learn a word."""
    _run("train")


def txt2img() -> None:
    """Run `scripts/txt2img.py`: generate images with the 1.4B model's defaults."""
    _run("txt2img", "LATENT_DIFFUSION")


def stable_txt2img() -> None:
    """Run `scripts/stable_txt2img.py`: generate images with Stable Diffusion's defaults."""
    _run("txt2img", "STABLE_DIFFUSION")


def img2img() -> None:
    """Run `scripts/img2img.py`: generate images from an image and a prompt."""
    _run("img2img")


def merge() -> None:
    """Run `merge_embeddings.py`: merge or blend files of learned words."""
    _run("merge")


def convert_model() -> None:
    """Run `scripts/convert_model.py`: write a base as one file or as a folder of diffusers."""
    _run("convert_model")


def convert_embedding() -> None:
    """Run `scripts/convert_embedding.py`: write a word in the form of another tool."""
    _run("convert_embedding")


def evaluate() -> None:
    """Run `scripts/evaluate_model.py`: score a learned word."""
    _run("evaluate")


def select() -> None:
    """Run `scripts/select_word.py`: find the best step of a run."""
    _run("select")


def edit() -> None:
    """Run `scripts/edit.py`: change an image inside a mask."""
    _run("edit")


def invert() -> None:
    """Run `scripts/invert.py`: find an image's noise and change its prompt."""
    _run("invert")


def demo() -> None:
    """Run `scripts/demo.py`: learn a word with the miniature and show the result."""
    _run("demo")


def figures() -> None:
    """Run `scripts/figures.py`: the paper's figures."""
    _run("figures")


def protocol() -> None:
    """Run `scripts/protocol.py`: the benchmark grid of the paper's variants."""
    _run("protocol")


def user_study() -> None:
    """Run `scripts/user_study.py`: make and analyse the user study."""
    _run("user_study")


def benchmark() -> None:
    """Run `scripts/benchmark.py`: compare the speed of the training loop's variants."""
    _run("benchmark")


def _run(module: str, defaults: str = "") -> None:
    """Import a command's module and run its `main`; `defaults` names its argument."""

    def main() -> int | None:
        found = import_module(f"ldm.cli.{module}")
        if not defaults:
            return found.main()
        options = import_module("ldm.cli.txt2img_options")
        return found.main(getattr(options, defaults))

    cli_main(main)
