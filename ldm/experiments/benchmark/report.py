"""The benchmark's results: the machine, medians with their spread, ratios, and the page."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ldm.experiments.tables import markdown
from ldm.util import UserError, write_json, write_whole

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
JSON = "benchmark.json"
Results = dict[str, Any]


def machine(device: str, threads: int | None) -> dict[str, Any]:
    """Describe the machine and its load by other programs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    found = {name.strip(): value for name, value in found.items()}
    flags = found.get("flags", "").split()
    return {
        "cpu": found.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "threads": threads or torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and largest of values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def slope(points: Mapping[float, float]) -> float:
    """Return the least-squares slope of log y over log x: 1 for y ∝ x, 0 for a constant."""
    xs, ys = [math.log(x) for x in points], [math.log(y) for y in points.values()]
    return statistics.linear_regression(xs, ys).slope


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def read(folder: Path) -> Results:
    """Return the results of earlier calls; nothing if there are none."""
    path = folder / JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(folder: Path, results: Results, page: Path | None) -> None:
    """Write the results as JSON, and the tables into the page between its marks, or UserError."""
    write_json(folder / JSON, results, indent=1)
    text = tables(results)
    write_whole(folder / "benchmark.md", text)
    if page is None:
        return
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise UserError(f"{page}: expected the marks {BEGIN} and {END}, once each")
    head, tail = before.split(BEGIN)[0], before.split(END)[1]
    write_whole(page, f"{head}{BEGIN}\n{text}{END}{tail}")


def tables(results: Results) -> str:
    """Return all results as Markdown."""
    parts = []
    for found in results.values():
        lines = [f"### {found['title']}", "", _machine(found["machine"]), ""]
        rows = _sides(found) if "sides" in found else found["rows"]
        rule = "|---|" + "---:|" * (len(rows[0]) - 1)
        parts.append(
            "\n".join([*lines, markdown(list(rows[0]), [list(r.values()) for r in rows], rule)])
        )
    return "\n".join(parts)


def _machine(facts: Mapping[str, Any]) -> str:
    instructions = ", ".join(facts["instructions"]) or "-"
    load = f"load by other programs before and after: {facts['load_before']}"
    if "load_after" in facts:
        load += f" and {facts['load_after']}"
    where = "" if facts["device"] == "cpu" else f"{facts['device']}; "
    return (
        f"{where}{facts['cpu']}, {facts['cores']} cores ({instructions}), {facts['threads']} "
        f"threads; torch {facts['torch']}, diffusers {facts['diffusers']}; {facts['date']}; {load}."
    )


def _sides(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of each side; ratios are relative to the first side, and above 1 is slower."""
    rows: list[dict[str, str]] = []
    first = next(iter(found["sides"].values()))
    for name, side in found["sides"].items():
        step = side["step"]
        row = {
            "side": name,
            "step": _seconds(step["median"]),
            "least to largest": f"{_seconds(step['min'])} to {_seconds(step['max'])}",
            "on the clock": _seconds(side["wall"]["median"]),
            "ratio": f"{step['median'] / first['step']['median']:.2f}",
            "TFLOP": f"{side['flops'] / 1e12:.3g}",
            "of a product's speed": f"{side['share']:.0%}",
            "peak memory": f"{side['peak'] / 2**30:.1f} GiB",
            "generation": "-",
            "cosine of the word's gradient": f"{side['cosine']:.4f}" if "cosine" in side else "-",
        }
        if "generation" in side:
            row["generation"] = _seconds(side["generation"]["median"])
        rows.append(row)
    return rows


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
