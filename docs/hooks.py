"""Builds the pages of commands, from the scripts' own help, and of YAML keys, from the classes."""

from __future__ import annotations

import importlib
import io
import runpy
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / "main.py", *sorted((ROOT / "scripts").glob("*.py")), ROOT / "merge_embeddings.py"]


def help_of(script: Path) -> str:
    """Return a command's help."""
    text = io.StringIO()
    arguments, path = [str(script), "--help"], [str(ROOT), *sys.path]
    with (
        patch.object(sys, "argv", arguments),
        patch.object(sys, "path", path),
        redirect_stdout(text),
        suppress(SystemExit),
    ):
        runpy.run_path(str(script), run_name="__main__")
    return text.getvalue()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append every command's help to the page of commands, and all keys to that of keys."""
    if page.file.src_uri == "reference/keys.md":
        with patch.object(sys, "path", [str(ROOT), str(ROOT / "docs"), *sys.path]):
            return markdown + importlib.import_module("keys").page()
    if page.file.src_uri != "reference/commands.md":
        return markdown
    parts = [
        f"## {script.relative_to(ROOT)}\n\n```text\n{help_of(script)}```\n" for script in SCRIPTS
    ]
    return markdown + "\n" + "\n".join(parts)
