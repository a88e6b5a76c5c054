"""The analysis of the user study's answers: each model's mean ranks and their 95% ellipse.

A person's answers are not independent, so the unit is the participant: the mean over a
participant's questions is one observation. The two questionnaires are paired by the participant's
code where both were answered; a participant who answered only one of them counts for that one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ldm.experiments.figures.style import marker
from ldm.experiments.study.questionnaire import KINDS, Study
from ldm.util import UserError, at_least, write_table, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.float64]
FORMAT = "ldm-study-answers"
LEVEL = 0.95


@dataclass(frozen=True)
class Answers:
    """One answered questionnaire of a kind.

    Attributes:
        participant: the code given, in small letters.
        scores: question → model → score, from the number of models (best) to 1.
        answered_by: the extractor that answered; empty for people.
    """

    kind: str
    participant: str
    scores: Mapping[str, Mapping[str, int]]
    answered_by: str = ""


class Ellipse(NamedTuple):
    """The region of a model's true mean ranks, with 95% confidence.

    Attributes:
        major, minor: half axes, in ranks.
        angle: of the major axis, in degrees from the axis of text ranks towards that of images.
    """

    major: float
    minor: float
    angle: float


@dataclass(frozen=True)
class ModelRanks:
    """A model's result.

    Attributes:
        text, image: mean ranks; the number of models is best, 1 worst.
        covariance: of these two means, [2, 2], text first; NaN where fewer than two participants
            answered one of the questionnaires.
        ellipse: None where fewer than three participants answered one of the questionnaires.
    """

    model: str
    text: float
    image: float
    covariance: FloatArray
    ellipse: Ellipse | None


def read_answers(study: Study, paths: Sequence[str | Path]) -> list[Answers]:
    """Read answer files.

    Raises UserError where there is none; for one that is unreadable, damaged, incomplete, of
    another study, or given twice; for a participant who answered a questionnaire twice; for answers
    of people together with an extractor's, or of two extractors.
    """
    if not paths:
        raise UserError("no answers: give the files that the questionnaires saved")
    found: list[Answers] = []
    files: dict[tuple[str, str], str | Path] = {}
    for path in paths:
        content = _content(path)
        if content["study"] != study.name:
            raise UserError(
                f"answers {path} are of another study ({content['study']}, the key is of "
                f"{study.name}): give that study's key, or leave the file out"
            )
        answers = _answers(study, path, content)
        if found and answers.answered_by != found[0].answered_by:
            first, this = (a.answered_by or "people" for a in (found[0], answers))
            raise UserError(
                f"answers {paths[0]} are by {first} and {path} by {this}: analyse them apart"
            )
        who = (answers.kind, answers.participant)
        if who in files:
            raise UserError(
                f"answers {path} and {files[who]} are both of participant {answers.participant!r} "
                f"to the {answers.kind} questionnaire: leave one out, or change its participant"
            )
        files[who] = path
        found.append(answers)
    return found


def _content(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if content["format"] != FORMAT:
            raise KeyError
        texts = [content[key] for key in ("study", "questionnaire", "participant")]
        texts.append(content.get("answered_by", ""))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
    except OSError as error:
        raise UserError(f"answers {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"answers {path} is no file of answers: give what a questionnaire saved"
        ) from error
    return dict(content)


def _answers(study: Study, path: str | Path, content: Mapping[str, Any]) -> Answers:
    kind = content["questionnaire"]
    scores: dict[str, dict[str, int]] = {}
    try:
        questions = {question.name: question for question in study.questions[kind]}
        for entry in content["rankings"]:
            model_of = {c.name: c.model for c in questions[entry["question"]].choices}
            if sorted(entry["ranking"]) != sorted(model_of):
                raise ValueError
            best = len(model_of)
            ranked = {model_of[name]: best - i for i, name in enumerate(entry["ranking"])}
            scores[entry["question"]] = ranked
        if set(scores) != set(questions):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"answers {path} do not rank every image of every question: finish the questionnaire "
            "and save them again, or leave the file out"
        ) from error
    by = content.get("answered_by", "")
    return Answers(kind, content["participant"].strip().lower(), scores, by)


def caveat(answers: Sequence[Answers]) -> str:
    """Return the caveat of results without answers of people; empty if people answered."""
    by = answers[0].answered_by
    return f"rankings by {by}, not by people" if by else ""


def analyse(study: Study, answers: Sequence[Answers]) -> list[ModelRanks]:
    """Return each model's mean ranks, by name; UserError where a questionnaire has no answers."""
    for kind in KINDS:
        if not any(a.kind == kind for a in answers):
            raise UserError(f"no answers to the {kind} questionnaire: give some of both")
    return [_ranks_of(model, answers) for model in study.models]


def _ranks_of(model: str, answers: Sequence[Answers]) -> ModelRanks:
    means = {
        kind: {
            a.participant: float(np.mean([ranks[model] for ranks in a.scores.values()]))
            for a in answers
            if a.kind == kind
        }
        for kind in KINDS
    }
    text, image = (float(np.mean(list(means[kind].values()))) for kind in ("text", "image"))
    covariance = covariance_of_means(means["text"], means["image"])
    n = min(map(len, means.values()))
    return ModelRanks(model, text, image, covariance, ellipse_of(covariance, n) if n > 2 else None)


def covariance_of_means(first: Mapping[str, float], second: Mapping[str, float]) -> FloatArray:
    """Return the covariance of two means over participants, [2, 2].

    Each argument has an observation of each participant. Var(x̄) = s²_x/n_x. Of the participants, m
    are in both: Cov(x̄, ȳ) = m·r·s_x·s_y/(n_x·n_y), r being their correlation, 0 where fewer than
    three are in both. With everyone in both this is the covariance of the paired observations
    divided by n.
    """
    sizes = np.array([len(first), len(second)], dtype=np.float64)
    if sizes.min() < 2:
        return np.full((2, 2), np.nan)
    spreads = np.array([np.std(list(values.values()), ddof=1) for values in (first, second)])
    both = sorted(set(first) & set(second))
    r = 0.0
    if len(both) > 2:
        pairs = np.array([[first[p], second[p]] for p in both])
        if (np.ptp(pairs, axis=0) > 0).all():
            r = float(np.corrcoef(pairs.T)[0, 1])
    off = len(both) * r * spreads.prod() / sizes.prod()
    variances = spreads**2 / sizes
    return np.array([[variances[0], off], [off, variances[1]]])


def ellipse_of(covariance: FloatArray, n: int, level: float = LEVEL) -> Ellipse:
    """Return the confidence ellipse of two means: (μ − x̄)ᵀ C⁻¹ (μ − x̄) ≤ T².

    T² is Hotelling's, 2(n−1)/(n−2)·F, F being the quantile of the F distribution with 2 and n − 2
    degrees of freedom; with 2 in the numerator it has a closed form, and T² = (n−1)·(α^(−2/(n−2)) −
    1) with α = 1 − level. For many participants this is χ²'s −2·ln α, 5.99. C is [2, 2], of the
    means; n, of the participants, is at least 3.
    """
    at_least(3, n=n)
    bound = (n - 1) * math.expm1(-2 / (n - 2) * math.log(1 - level))
    values, vectors = np.linalg.eigh(covariance)
    half = np.sqrt(bound * np.maximum(values, 0.0))
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1])) % 180.0
    return Ellipse(float(half[1]), float(half[0]), angle)


def participants(answers: Sequence[Answers]) -> dict[str, int]:
    """Return how many answered each questionnaire, and how many `both`."""
    people = {kind: {a.participant for a in answers if a.kind == kind} for kind in KINDS}
    both = set.intersection(*people.values())
    return {**{kind: len(names) for kind, names in people.items()}, "both": len(both)}


def write_ranks(
    path: Path, ranks: Sequence[ModelRanks], counts: Mapping[str, int], caveat: str = ""
) -> None:
    """Write results as CSV, a row a model; each says in its last column what `caveat` says."""
    header = (
        *("model", "text", "image", "var_text", "cov", "var_image"),
        *("half_major", "half_minor", "angle_degrees"),
        *("participants_text", "participants_image", "participants_both"),
        "note",
    )
    rows: list[Sequence[object]] = [header]
    for r in ranks:
        (tt, ti), (_, ii) = r.covariance
        axes = r.ellipse or ()
        numbers = [f"{v:.6g}" for v in (r.text, r.image, tt, ti, ii, *axes)]
        numbers += [""] * (3 - len(axes))
        people = (counts[kind] for kind in ("text", "image", "both"))
        rows.append([r.model, *numbers, *people, caveat])
    write_table(path, rows)


def plot_ranks(axes: Axes, ranks: Sequence[ModelRanks], styles: Mapping[str, Any]) -> None:
    """Plot mean ranks, text to the right, with their ellipses; a model's style has a color."""
    from matplotlib.patches import Ellipse as Patch

    for r in ranks:
        style = styles[r.model]
        axes.plot(r.text, r.image, **style, zorder=3)
        if r.ellipse is not None:
            size, angle = (2 * r.ellipse.major, 2 * r.ellipse.minor), r.ellipse.angle
            looks: Any = {"color": style["color"], "alpha": 0.25, "lw": 0}
            axes.add_patch(Patch((r.text, r.image), *size, angle=angle, **looks))
    axes.autoscale_view()


def save_plot(ranks: Sequence[ModelRanks], paths: Sequence[Path], caveat: str = "") -> None:
    """Plot mean ranks, as the paper's figure 10b, into each of the files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    looks = {r.model: marker(i) for i, r in enumerate(ranks)}
    plot_ranks(
        axes, ranks, {m: {**own, "label": m, "linestyle": "none"} for m, own in looks.items()}
    )
    n = len(ranks)
    axes.set_xlabel(f"mean rank by text ({n} is best)")
    axes.set_ylabel(f"mean rank by training images ({n} is best)")
    axes.set_title(caveat, fontsize=9)
    axes.margins(0.15)
    axes.legend(frameon=False, fontsize=8)
    for path in paths:
        write_whole(path, lambda part: figure.savefig(part, dpi=200))
