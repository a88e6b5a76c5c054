"""The demo's result: its images and scores, as numbers and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image

from ldm.evaluation.plots import Band, Line, line_plot
from ldm.experiments.demo.scores import ScoredPrompt
from ldm.experiments.html import render
from ldm.miniature.measure import Concept

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows.

    Attributes:
        concept: what was learned, with its training images.
        second: (placeholder, name) of the shipped word in the composition.
        over_steps: (optimizer step, images of the plain prompt from the same noise); step 0 is the
            initializer word.
        plain: the word alone ("a photo of *").
        prompts: the word in new sentences.
        initializer_plain, initializer_prompts: the same with the initializer word in its place.
        training_similarity: between the training images themselves.
        training_text_similarity: the training images against the prompts.
        curves: column of metrics.csv → (steps, values).
        steps: optimizer steps.
        seconds: part → its time; `learn` is the whole training command.
        command: the training command, to copy.
    """

    concept: Concept
    second: tuple[str, str]
    over_steps: Sequence[tuple[int, Sequence[Image.Image]]]
    plain: ScoredPrompt
    prompts: Sequence[ScoredPrompt]
    initializer_plain: ScoredPrompt
    initializer_prompts: Sequence[ScoredPrompt]
    training_similarity: float
    training_text_similarity: float
    curves: Curves
    steps: int
    seconds: Mapping[str, float]
    command: str

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps a second, during training."""
        _, seconds = self.curves.get("seconds", ((), ()))
        return self.steps / (seconds[-1] if seconds and seconds[-1] else self.seconds["learn"])

    def metrics(self) -> dict[str, Any]:
        """Return the content of `metrics.json`; similarities are cosines in [-1, 1]."""
        concept = self.concept
        similarities = ("image_similarity", "text_similarity")
        return {
            "concept": concept.name,
            "placeholder": concept.placeholder,
            "second": dict(zip(("placeholder", "name"), self.second, strict=True)),
            "steps": self.steps,
            "image_similarity": self.plain.image_similarity,
            "text_similarity": fmean(p.text_similarity for p in self.prompts),
            "text_similarity_of_average": fmean(p.text_similarity_of_average for p in self.prompts),
            "first_word": {
                "word": concept.initializer_word,
                "image_similarity": self.initializer_plain.image_similarity,
                "text_similarity": fmean(p.text_similarity for p in self.initializer_prompts),
            },
            "training_pictures": {
                "image_similarity": self.training_similarity,
                "text_similarity": self.training_text_similarity,
            },
            "prompts": [
                {name: getattr(p, name) for name in ("kind", "prompt", *similarities)}
                for p in self.prompts
            ],
            "seconds": sum(self.seconds.values()),
            "seconds_of": dict(self.seconds),
            "steps_per_second": self.steps_per_second,
        }


def page(result: DemoResult) -> str:
    """Return the result as one HTML file."""
    return render("demo.html", result=result, plots=_plots(result))


def _plots(result: DemoResult) -> list[tuple[str, str]]:
    """Return the plots that the run has curves for: (SVG, caption)."""
    curves, norm = result.curves, f"word/norm/{result.concept.placeholder}"
    plots = []
    if "train/loss" in curves:
        steps, loss = curves["train/loss"]
        lines = [Line(steps, loss, smooth=max(1, len(loss) // 10))]
        caption = (
            "The loss hardly shows how good the word is: most of it comes from the timesteps, "
            "which are random."
        )
        plots.append((line_plot(lines, x_label="step", y_label="loss"), caption))
    if norm in curves:
        line = Line(*curves[norm], f"norm of {result.concept.placeholder}")
        low, high = "word/vocabulary/p05", "word/vocabulary/p95"
        bands = []
        if low in curves and high in curves:
            bands = [Band(curves[low][1][0], curves[high][1][0], "90% of the vocabulary")]
        svg = line_plot([line], x_label="step", y_label="norm of the vector", bands=bands)
        plots.append((svg, "A norm far above the vocabulary's weakens the rest of a prompt."))
    return plots
