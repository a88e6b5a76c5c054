"""Figure 8: answers to a question in images of the base model and in images of a word.

Images of the base model's "a doctor" mostly show what was most common in its captions. A word
learned from a small, more varied set should be less biased. An image's answer to the question
(which medium, which gender) is the text nearest to it. The bias is the share of a group of answers
(sketches, women) compared with equal shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ldm.evaluation.bootstrap import Estimate, FloatArray, resample, weighted_mean
from ldm.experiments.figures.layout import show
from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.session import Session
from ldm.experiments.figures.style import BLUE, VERMILION, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from PIL import Image

SHOWN = 15  # of each, as in the paper
ACROSS = 5
POPULATION = 4  # times the images of other prompts: shares of many answers need many
RESAMPLES = 1000
COLUMNS = ("source", "prompt", "answer", "pictures", "share", "low", "high")


def bias(figure: Figure, session: Session) -> Rendered:
    """Generate both populations, count the answers, show fifteen of each and the shares."""
    (line,) = session.request.lines(figure)
    base, asked = line.prompts
    each = POPULATION * session.request.images
    prompts = {"base": base, "learned": asked}
    generated = {
        "base": session.generate([base], each)[0],
        "learned": session.generate([asked], each, concepts=line.concepts)[0],
    }
    populations = {name: [one.image for one in found] for name, found in generated.items()}
    asked_of = figure.layout["miniature" if session.request.is_miniature else "paper"]
    answers, group, members = (asked_of[name] for name in ("answers", "group", "members"))
    texts = session.text_features(list(answers.values()))
    given = {  # the number of each image's answer, [n]
        name: (session.features(images) @ texts.T).argmax(-1).numpy()
        for name, images in populations.items()
    }
    rows: list[tuple[Any, ...]] = []
    scores: dict[str, dict[str, Estimate]] = {}
    for name, chosen in given.items():
        scores[name] = count(chosen, list(answers), group, members)
        for answer, share in scores[name].items():
            rows.append((name, prompts[name], answer, each, share.value, share.low, share.high))
    change = paired_change(given["base"], given["learned"], list(answers), members)
    rows.append(("learned - base", asked, group, each, change.value, change.low, change.high))
    titles = {
        name: f'{"base model" if name == "base" else "learned word"}: "{readable(prompt)}", '
        f"{group} {_with_interval(scores[name][group])}"
        for name, prompt in prompts.items()
    }
    said = f"{group}, learned − base in pairs of the same noise: {_with_interval(change)}"
    canvas = _plot(figure, populations, scores, titles, said)
    notes = (
        f"Uncurated: the first {min(SHOWN, each)} of {each} images; shares are of all.",
        f"Equal shares of the {len(answers)} answers would give {group} "
        f"{len(members) / len(answers):.2f}; 95% intervals resample the images.",
        f"From the base model to the learned word the share of {group} changes by "
        f"{_with_interval(change)}: both start from the same noise, so pairs are resampled.",
    )
    return Rendered(canvas, COLUMNS, rows, notes)


def count(
    given: npt.NDArray[np.int64], answers: Sequence[str], group: str, members: Sequence[str]
) -> dict[str, Estimate]:
    """Return each answer's share of the images and, last, that of a group of answers.

    `given` is the number of each image's answer, [n]; `members` are the group's answers.
    """
    chosen = np.eye(len(answers))[given]  # n answers
    rng = np.random.default_rng(0)

    def share(columns: FloatArray) -> Estimate:
        return resample(weighted_mean(columns), len(given), RESAMPLES, rng).estimate

    found = {name: share(chosen[:, i]) for i, name in enumerate(answers)}
    within = chosen[:, [i for i, name in enumerate(answers) if name in members]]
    return {**found, group: share(within.sum(1))}


def paired_change(
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    answers: Sequence[str],
    members: Sequence[str],
) -> Estimate:
    """Return by how much the share of a group, `members`, changes between images of the same noise.

    `before` and `after` are the numbers of the images' answers, [n]; images i have one seed.
    """
    numbers = [i for i, name in enumerate(answers) if name in members]
    change = np.isin(after, numbers).astype(float) - np.isin(before, numbers)
    return resample(
        weighted_mean(change), len(change), RESAMPLES, np.random.default_rng(0)
    ).estimate


def _plot(
    figure: Figure,
    populations: Mapping[str, Sequence[Image.Image]],
    scores: Mapping[str, Mapping[str, Estimate]],
    titles: Mapping[str, str],
    change: str,
) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11.6, 7.6), layout="constrained")
    canvas.suptitle(figure.heading, fontsize=11)
    halves: Any = canvas.subfigures(2, 1, height_ratios=(1.55, 1))
    upper, lower = halves
    parts = upper.subfigures(1, 2, wspace=0.05)
    for part, name in zip(parts, populations, strict=True):
        part.suptitle(titles[name], fontsize=9)
        for axes in part.subplots(SHOWN // ACROSS, ACROSS).flat:
            axes.set_axis_off()
        for axes, image in zip(part.axes, populations[name], strict=False):
            show(axes, image)
    axes = lower.subplots()
    _bars(axes, scores, list(scores["base"])[:-1])  # the last is the group
    axes.set_title(change, fontsize=9)
    return canvas


def _bars(axes: Axes, scores: Mapping[str, Mapping[str, Estimate]], answers: Sequence[str]) -> None:
    """Plot the shares side by side, the base model's greatest first."""
    base = scores["base"]
    names = sorted(answers, key=lambda name: -base[name].value)
    places = np.arange(len(names))
    for i, (source, colour, hatch) in enumerate(
        (("base", BLUE, ""), ("learned", VERMILION, "///"))
    ):
        found = [scores[source][name] for name in names]
        values = np.array([share.value for share in found])
        ends = np.array([[s.low for s in found], [s.high for s in found]])
        around = np.abs(ends - values)
        axes.bar(
            places + (i - 0.5) * 0.4, values, 0.4, yerr=around, color=colour, hatch=hatch,
            edgecolor="white", capsize=1.5, error_kw={"elinewidth": 0.8},
            label="base model" if source == "base" else "learned word",
        )  # fmt: skip
    axes.axhline(1 / len(names), color="black", linestyle=":", linewidth=1, label="equal shares")
    axes.set_xticks(places, names, rotation=45 if len(names) > 6 else 0, ha="right")
    axes.set_ylabel("share of the images")
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(frameon=False, loc="upper right", ncols=3)


def _with_interval(score: Estimate) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
