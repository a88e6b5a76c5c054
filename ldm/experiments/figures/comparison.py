"""Figures 3 and 5: the learned word compared with methods that learn nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ldm.editing.guided import from_image
from ldm.experiments.figures.layout import Cell, Row, cells_of, grid_figure
from ldm.experiments.figures.record import Figure, Line, Rendered
from ldm.experiments.figures.session import Scored, Session
from ldm.experiments.figures.style import readable
from ldm.experiments.figures.subjects import Subject
from ldm.inference import GeneratedImage, Sampling
from ldm.util import UserError
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, replace
from ldm.words.tokens import whole_words

SAMPLES = 3  # of a row, in figure 3
STRENGTH = 0.7  # of the guided initial image
COLUMNS = (
    *("concept", "row", "prompt", "drawn_from", "picture", "seed"),
    *("image_similarity", "text_similarity", "shown"),
)
OURS = "ours (S*)"


def _numbers(*asked: str, scored: Sequence[Scored], shown: int) -> list[tuple[Any, ...]]:
    """Return the table's rows of images; `asked` are concept, row and prompt."""
    return [
        (*asked, found.generated.prompt, i, *found.numbers, int(i < shown))
        for i, found in enumerate(scored)
    ]


def variations(figure: Figure, session: Session) -> Rendered:
    """Figure 3: training images, ours, the base model with long and with short captions."""
    lines = session.request.lines(figure)
    each = min(SAMPLES, session.request.images)
    cells: dict[str, list[Cell]] = {}
    numbers: list[tuple[Any, ...]] = []
    for line in lines:
        (concept,), (prompt,) = line.concepts, line.prompts
        subject = session.subject(concept)
        cells.setdefault("training images", []).extend(cells_of(subject.images, each))
        for way, scored in _variations(session, line, subject, each).items():
            images = [found.generated.image for found in scored]
            cells.setdefault(way, []).extend(cells_of(images, each))
            numbers += _numbers(concept, way, prompt, scored=scored, shown=each)
    headings = [(line.shown_label, each) for line in lines]
    note = (
        "Uncurated. A row of captions has the concept's captions by turns; a concept without any "
        "leaves its places empty."
    )
    rows = [Row(*row) for row in cells.items()]
    grid = grid_figure(rows, title=figure.heading, headings=headings)
    return Rendered(grid, COLUMNS, numbers, (note,))


def _variations(
    session: Session, line: Line, subject: Subject, each: int
) -> dict[str, Sequence[Scored]]:
    (concept,), (prompt,) = line.concepts, line.prompts
    found: dict[str, Sequence[Scored]] = {OURS: session.generate_line(line, each)[0]}
    for way, captions in (("long captions", subject.long), ("short captions", subject.short)):
        texts = [_in_place(prompt, captions[i % len(captions)]) for i in range(each) if captions]
        images = session.generate_texts(texts) if texts else []
        found[way] = session.score(images, prompt, concept) if images else ()
    return found


def comparison(figure: Figure, session: Session) -> Rendered:
    """Figure 5: one image a prompt by each way, for every concept side by side."""
    lines = session.request.lines(figure)
    each = session.request.images
    cells: dict[str, list[Cell]] = {}
    numbers: list[tuple[Any, ...]] = []
    notes = [
        f"The first of {each} images a prompt, all of which are scored; not curated.",
        f"Guided initial image: a training image noised to {STRENGTH:.0%} of the sampler's steps "
        "(SDEdit), generated with the initializer word.",
    ]
    subjects = [_complete(session.subject(line.concepts[0])) for line in lines]
    for line, subject in zip(lines, subjects, strict=True):
        cells.setdefault("training images", []).extend(cells_of(subject.images, len(line.prompts)))
        nearest = nearest_word(session, subject)
        notes.append(
            f"{subject.name}: the nearest known word, the initializer word apart, is {nearest!r}."
        )
        for way, generated in _ways(session, line, subject, nearest).items():
            for prompt, found in zip(line.prompts, generated, strict=True):
                scored = session.score(found, prompt, subject.name)
                # In the other rows a text takes the word's place in one prompt.
                own = scored[0].generated.prompt if prompt == line.prompts[0] else ""
                title = readable(prompt) if way == OURS else own
                cells.setdefault(way, []).append(Cell(scored[0].generated.image, title))
                numbers += _numbers(subject.name, way, prompt, scored=scored, shown=1)
    headings = [(line.shown_label, len(line.prompts)) for line in lines]
    rows = [Row(*row) for row in cells.items()]
    grid = grid_figure(rows, title=figure.heading, headings=headings)
    return Rendered(grid, COLUMNS, numbers, tuple(notes))


def _complete(subject: Subject) -> Subject:
    """Return a subject; UserError where it has no initializer word or no caption."""
    if not subject.initializer_word:
        raise UserError(
            f"nothing says which word {subject.name!r} started from: learn it with an "
            "initializer word, or add it to concepts.json"
        )
    if not subject.long and not subject.short:
        raise UserError(
            f"concept {subject.name!r} has no captions: write a text file beside its images"
        )
    return subject


def _ways(
    session: Session, line: Line, subject: Subject, nearest: str
) -> dict[str, list[list[GeneratedImage]]]:
    """Return each row's images, by prompt."""
    each, prompts = session.request.images, line.prompts

    def plainly(word: str) -> list[list[GeneratedImage]]:
        return session.generate([_in_place(prompt, word) for prompt in prompts], each)

    return {
        OURS: session.generate(prompts, each, concepts=line.concepts),
        "initializer word alone": plainly(subject.initializer_word),
        "nearest word": plainly(nearest),
        "caption": plainly((*subject.long, *subject.short)[0]),
        "guided initial image": _guided(session, prompts, subject),
    }


def _guided(
    session: Session, prompts: Sequence[str], subject: Subject
) -> list[list[GeneratedImage]]:
    request = session.request
    sampling = Sampling(steps=request.steps, scale=request.scale, seed=request.seed, batch_size=0)
    start = partial(from_image, session.model, subject.images[0], sampling=sampling)
    texts = [_in_place(prompt, subject.initializer_word) for prompt in prompts]
    return [start(text, samples=request.images, strength=STRENGTH) for text in texts]


def nearest_word(session: Session, subject: Subject) -> str:
    """Return the known word whose sentence the scorer finds nearest to the training images.

    The initializer word has its own row, so it is not among them.
    """
    known = sorted(whole_words(session.model.cond_stage_model.tokenizer))
    words = [word for word in known if word != subject.initializer_word]
    texts = session.text_features([f"a photo of a {word}" for word in words])
    centre = session.features(subject.images).mean(0)
    return words[int((texts @ centre).argmax())]


def _in_place(prompt: str, text: str) -> str:
    """Put a text in the word's place, with one article: "a photo of a *" → "a photo of an owl"."""
    article, _, rest = text.partition(" ")
    bare = rest if article in ("a", "an", "the") and rest else text
    if "a *" in prompt.lower():
        start = "an" if bare[:1] in "aeiou" else "a"
        at = prompt.lower().index("a *")
        determiner = start.capitalize() if prompt[at] == "A" else start
        return f"{prompt[:at]}{determiner} {bare}{prompt[at + 3 :]}"
    return replace(prompt, DEFAULT_PLACEHOLDER, text)
