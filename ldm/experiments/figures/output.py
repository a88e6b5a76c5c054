"""A figure's files: PNG and PDF, the numbers as CSV, and the command that made them."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ldm.experiments.figures.record import Drawing, Figure
from ldm.experiments.figures.style import house_style
from ldm.image_io import write_image
from ldm.util import write_whole

SUFFIXES = (".png", ".pdf", ".csv", ".txt")


def save(
    figure: Figure, drawing: Drawing, folder: Path, command: str, facts: Mapping[str, Any]
) -> list[Path]:
    """Write a figure's four files, in place of those of an earlier run.

    Args:
        figure: which.
        drawing: what its painter made.
        folder: made if it is not there.
        command: the command line that makes it again.
        facts: what decided it, as plain values.

    Returns:
        The files: PNG, PDF, CSV, and a text with command, notes and facts.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every letter it keeps
    png, pdf, table, text = (folder / f"{figure.stem}{suffix}" for suffix in SUFFIXES)
    title = f"Figure {figure.name}: {figure.title}"
    with house_style():
        whole = io.BytesIO()
        drawing.canvas.savefig(whole, format="png", facecolor="white")
        write_png(png, Image.open(whole), {"Title": title, "Description": command})
        # Without its date the same figure gives the same file.
        dateless = {"Title": title, "Subject": command, "CreationDate": None}
        canvas = drawing.canvas
        write_whole(pdf, lambda part: canvas.savefig(part, metadata=dateless, facecolor="white"))
    write_whole(table, table_text(drawing, command))
    write_whole(text, _about(title, drawing, command, facts))
    return [png, pdf, table, text]


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """Write an image in 256 colours of its own: about a third of the bytes.

    Args:
        path: the file; replaced if it exists.
        image: of any mode.
        texts: what the file says about itself.
    """
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, kmeans=2)
    write_image(few, path, pnginfo=info, optimize=True)


def table_text(drawing: Drawing, command: str) -> str:
    """Return the CSV: a comment with the command, the columns' names, the rows."""
    buffer = io.StringIO()
    buffer.write(f"# {command}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(drawing.table.columns)
    for row in drawing.table.rows:
        writer.writerow([_plain(value) for value in row])
    return buffer.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a figure's CSV by their columns' names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value


def _about(title: str, drawing: Drawing, command: str, facts: Mapping[str, Any]) -> str:
    notes = "\n".join(drawing.notes)
    settings = json.dumps(dict(facts), indent=2, ensure_ascii=False)
    return "\n\n".join(part for part in (title, command, notes, settings) if part) + "\n"
