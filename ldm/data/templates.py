"""The sentences that teach a word (Gal et al. 2022, appendix D; variants of the released code).

A template has `{}` where the word goes. Repeats are part of a list: they act as weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ldm.util import UserError, quote, read_text
from ldm.words.placeholders import occurrences


def _each(pattern: str, *choices: Iterable[str]) -> tuple[str, ...]:
    """Fill `pattern`'s angle brackets, <0> first, with every combination of choices."""
    filled: tuple[str, ...] = (pattern,)
    for place, words in enumerate(choices):
        filled = tuple(text.replace(f"<{place}>", word) for text in filled for word in words)
    return filled


# The 27 of the paper.
OBJECT_TEMPLATES = (
    *_each("a photo of <0> {}", ["a", "the", "my", "one"]),
    "the photo of a {}",
    *_each("a <0> photo of <1> {}", ["cropped", "close-up", "good"], ["a", "the"]),
    *_each("a <0> photo of the {}", ["dark", "bright"]),
    "a rendering of a {}",
    *_each("a rendition of <0> {}", ["a", "the"]),
    *_each("a photo of <0> <1> {}", ["a", "the"], ["clean", "nice", "cool", "small"]),
    "a photo of a dirty {}",
    *_each("a photo of the <0> {}", ["weird", "large"]),
)


# The list of the released code: the 27 sentences as photos, illustrations and depictions.
# 81 entries, 57 of them distinct, since only 15 begin with "a photo of".
RELEASED_OBJECT_TEMPLATES = tuple(
    text.replace("a photo of", kind)
    for kind in ("a photo of", "an illustration of", "a depiction of")
    for text in OBJECT_TEMPLATES
)

# 19 entries, 17 distinct.
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    *_each(
        "a <0> painting in the style of {}",
        [
            *("cropped", "cropped", "clean", "dirty", "dark", "cool", "close-up", "close-up"),
            *("bright", "good", "nice", "small", "weird", "large"),
        ],
    ),
    "the painting in the style of {}",
    *_each("a <0> in the style of {}", ["rendering", "image", "rendition"]),
)


def with_second(templates: Sequence[str], second: str = "{}") -> tuple[str, ...]:
    """Return each template once, followed by " with " and the place of a second word."""
    return tuple(dict.fromkeys(f"{template} with {second}" for template in templates))


TEMPLATE_SETS = {
    "object": OBJECT_TEMPLATES,
    "object-released": RELEASED_OBJECT_TEMPLATES,
    "style": STYLE_TEMPLATES,
}


def fill(template: str, word: str, second: str | None = None) -> str:
    """Put `word` into the `{}` of a template, and `second`, if given, into the last `{}`."""
    if second is None:
        return template.replace("{}", word)
    head, _, tail = template.rpartition("{}")
    return head.replace("{}", word) + second + tail


def load_templates(path: str | Path) -> tuple[str, ...]:
    """Read templates from a text file, one a line, without empty lines and lines that begin with #.

    Raises UserError where there is no such file, it is not UTF-8 text, has no templates, or has a
    line without `{}`.
    """
    templates = []
    for number, line in enumerate(read_text(path, "templates").splitlines(), 1):
        text = " ".join(line.split())
        if not text or text.startswith("#"):
            continue
        if "{}" not in text:
            raise UserError(
                f"templates {str(path)!r}, line {number}: {quote(text)} has no {{}} for the word"
            )
        templates.append(text)
    if not templates:
        raise UserError(f"templates {str(path)!r} holds no templates: write one a line, with {{}}")
    return tuple(templates)


def find_templates(wanted: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return templates by the name of a set, by file, or as given.

    Errors as `load_templates`; also for a given template without `{}`.
    """
    if isinstance(wanted, (str, Path)):
        named = TEMPLATE_SETS.get(str(wanted))
        if named is None and not Path(wanted).is_file():
            raise UserError(
                f"templates {str(wanted)!r} is neither a file nor one of {', '.join(TEMPLATE_SETS)}"
            )
        return named or load_templates(wanted)
    templates = tuple(wanted)
    without = [template for template in templates if "{}" not in template]
    if without or not templates:
        raise UserError(f"templates need a {{}} for the word, got {without or 'none'}")
    return templates


def check_placeholder(templates: Sequence[str], placeholder: str) -> None:
    """Raise UserError if a template contains the placeholder outside its `{}`.

    The learned word would otherwise replace a word of the sentence.
    """
    for template in templates:
        if occurrences(template.replace("{}", " "), placeholder):
            raise UserError(
                f"placeholder {placeholder!r} stands in the template {quote(template)} itself: "
                "choose another placeholder, such as * or @"
            )
