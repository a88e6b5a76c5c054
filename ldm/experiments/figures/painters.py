"""Every painter by name: (figure, studio) → drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm.experiments.figures import bias, comparison, gallery, inversion, local_edit, points, ranks
from ldm.experiments.figures.record import Drawing, Figure
from ldm.experiments.figures.studio import Studio

Painter = Callable[[Figure, Studio], Drawing]

PAINTERS: Mapping[str, Painter] = {
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
