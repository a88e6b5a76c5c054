"""A figure's files: PNG and PDF, the numbers as CSV, and the command that made them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.style import house_style
from ldm.experiments.tables import csv_text
from ldm.image_io import write_image
from ldm.util import write_whole

SUFFIXES = (".png", ".pdf", ".csv", ".txt")


def save(
    figure: Figure, rendered: Rendered, folder: Path, command: str, facts: Mapping[str, Any]
) -> list[Path]:
    """Write and return a figure's files: PNG, PDF, CSV, and a text with command, notes and facts.

    `command` makes the figure again; `facts` are the settings that decide it, as plain values.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every letter that it keeps
    png, pdf, table, text = (folder / f"{figure.stem}{suffix}" for suffix in SUFFIXES)
    title = f"Figure {figure.name}: {figure.title}"
    with house_style():
        whole = io.BytesIO()
        rendered.canvas.savefig(whole, format="png", facecolor="white")
        write_png(png, Image.open(whole), {"Title": title, "Description": command})
        # Without its date the same figure gives the same file.
        dateless = {"Title": title, "Subject": command, "CreationDate": None}
        canvas = rendered.canvas
        write_whole(pdf, lambda part: canvas.savefig(part, metadata=dateless, facecolor="white"))
    rows = csv_text(rendered.columns, rendered.rows)
    write_whole(table, f"# {command}\n{rows}")
    settings = json.dumps(dict(facts), indent=2, ensure_ascii=False)
    parts = (title, command, "\n".join(rendered.notes), settings)
    write_whole(text, "\n\n".join(part for part in parts if part) + "\n")
    return [png, pdf, table, text]


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """Write an image, with `texts` about it, in 256 colours of its own: a third of the bytes."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, kmeans=2)
    write_image(few, path, pnginfo=info, optimize=True)
