"""Tables as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV table; floats have six places, None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in row])
    return text.getvalue()


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "") -> str:
    """Return a Markdown table; `rule`, the line below the head, aligns the columns."""
    lines = [" | ".join(columns), *(" | ".join(row) for row in rows)]
    head, *others = (f"| {line} |\n" for line in lines)
    return "".join([head, f"{rule or '|' + '---|' * len(columns)}\n", *others])
