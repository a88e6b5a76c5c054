"""Builds the page of commands from the parsers."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
COMMANDS = {
    "main.py": ("train", ()),
    "scripts/txt2img.py": ("txt2img", ("LATENT_DIFFUSION",)),
    "scripts/stable_txt2img.py": ("txt2img", ("STABLE_DIFFUSION",)),
    "merge_embeddings.py": ("merge", ()),
    "scripts/evaluate_model.py": ("evaluate", ()),
    "scripts/select_word.py": ("select", ()),
    "scripts/edit.py": ("edit", ()),
    "scripts/invert.py": ("invert", ()),
    "scripts/demo.py": ("demo", ()),
    "scripts/figures.py": ("figures", ()),
    "scripts/protocol.py": ("protocol", ()),
    "scripts/user_study.py": ("user_study", ()),
    "scripts/benchmark.py": ("benchmark", ()),
}


def help_of(module: str, defaults: tuple[str, ...]) -> str:
    """Return a command's help."""
    options = import_module("ldm.cli.txt2img_options")
    arguments = [getattr(options, name) for name in defaults]
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        import_module(f"ldm.cli.{module}").main(*arguments, ["--help"])
    return text.getvalue()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append every command's help to the page of commands."""
    if page.file.src_uri != "reference/commands.md":
        return markdown
    parts = [f"## {name}\n\n```text\n{help_of(*how)}```\n" for name, how in COMMANDS.items()]
    return markdown + "\n" + "\n".join(parts)
