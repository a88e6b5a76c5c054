"""Figure 10b: mean ranks of the user study with their ellipses, the paper's and ours."""

from __future__ import annotations

from typing import Any

from ldm.experiments.figures.published import LABELS, RANKS, label
from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.session import Session
from ldm.experiments.figures.style import marker
from ldm.experiments.study.analysis import (
    analyse,
    caveat,
    participants,
    plot_ranks,
    read_answers,
)
from ldm.experiments.study.questionnaire import read_key

COLUMNS = (
    *("source", "name", "text_rank", "image_rank"),
    *("half_major", "half_minor", "angle_degrees"),
)


def user_study(figure: Figure, session: Session) -> Rendered:
    """Plot the paper's mean ranks and those of the answers given."""
    from matplotlib.figure import Figure as Canvas

    request = session.request
    assert request.key is not None, "checked before"
    study = read_key(request.key)
    answers = read_answers(study, request.answers)
    ranks, counts = analyse(study, answers), participants(answers)
    names = [name for name in LABELS if name in {*RANKS, *study.models}]
    names += sorted(set(study.models) - set(names))
    look: Any = {"linestyle": "none", "markersize": 8}
    styles = {name: marker(i) | look for i, name in enumerate(names)}
    canvas = Canvas(figsize=(10.4, 4.6), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for name, rank in RANKS.items():
        left.plot(rank.text, rank.image, **styles[name])
    left.set_title("the paper, 600 answers to each questionnaire")
    plot_ranks(right, ranks, styles)
    unlike = caveat(answers)
    who = "simulated participants" if unlike else "participants"
    counted = f"{counts['image']} {who} by images and {counts['text']} by texts"
    right.set_title(f"here: {unlike}\n{counted}" if unlike else f"here, {counted}")
    for axes, best in ((left, len(RANKS)), (right, len(study.models))):
        axes.set_xlabel(f"mean rank by text ({best} is best)")
        axes.set_ylabel(f"mean rank by training images ({best} is best)")
        axes.margins(0.15)
        axes.grid(alpha=0.25)
    handles = [
        left.plot([], [], **marker(i), linestyle="none", label=label(name))[0]
        for i, name in enumerate(names)
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    canvas.suptitle(figure.heading, fontsize=11)
    notes = [
        "Ellipses hold the true mean ranks with 95% confidence; three participants are needed."
    ]
    if unlike:
        notes.insert(0, f"The right panel shows {unlike}: it says nothing about what people see.")
    source, nothing = f"here, {unlike}" if unlike else "here", (None, None, None)
    rows: list[tuple[Any, ...]]
    rows = [("paper", name, rank.text, rank.image, *nothing) for name, rank in RANKS.items()]
    rows += [(source, r.model, r.text, r.image, *(r.ellipse or nothing)) for r in ranks]
    return Rendered(canvas, COLUMNS, rows, tuple(notes))
