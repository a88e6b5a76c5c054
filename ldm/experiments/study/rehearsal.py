"""A rehearsal of the user study: a feature extractor answers instead of people.

It shows only that pages, key, analysis and figure work before people are asked. Its rankings repeat
the extractor's scores, and say nothing about what people see. Every answer file names the
extractor, and so do all results made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.evaluation.similarity import FeatureExtractor, pairwise_similarity
from ldm.experiments.study.analysis import FORMAT, FloatArray
from ldm.experiments.study.questionnaire import KINDS, Question, Study
from ldm.image_io import open_rgb, safe_name
from ldm.util import UserError, at_least, write_json

# The paper's own scores explain the paper's own ranks best with this: of Plackett and Luce's
# expected ranks from the cosines of figure 10a, those with temperature 0.070 (text) and 0.068
# (image) come nearest to figure 10b in the mean square. So these participants differ from CLIP's
# ranking about as much as the paper's did: a difference of 0.07 between two cosines is seen by 73
# of 100.
TEMPERATURE = 0.07

# kind → question → a score of each choice, in the question's order.
Scores = Mapping[str, Mapping[str, FloatArray]]


def open_images(study: Study) -> dict[str, Image.Image]:
    """Open every image of a study, by its file; UserError for one that is not there or damaged."""
    questions = [question for kind in KINDS for question in study.questions[kind]]
    named = [(q.examples, [choice.image for choice in q.choices]) for q in questions]
    files = dict.fromkeys(file for both in named for part in both for file in part)
    return {file: open_rgb(file) for file in files}


@torch.no_grad()
def score_choices(
    study: Study, images: Mapping[str, Image.Image], extractor: FeatureExtractor
) -> Scores:
    """Score every choice as the paper scores images, in [-1, 1].

    By images: the mean cosine with the question's training images. By text: the cosine with it.
    """

    def scores(kind: str, question: Question) -> FloatArray:
        if kind == "image":
            shown = extractor.image_features([images[file] for file in question.examples])
        else:
            shown = extractor.text_features([question.text])
        features = extractor.image_features([images[c.image] for c in question.choices])
        return np.array([pairwise_similarity(one[None], shown) for one in features])

    return {kind: {q.name: scores(kind, q) for q in study.questions[kind]} for kind in KINDS}


def rank(scores: FloatArray, temperature: float, rng: np.random.Generator) -> list[int]:
    """Sample a ranking, the best first, from Plackett and Luce's model.

    Of those not ranked yet, i comes next with a probability proportional to exp(score_i / T), with
    the temperature T above 0: towards 0 everyone agrees, towards infinity nobody does. Sorting
    score/T + Gumbel noise samples exactly this distribution.
    """
    return [int(i) for i in np.argsort(-(scores / temperature + rng.gumbel(size=len(scores))))]


def rehearse(
    study: Study,
    scores: Scores,
    by: Mapping[str, str],
    *,
    participants: int,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return answers to both questionnaires, as their pages save them.

    Participants differ by chance alone, in every question anew: people have tastes, so their
    ellipses are larger than these. The first participants answer the same however many follow.
    `scores` are those of `score_choices`; `by` is who scored, as `extractor_facts` says.
    """
    at_least(1, participants=participants)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, got {temperature}")
    settings = {"extractor": dict(by), "temperature": temperature, "seed": seed}
    made = []
    for number in range(participants):
        for k, kind in enumerate(KINDS):
            rng = np.random.default_rng((seed, number, k))
            rankings = []
            for question in study.questions[kind]:
                names = [choice.name for choice in question.choices]
                order = rank(scores[kind][question.name], temperature, rng)
                ranking = [names[i] for i in order]
                rankings.append({"question": question.name, "shown": names, "ranking": ranking})
            made.append(
                {
                    "format": FORMAT,
                    "study": study.name,
                    "questionnaire": kind,
                    "participant": f"simulated {number + 1:02d}",
                    "answered_by": f"extractor {by['name']}",
                    "rehearsal": settings,
                    "rankings": rankings,
                }
            )
    return made


def check_answers_folder(folder: Path) -> None:
    """Raise UserError if the folder has answers: those of people and these must not be mixed."""
    if there := next(folder.glob("*.json"), None):
        raise UserError(f"{there} lies there already: give another --output for these answers")


def write_answers(folder: Path, answers: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write answers, a file each; return the files."""
    files = []
    for content in answers:
        who = safe_name(content["participant"])
        files.append(folder / f"answers-{content['questionnaire']}-{who}.json")
        write_json(files[-1], content, indent=1)
    return files
