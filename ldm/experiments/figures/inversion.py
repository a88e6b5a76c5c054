"""Figure 11: bipartite inversion, which keeps an image's noise, and pivotal tuning.

Both generate a training image's concept under its own prompt and under others, at several scales of
guidance. Expected: with inversion, strong guidance loses the given image and weak guidance ignores
the text; with tuning, images collapse under strong guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ldm.editing.images import model_size, psnr, resized
from ldm.editing.inversion import InvertedNoise, invert_image, reconstruction, regenerate
from ldm.experiments.figures.layout import Cell, Row, grid_figure
from ldm.experiments.figures.pivotal import HOW
from ldm.experiments.figures.record import Figure, Line, Rendered, Table
from ldm.experiments.figures.session import Session
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


def inversion(figure: Figure, session: Session) -> Rendered:
    """Generate a line for each prompt and way, a column for each scale of guidance."""
    (line,) = session.request.lines(figure)
    given = session.subject(line.concepts[0]).images[0]
    original = resized(given, model_size(session.model, given.size))
    session.take_words(line.concepts)
    steps = STEPS_EACH * session.request.steps
    noise = invert_image(session.model, original, line.prompts[0], Sampling(steps=steps, scale=1.0))
    best = reconstruction(session.model, original)
    generated = {BIPARTITE: _bipartite(session, noise, line)}
    if session.request.pivotal is not None:
        generated[PIVOTAL] = _pivotal(session, line)
    rows = [Row("", [Cell(original, "training image"), Cell(best, "autoencoder alone")])]
    numbers: list[tuple[Any, ...]] = []
    for way, prompts in generated.items():
        for prompt, images in prompts.items():
            titles = [f"guidance {scale:g}" for scale in SCALES] if len(rows) == 1 else [""] * 4
            cells = [Cell(image, title) for image, title in zip(images, titles, strict=True)]
            rows.append(Row(f"{way}:\n{readable(prompt)}", cells))
            for scale, scored in zip(SCALES, _score(session, images, prompt, line), strict=True):
                own = way == BIPARTITE and prompt == line.prompts[0]
                error = psnr(scored.generated.image, best) if own else None
                asked = (line.concepts[0], way, prompt, scale)
                numbers.append((*asked, *scored.numbers[1:], error))
    back = next(row[-1] for row in numbers if row[-1] is not None)
    notes = [
        f"S = {noise.steps} steps. Without guidance the image's own prompt gives it back: "
        f"{back:.1f} dB against the autoencoder alone."
    ]
    if PIVOTAL not in generated:
        notes.append(f"Pivotal tuning is left out: {HOW}.")
    grid = grid_figure(rows, title=figure.heading)
    return Rendered(grid, Table(COLUMNS, numbers), tuple(notes))


def _bipartite(session: Session, noise: InvertedNoise, line: Line) -> dict[str, list[Image.Image]]:
    """Return each prompt's images by scale, all from the image's own noise."""
    by_scale = [regenerate(session.model, noise, line.prompts, scale) for scale in SCALES]
    return dict(zip(line.prompts, map(list, zip(*by_scale, strict=True)), strict=True))


def _pivotal(session: Session, line: Line) -> dict[str, list[Image.Image]]:
    """Return each prompt's images by scale, from the tuned model and the seed's noise."""
    tuned = Session(session.request, is_tuned=True)
    by_scale = []
    for scale in SCALES:
        found = tuned.generate(line.prompts, 1, concepts=line.concepts, scale=scale)
        by_scale.append([found[0].image for found in found])
    return dict(zip(line.prompts, map(list, zip(*by_scale, strict=True)), strict=True))


def _score(session: Session, images: Sequence[Image.Image], prompt: str, line: Line) -> Any:
    found = [GeneratedImage(image, prompt, session.request.seed) for image in images]
    return session.score(found, prompt, *line.concepts)
