"""A few images of one style, captioned "a painting in the style of *"."""

from __future__ import annotations

from typing import ClassVar

from ldm.data import personalized
from ldm.data.templates import STYLE_TEMPLATES


class PersonalizedBase(personalized.PersonalizedBase):
    """As `ldm.data.personalized.PersonalizedBase`, with the paper's style templates."""

    default_templates: ClassVar[tuple[str, ...]] = STYLE_TEMPLATES
