"""Every renderer by name: (figure, session) → rendered figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm.experiments.figures import bias, comparison, gallery, inversion, local_edit, points, ranks
from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.session import Session

Renderer = Callable[[Figure, Session], Rendered]

RENDERERS: Mapping[str, Renderer] = {
    "curated": gallery.curated,
    "uncurated": gallery.uncurated,
    "prompts": gallery.prompts,
    "variations": comparison.variations,
    "comparison": comparison.comparison,
    "bias": bias.bias,
    "local_edit": local_edit.local_edit,
    "inversion": inversion.inversion,
    "trade_off": points.trade_off,
    "user_study": ranks.user_study,
    "set_size": points.set_size,
}
