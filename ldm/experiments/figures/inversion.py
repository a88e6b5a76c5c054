"""Figure 11: bipartite inversion, which keeps an image's noise, and pivotal tuning, which not.

Both draw a training image's concept under its own prompt and under others, at several scales of
guidance. Expected: inversion drifts under strong guidance and ignores the text under weak; tuning
collapses under strong guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ldm.editing.bipartite import InvertedNoise, invert_image, reconstruction, redraw
from ldm.editing.images import model_size, psnr, resized
from ldm.experiments.figures.layout import Cell, Row, draw_grid
from ldm.experiments.figures.pivotal import HOW
from ldm.experiments.figures.record import Drawing, Figure, Line, Table
from ldm.experiments.figures.studio import Studio
from ldm.experiments.figures.style import readable
from ldm.inference import GeneratedImage, Sampling

SCALES = (1.0, 2.0, 5.0, 10.0)
# Steps of the inversion, and of the way back, for each sampling step: 250 for 50.
STEPS_EACH = 5
COLUMNS = (
    *("concept", "way", "prompt", "guidance", "image_similarity", "text_similarity"),
    "psnr_of_reconstruction",
)
BIPARTITE, PIVOTAL = "bipartite inversion", "pivotal tuning"


def inversion(figure: Figure, studio: Studio) -> Drawing:
    """Draw a line for each prompt and way, a column for each scale of guidance."""
    (line,) = studio.request.lines(figure)
    given = studio.subject(line.concepts[0]).pictures[0]
    picture = resized(given, model_size(studio.model, given.size))
    studio.take_words(line.concepts)
    steps = STEPS_EACH * studio.request.steps
    noise = invert_image(studio.model, picture, line.prompts[0], Sampling(steps=steps, scale=1.0))
    best = reconstruction(studio.model, picture)
    drawn = {BIPARTITE: _bipartite(studio, noise, line)}
    if studio.request.pivotal is not None:
        drawn[PIVOTAL] = _pivotal(studio, line)
    rows = [Row("", [Cell(picture, "training image"), Cell(best, "autoencoder alone")])]
    numbers: list[tuple[Any, ...]] = []
    for way, prompts in drawn.items():
        for prompt, images in prompts.items():
            titles = [f"guidance {scale:g}" for scale in SCALES] if len(rows) == 1 else [""] * 4
            cells = [Cell(image, title) for image, title in zip(images, titles, strict=True)]
            rows.append(Row(f"{way}:\n{readable(prompt)}", cells))
            for scale, scored in zip(SCALES, _score(studio, images, prompt, line), strict=True):
                own = way == BIPARTITE and prompt == line.prompts[0]
                error = psnr(scored.picture.image, best) if own else None
                numbers.append(
                    (line.concepts[0], way, prompt, scale, scored.image, scored.text, error)
                )
    back = next(row[-1] for row in numbers if row[-1] is not None)
    notes = [
        f"S = {noise.steps} steps. Without guidance the image's own prompt gives it back: "
        f"{back:.1f} dB against the autoencoder alone."
    ]
    if PIVOTAL not in drawn:
        notes.append(f"Pivotal tuning is left out: {HOW}.")
    title = f"Figure {figure.name}. {figure.title}"
    return Drawing(draw_grid(rows, title=title), Table(COLUMNS, numbers), tuple(notes))


def _bipartite(studio: Studio, noise: InvertedNoise, line: Line) -> dict[str, list[Image.Image]]:
    """Return each prompt's images by scale, all from the image's own noise."""
    by_scale = [redraw(studio.model, noise, line.prompts, scale) for scale in SCALES]
    return dict(zip(line.prompts, map(list, zip(*by_scale, strict=True)), strict=True))


def _pivotal(studio: Studio, line: Line) -> dict[str, list[Image.Image]]:
    """Return each prompt's images by scale, from the tuned model and the seed's noise."""
    tuned = Studio(studio.request, is_tuned=True)
    by_scale = []
    for scale in SCALES:
        found = tuned.draw(line.prompts, 1, concepts=line.concepts, scale=scale)
        by_scale.append([pictures[0].image for pictures in found])
    return dict(zip(line.prompts, map(list, zip(*by_scale, strict=True)), strict=True))


def _score(studio: Studio, images: Sequence[Image.Image], prompt: str, line: Line) -> Any:
    pictures = [GeneratedImage(image, prompt, studio.request.seed) for image in images]
    return studio.score(pictures, prompt, *line.concepts)
