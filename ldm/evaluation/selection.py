"""Choose by scores which of a run's saved words to keep.

At later steps the images are more like the training images and less like the prompts. The rule: of
the saved steps whose image similarity is within a tolerance of the best, the one with the best text
similarity; of equal ones the earliest. The noises and prompts differ from those that score the
chosen word afterwards; otherwise the choice would raise the score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.evaluation.evaluate import Evaluation
from ldm.util import at_least, write_json, write_table, write_whole
from ldm.words.files import read_words, write_words

COLUMNS = ("step", "image", "image_low", "image_high", "text", "text_low", "text_high", "chosen")


@dataclass(frozen=True)
class Selection:
    """A choice among saved steps.

    Attributes:
        chosen: the step.
        eligible: the steps near enough to the best image similarity, ascending.
        tolerance: largest distance from the best image similarity, in cosines.
        curve: step → its scores, ascending.
    """

    chosen: int
    eligible: tuple[int, ...]
    tolerance: float
    curve: Mapping[int, Evaluation]

    @property
    def rule(self) -> str:
        """The rule in a sentence."""
        return (
            f"the best text similarity of the steps within {self.tolerance:g} of the best image "
            "similarity"
        )


def choose(curve: Mapping[int, Evaluation], tolerance: float) -> Selection:
    """Choose a step by the rule; ValueError for no steps, or a tolerance below 0."""
    if not curve:
        raise ValueError("curve must hold at least one step, got none")
    at_least(0, tolerance=tolerance)
    steps = sorted(curve)
    least = max(found.image.value for found in curve.values()) - tolerance
    eligible = tuple(step for step in steps if curve[step].image.value >= least)
    # max gives the first of equal ones.
    chosen = max(eligible, key=lambda step: curve[step].text.value)
    return Selection(chosen, eligible, tolerance, {step: curve[step] for step in steps})


def write_best(path: Path, word: Path, selection: Selection, facts: Mapping[str, str]) -> None:
    """Copy the chosen word's file to `path`; its metadata say how it was chosen, and `facts`."""
    content, scores = read_words(word), selection.curve[selection.chosen]
    chosen = {
        "selected_by": selection.rule,
        "selected_step": str(selection.chosen),
        "selected_from": json.dumps(list(selection.curve)),
        "selected_image_similarity": f"{scores.image.value:.6f}",
        "selected_text_similarity": f"{scores.text.value:.6f}",
    }
    metadata = {**content.metadata, **chosen, **facts}
    write_words(path, content.words, content.token_ids, metadata, content.second)


def write_curve(folder: Path, selection: Selection, facts: Mapping[str, Any]) -> None:
    """Write `selection.json`, `selection.csv` and `selection.png`."""
    rows: list[Sequence[object]] = [COLUMNS]
    for step, found in selection.curve.items():
        values = [
            f"{value:.6f}"
            for score in (found.image, found.text)
            for value in (score.value, score.low, score.high)
        ]
        rows.append((step, *values, int(step == selection.chosen)))
    write_table(folder / "selection.csv", rows)
    content = {
        "chosen": selection.chosen,
        "rule": selection.rule,
        "eligible": list(selection.eligible),
        "settings": dict(facts),
        "steps": {str(step): found.to_json() for step, found in selection.curve.items()},
    }
    write_json(folder / "selection.json", content)
    plot_curve(folder / "selection.png", selection)


def plot_curve(path: Path, selection: Selection) -> None:
    """Plot both scores over the steps with intervals, the eligible steps and the chosen one."""
    from matplotlib.figure import Figure  # not pyplot, which may look for a screen

    from ldm.evaluation.plots import COLOURS

    figure = Figure(figsize=(6, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    steps = list(selection.curve)
    for axes, name, colour in zip(panels, ("image", "text"), COLOURS, strict=False):
        scores = [getattr(selection.curve[step], name) for step in steps]
        axes.plot(steps, [s.value for s in scores], color=colour, marker="o", ms=3)
        axes.fill_between(
            steps, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.2, lw=0
        )
        axes.axvline(selection.chosen, color="#444444", ls="--", lw=1)
        axes.set_ylabel(f"{name} similarity")
        axes.grid(alpha=0.25, lw=0.6)
    best = max(found.image.value for found in selection.curve.values())
    panels[0].axhspan(
        best - selection.tolerance, best, color="#8a8f98", alpha=0.25, lw=0, label="near enough"
    )
    panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title(f"step {selection.chosen} chosen", fontsize=10)
    panels[1].set_xlabel("optimizer step; bands are 95% intervals")
    write_whole(path, lambda part: figure.savefig(part, dpi=120))
