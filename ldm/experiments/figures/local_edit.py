"""Figure 9: a learned word edited into a given image, by Blended Latent Diffusion."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ldm.editing.blended import edit
from ldm.editing.images import model_size, open_mask, resized
from ldm.experiments.figures.layout import Cell, Row, grid_figure
from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.session import Session
from ldm.experiments.figures.style import readable
from ldm.image_io import open_rgb
from ldm.miniature.render import Spec, render
from ldm.miniature.world import sample_spec
from ldm.sampling import Sampling

if TYPE_CHECKING:
    from ldm.experiments.figures.request import Request

CANDIDATES = 16  # of a prompt, of which one is shown
SEED = 9  # of the miniature's own scene
COLUMNS = ("concept", "prompt", "seed", "masked_text_similarity", "background_error", "shown")


def local_edit(figure: Figure, session: Session) -> Rendered:
    """Show the image, its mask and, of each prompt, the edit that the scorer ranks first."""
    request = session.request
    image, mask = scene(request)
    size = model_size(session.model, image.size)
    image, mask = resized(image, size), resized(mask, size)
    count = min(CANDIDATES, request.images)
    sampling = Sampling(
        steps=request.steps, scale=request.scale, seed=request.seed, batch_size=count
    )
    rows: list[Row] = []
    numbers: list[tuple[Any, ...]] = []
    for line in request.lines(figure):
        session.take_words(line.concepts)
        cells = [Cell(image, "image"), Cell(mask.convert("RGB"), "mask")]
        for prompt in line.prompts:
            found = edit(
                *(session.model, image, mask, prompt, sampling),
                samples=count,
                scorer=session.extractor,
            )
            cells.append(Cell(found[0].image, readable(prompt)))
            for one in found:
                error, shown = one.settings["background_error"], int(one is found[0])
                numbers.append((line.concepts[0], prompt, one.seed, one.score, error, shown))
        rows.append(Row(line.shown_label, cells))
    worst = max(row[4] for row in numbers)
    notes = (
        f"Of {count} edits a prompt the one whose masked region is nearest to the prompt; pixels "
        "outside the mask are the image's own.",
        f"Largest difference from the image outside the mask: {worst} of 255.",
    )
    title = f"{figure.heading} (best of {count} by score)"
    return Rendered(grid_figure(rows, title=title), COLUMNS, numbers, notes)


def scene(request: Request) -> tuple[Image.Image, Image.Image]:
    """Return the image to edit and its mask, mode "1": those asked for, or the miniature's.

    Raises UserError for an unreadable file, or a mask of another size or without any white.
    """
    if request.image is not None and request.mask is not None:
        image = open_rgb(request.image)
        return image, open_mask(request.mask, image.size)
    levels = np.rint((render(own_spec(), 64) + 1) * 127.5).astype(np.uint8)
    mask = Image.new("1", (64, 64))  # a disc around what stands in the scene
    ImageDraw.Draw(mask).ellipse((8, 8, 55, 55), fill=1)
    return Image.fromarray(levels), mask


def own_spec() -> Spec:
    """Describe the miniature's own scene: a brown square in the kitchen.

    It is small and in the middle, because a corner outside the mask would stay in every edit.
    """
    thing: Any = {"shape": "square", "colour": "brown", "texture": "plain", "second": ""}
    where: Any = {"scene": "kitchen", "medium": "photo", "dx": 0.0, "dy": 0.0, "scale": 0.5}
    return replace(sample_spec(SEED, 0), **thing, **where)
