"""A questionnaire as one HTML file that works offline, with a keyboard and on a phone."""

from __future__ import annotations

from pathlib import Path

from ldm.experiments.html import data_url, render
from ldm.experiments.study.questionnaire import Question, Study
from ldm.image_io import open_rgb
from ldm.util import write_whole

TITLES = {"image": "Which looks most like these?", "text": "Which fits the text best?"}
TASKS = {
    "image": "Each page shows four images of one thing or style. Below them, choose the image "
    "that is most like them first, then the next, and so on to the least like them.",
    "text": "Each page shows a text. Below it, choose the image that fits the text best first, "
    "then the next, and so on to the one that fits least.",
}


def page(study: Study, kind: str) -> str:
    """Return the questionnaire of a kind as a complete HTML document that works without a network.

    It holds names and pixels, no models and no file names.
    """
    questions = [_question(question) for question in study.questions[kind]]
    content = {"study": study.name, "kind": kind, "questions": questions}
    return render("questionnaire.html", title=TITLES[kind], task=TASKS[kind], content=content)


def _question(question: Question) -> dict[str, object]:
    return {
        "name": question.name,
        "text": question.text,
        "examples": [data_url(open_rgb(file)) for file in question.examples],
        "choices": [
            {"name": choice.name, "picture": data_url(open_rgb(choice.image))}
            for choice in question.choices
        ],
    }


def write_pages(study: Study, folder: Path) -> dict[str, Path]:
    """Write both questionnaires into a folder and return them by kind."""
    found = {kind: folder / f"{kind}.html" for kind in study.questions}
    for kind, path in found.items():
        write_whole(path, page(study, kind))
    return found
