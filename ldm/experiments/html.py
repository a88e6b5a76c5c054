"""Pages that are one HTML file each and open offline: images, styles and scripts are inside."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


def data_url(image: Image.Image) -> str:
    """Return an image as a PNG inside a `data:` address."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render(template: str, **values: Any) -> str:
    """Return a page of `ldm/experiments/templates`, with every text escaped.

    A value that the template names and that is missing is an error.
    """
    environment = Environment(
        loader=PackageLoader("ldm.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = data_url
    return environment.get_template(template).render(values)
