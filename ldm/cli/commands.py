"""The commands, each a function without arguments: scripts and the installed `ldm-*` call them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ldm.util import cli_main


def _command(module: str, defaults: str = "") -> Callable[[], None]:
    """Return a function that imports a command's module and runs its `main`.

    `defaults` names the argument of `main` in the same module.
    """

    def main() -> int | None:
        found = import_module(f"ldm.cli.{module}")
        return found.main(*([getattr(found, defaults)] if defaults else []))

    return lambda: cli_main(main)


train = _command("train")
txt2img = _command("txt2img", "LATENT_DIFFUSION")
stable_txt2img = _command("txt2img", "STABLE_DIFFUSION")
img2img = _command("img2img")
merge = _command("merge")
convert_model = _command("convert_model")
convert_embedding = _command("convert_embedding")
evaluate = _command("evaluate")
select = _command("select")
edit = _command("edit")
invert = _command("invert")
demo = _command("demo")
figures = _command("figures")
protocol = _command("protocol")
user_study = _command("user_study")
benchmark = _command("benchmark")
