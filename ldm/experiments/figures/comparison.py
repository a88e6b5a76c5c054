"""Figures 3 and 5: the learned word beside what needs no learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.editing.guided import from_image
from ldm.experiments.figures.layout import Cell, Row, draw_grid
from ldm.experiments.figures.record import Drawing, Figure, Line, Table
from ldm.experiments.figures.studio import Scored, Studio
from ldm.experiments.figures.style import readable
from ldm.experiments.figures.subjects import Subject
from ldm.inference import GeneratedImage, Sampling
from ldm.util import UserError
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, replace

SAMPLES = 3  # of a row, in figure 3
STRENGTH = 0.7  # of the guided initial image
COLUMNS = (
    *("concept", "row", "prompt", "drawn_from", "picture", "seed"),
    *("image_similarity", "text_similarity", "shown"),
)
OURS = "ours (S*)"


@dataclass(frozen=True)
class Drawn:
    """Pictures of one prompt by one way, scored against the prompt with its placeholder."""

    concept: str
    way: str
    prompt: str
    scored: Sequence[Scored]

    def numbers(self, shown: int) -> list[tuple[Any, ...]]:
        """Return the rows of the table."""
        return [
            (
                self.concept,
                self.way,
                self.prompt,
                found.picture.prompt,
                i,
                found.picture.seed,
                found.image,
                found.text,
                int(i < shown),
            )
            for i, found in enumerate(self.scored)
        ]


def variations(figure: Figure, studio: Studio) -> Drawing:
    """Figure 3: training images, ours, the base model with long and with short captions."""
    lines = studio.request.lines(figure)
    each = min(SAMPLES, studio.request.pictures)
    ways = ("training images", OURS, "long captions", "short captions")
    cells: dict[str, list[Cell]] = {way: [] for way in ways}
    numbers: list[tuple[Any, ...]] = []
    for line in lines:
        (concept,), (prompt,) = line.concepts, line.prompts
        subject = studio.subject(concept)
        given = [Cell(picture) for picture in subject.pictures[:each]]
        cells["training images"] += given + [Cell(None)] * (each - len(given))
        for way, scored in _variations(studio, line, subject, each).items():
            cells[way] += [Cell(found.picture.image) for found in scored]
            cells[way] += [Cell(None)] * (each - len(scored))
            numbers += Drawn(concept, way, prompt, scored).numbers(each)
    headings = [(line.shown_label, each) for line in lines]
    note = (
        "Uncurated. A row of captions has the concept's captions by turns; a concept without any "
        "leaves its places empty."
    )
    title = f"Figure {figure.name}. {figure.title}"
    grid = draw_grid([Row(*row) for row in cells.items()], title=title, headings=headings)
    return Drawing(grid, Table(COLUMNS, numbers), (note,))


def _variations(
    studio: Studio, line: Line, subject: Subject, each: int
) -> dict[str, Sequence[Scored]]:
    (concept,), (prompt,) = line.concepts, line.prompts
    found: dict[str, Sequence[Scored]] = {OURS: studio.draw_line(line, each)[0]}
    for way, captions in (("long captions", subject.long), ("short captions", subject.short)):
        texts = [_in_place(prompt, captions[i % len(captions)]) for i in range(each) if captions]
        pictures = studio.draw_texts(texts) if texts else []
        found[way] = studio.score(pictures, prompt, concept) if pictures else ()
    return found


def comparison(figure: Figure, studio: Studio) -> Drawing:
    """Figure 5: one image a prompt by each way, for every concept side by side."""
    lines = studio.request.lines(figure)
    each = studio.request.pictures
    cells: dict[str, list[Cell]] = {}
    numbers: list[tuple[Any, ...]] = []
    notes = [
        f"The first of {each} images a prompt, all of which are scored; not curated.",
        f"Guided initial image: a training image noised to {STRENGTH:.0%} of the sampler's steps "
        "(SDEdit), drawn with the first word.",
    ]
    subjects = [_complete(studio.subject(line.concepts[0])) for line in lines]
    for line, subject in zip(lines, subjects, strict=True):
        nearest = nearest_word(studio, subject)
        notes.append(
            f"{subject.name}: the nearest known word, the first word apart, is {nearest!r}."
        )
        for way, drawn in _ways(studio, line, subject, nearest).items():
            for prompt, pictures in zip(line.prompts, drawn(), strict=True):
                scored = studio.score(pictures, prompt, subject.name)
                # The other rows say by one prompt what stands in the word's place.
                own = scored[0].picture.prompt if prompt == line.prompts[0] else ""
                title = readable(prompt) if way == OURS else own
                cells.setdefault(way, []).append(Cell(scored[0].picture.image, title))
                numbers += Drawn(subject.name, way, prompt, scored).numbers(1)
    headings = [(line.shown_label, len(line.prompts)) for line in lines]
    given = [
        Cell(picture)
        for line, subject in zip(lines, subjects, strict=True)
        for picture in _filled(subject, len(line.prompts))
    ]
    rows = [Row("training images", given), *(Row(*row) for row in cells.items())]
    title = f"Figure {figure.name}. {figure.title}"
    grid = draw_grid(rows, title=title, headings=headings)
    return Drawing(grid, Table(COLUMNS, numbers), tuple(notes))


def _complete(subject: Subject) -> Subject:
    """Return a subject that has all that the rows need.

    Raises:
        UserError: it has no first word or no caption.
    """
    if not subject.first_word:
        raise UserError(
            f"nothing says which word {subject.name!r} started from: learn it with a first word, "
            "or add it to concepts.json"
        )
    if not subject.long and not subject.short:
        raise UserError(
            f"concept {subject.name!r} has no captions: write a text file beside its images"
        )
    return subject


def _ways(
    studio: Studio, line: Line, subject: Subject, nearest: str
) -> dict[str, Callable[[], list[list[GeneratedImage]]]]:
    """Return how each row's images are drawn."""
    caption = (*subject.long, *subject.short)[0]
    each, prompts = studio.request.pictures, line.prompts

    def plainly(word: str) -> list[list[GeneratedImage]]:
        return studio.draw([_in_place(prompt, word) for prompt in prompts], each)

    return {
        OURS: lambda: studio.draw(prompts, each, concepts=line.concepts),
        "first word alone": lambda: plainly(subject.first_word),
        "nearest word": lambda: plainly(nearest),
        "caption": lambda: plainly(caption),
        "guided initial image": lambda: _guided(studio, prompts, subject),
    }


def _guided(studio: Studio, prompts: Sequence[str], subject: Subject) -> list[list[GeneratedImage]]:
    request = studio.request
    sampling = Sampling(steps=request.steps, scale=request.scale, seed=request.seed, batch_size=0)
    return [
        from_image(
            studio.model,
            subject.pictures[0],
            _in_place(prompt, subject.first_word),
            sampling,
            samples=request.pictures,
            strength=STRENGTH,
        )
        for prompt in prompts
    ]


def nearest_word(studio: Studio, subject: Subject) -> str:
    """Return the known word whose sentence the scorer finds nearest to the training images.

    The first word has a row of its own: the nearest of the others.
    """
    words = [word for word in known_words(studio.model) if word != subject.first_word]
    texts = studio.text_features([f"a photo of a {word}" for word in words])
    centre = studio.features(subject.pictures).mean(0)
    return words[int((texts @ centre).argmax())]


def known_words(model: Any) -> list[str]:
    """Return the whole words of letters alone in a model's vocabulary, of at least 3 letters."""
    tokenizer = model.cond_stage_model.tokenizer
    found = {str(token).removesuffix("</w>") for token in tokenizer.get_vocab()}
    return sorted(word for word in found if word.isascii() and word.isalpha() and len(word) > 2)


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


def _filled(subject: Subject, count: int) -> list[Any]:
    pictures = list(subject.pictures[:count])
    return pictures + [None] * (count - len(pictures))
