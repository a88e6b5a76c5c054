"""The subcommands of `scripts/user_study.py`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.evaluation import extractors
from ldm.experiments.figures.published import RANKS
from ldm.experiments.study import analysis as of
from ldm.experiments.study import rehearsal as by
from ldm.experiments.study.from_protocol import read_table, write_manifest
from ldm.experiments.study.page import write_pages
from ldm.experiments.study.questionnaire import make_study, read_key, read_manifest, write_key
from ldm.util import UserError

logger = logging.getLogger(__name__)
IMAGE_PROMPT = "A photo of *"


def make(
    *,
    manifest: str | None,
    protocol: str | None,
    output: str,
    seed: int,
    models: Sequence[str] | None,
    seeds: Sequence[int] | None,
    image_prompt: str | None,
    placeholder: Sequence[str],
) -> int:
    """Write two questionnaires and their key; from a protocol also its images."""
    folder = Path(output)
    key = folder / "key.json"
    if key.exists():
        raise UserError(f"{key} exists, and answers may need it: give another --output")
    source: str | Path | None = manifest
    image_prompt, placeholders = image_prompt or IMAGE_PROMPT, placeholder or ["*"]
    if protocol:
        cells = read_table(Path(protocol), models or list(RANKS), seeds or ())
        asked = cells[0].cell.score  # all have the same prompts
        image_prompt, placeholders = asked["image_prompt"], [asked["placeholder"]]
        source = write_manifest(cells, folder / "pictures")
        logger.info("%s: the images of %d cells", source, len(cells))
    assert source is not None
    images = read_manifest(source)
    study = make_study(images, seed=seed, image_prompt=image_prompt, placeholders=placeholders)
    for kind, path in write_pages(study, folder / "questionnaires").items():
        logger.info("%s: %d questions", path, len(study.questions[kind]))
    write_key(key, study)
    logger.info("%s: which model generated each image; keep it to yourself", key)
    return 0


def rehearse(
    *,
    key: str,
    scorer: str,
    participants: int,
    temperature: float | None,
    seed: int,
    output: str,
) -> int:
    """Write an extractor's answers."""
    folder = Path(output)
    by.check_answers_folder(folder)
    study = read_key(key)
    images = by.open_images(study)
    extractor = extractors.find_extractor(scorer)
    answers = by.rehearse(
        study,
        by.score_choices(study, images, extractor),
        extractors.extractor_facts(scorer, extractor),
        participants=participants,
        temperature=temperature or by.TEMPERATURE,
        seed=seed,
    )
    files = by.write_answers(folder, answers)
    logger.info("%s: %d files of answers by %s", folder, len(files), answers[0]["answered_by"])
    logger.warning("these are no people's answers, and say nothing about what people see")
    return 0


def analyse(*, answers: Sequence[str], key: str, output: str) -> int:
    """Write ranks.csv, ranks.png and ranks.pdf, and log the ranks and who answered."""
    folder = Path(output)
    study = read_key(key)
    found = of.read_answers(study, answers)
    ranks, counts = of.analyse(study, found), of.participants(found)
    folder.mkdir(parents=True, exist_ok=True)
    caveat = of.caveat(found)
    of.write_ranks(folder / "ranks.csv", ranks, counts, caveat)
    of.save_plot(ranks, [folder / "ranks.png", folder / "ranks.pdf"], caveat)
    if caveat:
        logger.warning("a rehearsal: %s", caveat)
    who = "simulated participants" if caveat else "participants"
    numbers = (counts[kind] for kind in ("text", "image", "both"))
    logger.info("%s: %d by text, %d by images, %d both", who, *numbers)
    width = max(len(r.model) for r in ranks)
    for r in ranks:
        logger.info("%-*s  text %.2f  image %.2f", width, r.model, r.text, r.image)
    if any(r.ellipse is None for r in ranks):
        logger.warning("no ellipses: they need at least three participants of each questionnaire")
    logger.info("%s", folder / "ranks.csv")
    return 0
