"""The model card's table of measured and required values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.util import write_whole

BEGIN, END = "<!-- metrics: written by make miniature-eval -->", "<!-- end of metrics -->"
_PERCENT = "{:.1%}"
# Part, key, description, format, and the least required value.
_ROWS = (
    ("autoencoder", "psnr", "Autoencoder, PSNR on unseen images", "{:.2f} dB", 25.0),
    *(
        (part, key, f"{part.capitalize()}, {what}", _PERCENT, least)
        for part in ("scorer", "selector")
        for key, what, least in (
            ("shape", "shape of unseen images", 0.95),
            ("colour", "main colour (photos, paintings)", 0.90),
            ("scene", "scene", 0.90),
        )
    ),
    ("samples", "shape", "Samples from random captions, shape agreed", _PERCENT, 0.90),
    ("samples", "colour", "Samples, main colour agreed", _PERCENT, 0.85),
    ("samples", "scene", "Samples, scene agreed", _PERCENT, 0.90),
)


def _parts(metrics: Mapping[str, Any]) -> list[str]:
    lines = ["| What | Measured | Asked | Command |", "|---|---|---|---|"]
    for part, key, what, form, least in _ROWS:
        found = metrics.get(part, {})
        value = found.get("share", found).get(key)
        if value is not None:
            asked = f"≥ {form.format(least)}".replace(".0%", "%").replace(".00 dB", " dB")
            command = f"`make miniature-eval MINIATURE_ARGS='--parts {part}'`"
            lines.append(f"| {what} | {form.format(value)} | {asked} | {command} |")
    return lines


def _concepts(metrics: Mapping[str, Any]) -> list[str]:
    lines = [
        "| Concept | Learned in | Image similarity | Training images' own | Ratio "
        "| Best vocabulary word | Initializer word | Full caption | Scene seen | Concept seen "
        "| Both | Both, rendered |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, score in metrics.get("concepts", {}).items():
        seconds = metrics.get("words", {}).get(name, {}).get("seconds")
        ratio = score["image_similarity"] / score["training"]
        cells = [
            name,
            "" if seconds is None else f"{seconds:.0f} s",
            *(f"{score[key]:.3f}" for key in ("image_similarity", "training")),
            f"{ratio:.2f}",
            f"{score['best_word']:.3f} ({score['best_word_is']})",
            *(f"{score[key]:.3f}" for key in ("initializer_word", "caption")),
            *(f"{score[key]:.0%}" for key in ("scene", "concept", "both", "rendered")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def table(metrics: Mapping[str, Any]) -> str:
    """Return Markdown: the parts' numbers, then the learned words' (those that are measured)."""
    return "\n".join([*_parts(metrics), "", *_concepts(metrics)]).strip() + "\n"


def insert(text: str, card: Path) -> None:
    """Put the table between its marks in the model card; make the card if there is none."""
    block = f"{BEGIN}\n{text}{END}\n"
    old = card.read_text(encoding="utf-8") if card.is_file() else ""
    before, found, rest = old.partition(BEGIN)
    if not found:
        new = f"{old.rstrip()}\n\n{block}".lstrip()
    else:
        new = before + block + rest.partition(END)[2].lstrip("\n")
    write_whole(card, new)
