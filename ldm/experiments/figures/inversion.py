"""Figure 11: bipartite inversion, which keeps an image's noise, and pivotal tuning.

Both generate a training image's concept under its own prompt and under others, at several scales of
guidance. Expected: with inversion, strong guidance loses the given image and weak guidance ignores
the text; with tuning, images collapse under strong guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from ldm.editing.images import model_size, psnr, resized
from ldm.editing.inversion import invert_image, reconstruction, regenerate
from ldm.experiments.figures.layout import Cell, Row, grid_figure
from ldm.experiments.figures.pivotal import HOW
from ldm.experiments.figures.record import Figure, Line, Rendered
from ldm.experiments.figures.request import Request
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
    first = session.subject(line.concepts[0]).images[0]
    original = resized(first, model_size(session.model, first.size))
    session.take_words(line.concepts)
    steps = STEPS_EACH * session.request.steps
    noise = invert_image(session.model, original, line.prompts[0], Sampling(steps=steps, scale=1.0))
    best = reconstruction(session.model, original)
    # The images of each prompt, for each scale.
    ways: dict[str, Callable[[], list[list[Image.Image]]]] = {}
    ways[BIPARTITE] = lambda: [
        regenerate(session.model, noise, line.prompts, scale) for scale in SCALES
    ]
    if session.request.pivotal is not None:
        ways[PIVOTAL] = partial(_tuned, session.request, line)
    rows = [Row("", [Cell(original, "training image"), Cell(best, "autoencoder alone")])]
    numbers: list[tuple[Any, ...]] = []
    for way, generate in ways.items():
        by_prompt = zip(*generate(), strict=True)
        for prompt, images in zip(line.prompts, by_prompt, strict=True):
            titles = [f"guidance {scale:g}" for scale in SCALES] if len(rows) == 1 else [""] * 4
            cells = [Cell(image, title) for image, title in zip(images, titles, strict=True)]
            rows.append(Row(f"{way}:\n{readable(prompt)}", cells))
            found = [GeneratedImage(image, prompt, session.request.seed) for image in images]
            given = session.score(found, prompt, *line.concepts)
            for scale, scored in zip(SCALES, given, strict=True):
                own = way == BIPARTITE and prompt == line.prompts[0]
                error = psnr(scored.generated.image, best) if own else None
                asked = (line.concepts[0], way, prompt, scale)
                numbers.append((*asked, *scored.numbers[1:], error))
    back = next(row[-1] for row in numbers if row[-1] is not None)
    notes = [
        f"S = {noise.steps} steps. Without guidance the image's own prompt gives it back: "
        f"{back:.1f} dB against the autoencoder alone."
    ]
    if PIVOTAL not in ways:
        notes.append(f"Pivotal tuning is left out: {HOW}.")
    grid = grid_figure(rows, title=figure.heading)
    return Rendered(grid, COLUMNS, numbers, tuple(notes))


def _tuned(request: Request, line: Line) -> list[list[Image.Image]]:
    """Return an image of each prompt for each scale, from the tuned model and the seed's noise."""
    tuned, found = Session(request, is_tuned=True), []
    for scale in SCALES:
        made = tuned.generate(line.prompts, 1, concepts=line.concepts, scale=scale)
        found.append([images[0].image for images in made])
    return found
