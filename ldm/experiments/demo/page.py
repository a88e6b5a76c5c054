"""The demo's result: what was drawn and measured, as numbers and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image

from ldm.evaluation.plots import Band, Line, line_plot
from ldm.evaluation.report import (
    Block,
    Columns,
    Course,
    Fact,
    Facts,
    Page,
    Plot,
    Row,
    Section,
    Table,
    Text,
)
from ldm.experiments.demo.scores import Drawing
from ldm.miniature.measure import Concept

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows.

    Attributes:
        concept: what was learned, with its training images.
        second: (placeholder, name) of the shipped word in the composition.
        over_steps: (optimiser step, images of the plain prompt from the same noises); 0 is the
            first word.
        plain: the word alone ("a photo of *").
        drawings: the prompts.
        first_plain, first_drawings: the same with the first word in the new word's place.
        training_similarity: between the training images themselves.
        training_text_similarity: the training images against the prompts.
        curves: column of metrics.csv → (steps, values).
        steps: optimiser steps.
        seconds: what took how long; `learn` is the whole training command.
        command: the training command, to copy.
    """

    concept: Concept
    second: tuple[str, str]
    over_steps: Sequence[tuple[int, Sequence[Image.Image]]]
    plain: Drawing
    drawings: Sequence[Drawing]
    first_plain: Drawing
    first_drawings: Sequence[Drawing]
    training_similarity: float
    training_text_similarity: float
    curves: Curves
    steps: int
    seconds: Mapping[str, float]
    command: str

    @property
    def steps_per_second(self) -> float:
        """Optimiser steps a second, while training."""
        _, seconds = self.curves.get("seconds", ((), ()))
        return self.steps / (seconds[-1] if seconds and seconds[-1] else self.seconds["learn"])

    def metrics(self) -> dict[str, Any]:
        """Return what `metrics.json` holds; similarities are cosines in [-1, 1]."""
        concept = self.concept
        return {
            "concept": concept.name,
            "placeholder": concept.placeholder,
            "second": dict(zip(("placeholder", "name"), self.second, strict=True)),
            "steps": self.steps,
            "image_similarity": self.plain.image_similarity,
            "text_similarity": _mean_text(self.drawings),
            "text_similarity_of_average": fmean(
                d.text_similarity_of_average for d in self.drawings
            ),
            "first_word": {
                "word": concept.first_word,
                "image_similarity": self.first_plain.image_similarity,
                "text_similarity": _mean_text(self.first_drawings),
            },
            "training_pictures": {
                "image_similarity": self.training_similarity,
                "text_similarity": self.training_text_similarity,
            },
            "prompts": [
                {
                    "kind": drawing.kind,
                    "prompt": drawing.prompt,
                    "image_similarity": drawing.image_similarity,
                    "text_similarity": drawing.text_similarity,
                }
                for drawing in self.drawings
            ],
            "seconds": sum(self.seconds.values()),
            "seconds_of": dict(self.seconds),
            "steps_per_second": self.steps_per_second,
        }


def _mean_text(drawings: Sequence[Drawing]) -> float:
    return fmean(drawing.text_similarity for drawing in drawings)


def build_page(result: DemoResult) -> Page:
    """Lay the result out: what went in, what came out, what it scores, how it went."""
    concept = result.concept
    word = concept.placeholder
    return Page(
        title=f"A new word for {concept.words}",
        lead=(
            f"From {len(concept.pictures)} images the model learned the word {word} in "
            f"{result.steps} steps. Only the word's vector was trained, beginning at "
            f"“{concept.first_word}”; the model itself stayed as it was."
        ),
        sections=[
            Section(
                "The images it learned from, and the word alone",
                [
                    Row("Training images", concept.pictures),
                    Row(
                        result.plain.prompt,
                        result.plain.pictures[: len(result.drawings[0].pictures)],
                        "new images: none of them is in the training set",
                    ),
                    Facts(_facts(result)),
                ],
            ),
            Section(
                f"The word {word} in new sentences",
                [
                    *_prompt_rows(result),
                    Text("{} is a word learned before, {}.".format(*result.second)),
                ],
            ),
            Section(
                "While it learned",
                [
                    Text(
                        "Each line of images begins from one noise; only the word's vector "
                        f"changes from step to step. Step 0 is the word “{concept.first_word}”."
                    ),
                    Course([Row(f"step {step}", shown) for step, shown in result.over_steps]),
                ],
            ),
            Section("Scores", _scores(result)),
            Section("Curves", [Columns(_plots(result))]),
            Section("The command", [Text(result.command, is_command=True)]),
        ],
    )


def _facts(result: DemoResult) -> list[Fact]:
    share = result.plain.image_similarity / result.training_similarity
    return [
        Fact(
            f"{result.plain.image_similarity:.3f}",
            "image similarity",
            f"{share:.0%} of that between the training images",
        ),
        Fact(
            f"{_mean_text(result.drawings):.3f}",
            "text similarity",
            f"the first word has {_mean_text(result.first_drawings):.3f}",
        ),
        Fact(f"{result.seconds['learn']:.0f} s", "to learn", f"{result.steps} steps"),
        Fact(f"{result.steps_per_second:.1f}", "steps a second", "while training"),
    ]


def _prompt_rows(result: DemoResult) -> list[Block]:
    return [
        Row(
            drawing.prompt,
            drawing.pictures,
            f"{drawing.kind} · text {drawing.text_similarity:.3f} · "
            f"image {drawing.image_similarity:.3f}",
        )
        for drawing in result.drawings
    ]


def _scores(result: DemoResult) -> list[Block]:
    concept = result.concept
    rows = [
        (
            f"the learned word {concept.placeholder}",
            f"{result.plain.image_similarity:.3f}",
            f"{_mean_text(result.drawings):.3f}",
        ),
        (
            f"its first word, “{concept.first_word}”",
            f"{result.first_plain.image_similarity:.3f}",
            f"{_mean_text(result.first_drawings):.3f}",
        ),
        (
            "the training images themselves",
            f"{result.training_similarity:.3f}",
            f"{result.training_text_similarity:.3f}",
        ),
    ]
    explanation = (
        "Image similarity: mean cosine over all pairs of an image drawn from "
        f"“{result.plain.prompt}” and a training image. Text similarity: mean cosine of the "
        "prompts' images with their prompt, less the placeholders. Both in the judge's "
        "embedding space, so they compare only with each other."
    )
    return [Table(("", "image similarity", "text similarity"), rows), Text(explanation)]


def _plots(result: DemoResult) -> list[Block]:
    curves, word = result.curves, result.concept.placeholder
    plots: list[Block] = []
    if "train/loss" in curves:
        steps, loss = curves["train/loss"]
        window = max(1, len(loss) // 10)
        plots.append(
            Plot(
                line_plot([Line(steps, loss, smooth=window)], x_label="step", y_label="loss"),
                "The loss hardly tells how far the word is: most of it is the noise's own "
                "difficulty at randomly drawn timesteps.",
            )
        )
    norm = f"word/norm/{word}"
    if norm in curves:
        steps, norms = curves[norm]
        plots.append(
            Plot(
                line_plot(
                    [Line(steps, norms, f"norm of {word}")],
                    x_label="step",
                    y_label="norm of the vector",
                    bands=_vocabulary_band(curves),
                ),
                "A norm far above the vocabulary's drowns the rest of a prompt.",
            )
        )
    return plots


def _vocabulary_band(curves: Curves) -> list[Band]:
    low, high = "word/vocabulary/p05", "word/vocabulary/p95"
    if low not in curves or high not in curves:
        return []
    return [Band(curves[low][1][0], curves[high][1][0], "90% of the vocabulary")]
