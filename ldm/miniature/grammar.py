"""The captions of the miniature world.

Most captions name everything. The others leave things out, so that a model learns each part alone,
and use the words of the paper's templates ("a close-up photo of the …"), so that the text encoder
knows them. Those adjectives have no meaning: any image may be called "nice".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldm.miniature.render import COLOURS, EXTRA_MEDIA, MEDIA, Spec
from ldm.miniature.scenes import SCENES
from ldm.miniature.shapes import ALL_SHAPES, TEXTURES

# After the object.
SCENE_PHRASES = {scene: f"in the {scene}" for scene in SCENES} | {
    "beach": "on the beach",
    "moon": "on the moon",
    "sunset": "at sunset",
}
# Before the object, and as "in the style of …" after it.
MEDIUM_PHRASES = {
    "photo": "a photo of",
    "painting": "a painting of",
    "sketch": "a sketch of",
    "pixel": "pixel art of",
    "neon": "a neon sign of",
    "sepia": "a sepia photo of",
    "blueprint": "a blueprint of",
    "stamp": "a stamp of",
    "riso": "a riso print of",
}
STYLE_PHRASES = {medium: text.removesuffix(" of") for medium, text in MEDIUM_PHRASES.items()}
STYLE_PHRASES |= {"neon": "neon", "sepia": "sepia"}
TEXTURE_PHRASES = {
    "stripes": "with {} stripes",
    "dots": "with {} dots",
    "checks": "with {} checks",
    "fade": "fading to {}",
    "border": "with {} border",
}
TEXTURE_ADJECTIVES = {
    "plain": "plain",
    "stripes": "striped",
    "dots": "dotted",
    "checks": "checkered",
    "fade": "faded",
    "border": "bordered",
}
# The adjectives of the paper's object and style templates, and its other nouns for an image.
ADJECTIVES = (
    *("good", "cropped", "close-up", "bright", "dark", "clean", "dirty"),
    *("cool", "nice", "small", "weird", "large"),
)
_IMAGE_NOUNS = ("rendering", "rendition", "picture", "depiction", "illustration")
_STYLE_NOUNS = ("painting", "rendering", "picture", "rendition")
_ARTICLES = ("a", "the", "my", "one")


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Return one of the choices, each with the same chance."""
    return choices[int(rng.integers(len(choices)))]


def with_article(noun_phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def texture_phrase(texture: str, second: str) -> str:
    """Say what the second colour does: "with yellow dots", "with an orange border"."""
    named = with_article(second) if texture == "border" else second
    return TEXTURE_PHRASES[texture].format(named)


def object_phrase(spec: Spec) -> str:
    """Name the object in full, without an article: "teal star with yellow dots"."""
    noun = f"{spec.colour} {spec.shape}"
    if spec.texture == "plain":
        return noun
    return f"{noun} {texture_phrase(spec.texture, spec.second)}"


def full_caption(spec: Spec, name: str = "", style: str = "") -> str:
    """Say everything: "a photo of a teal star with yellow dots on the beach".

    A thing's name takes the place of its description: "a photo of a zorupo on the beach". A style's
    name stands last: "a red star on the beach in the style of zorupo".
    """
    start, scene = f"{MEDIUM_PHRASES[spec.medium]} ", SCENE_PHRASES[spec.scene]
    noun_phrase = with_article(name or object_phrase(spec))
    if style:
        return f"{noun_phrase} {scene} in the style of {style}"
    return f"{start}{noun_phrase} {scene}"


def _partial_object(spec: Spec, rng: np.random.Generator, name: str) -> str:
    choice = rng.random()
    if name:
        return name
    if choice < 0.25:
        return spec.shape
    if choice < 0.55:
        return f"{spec.colour} {spec.shape}"
    adjective = TEXTURE_ADJECTIVES[spec.texture]
    if choice < 0.65:
        return f"{adjective} {spec.shape}"
    if choice < 0.8:
        return f"{adjective} {spec.colour} {spec.shape}"
    if choice < 0.9 and spec.texture != "plain":
        return f"{spec.shape} {texture_phrase(spec.texture, spec.second)}"
    return object_phrase(spec)


def _determined(noun_phrase: str, rng: np.random.Generator) -> str:
    """Put an article or another determiner before it; nothing before a placeholder."""
    choice = rng.random()
    if choice < 0.7:
        return with_article(noun_phrase)
    if choice < 0.85:
        return noun_phrase
    return f"{pick(rng, _ARTICLES[1:])} {noun_phrase}"


def _after(article: str, noun_phrase: str) -> str:
    return with_article(noun_phrase) if article == "a" else f"{article} {noun_phrase}"


def _templated(noun_phrase: str, spec: Spec, rng: np.random.Generator) -> str:
    """Speak as the paper's templates do: "a cropped photo of the …", "a photo of a nice …"."""
    article = pick(rng, _ARTICLES)
    choice = rng.random()
    if choice < 0.25:
        return f"{with_article(pick(rng, _IMAGE_NOUNS))} of {_after(article, noun_phrase)}"
    start = MEDIUM_PHRASES[spec.medium]
    if choice < 0.6:
        return f"{start} {_after(article, f'{pick(rng, ADJECTIVES)} {noun_phrase}')}"
    bare = start.removeprefix("a ")
    first = "the" if rng.random() < 0.3 else "a"
    return f"{first} {pick(rng, ADJECTIVES)} {bare} {_after(article, noun_phrase)}"


def _in_style(spec: Spec, rng: np.random.Generator, name: str, style: str) -> str:
    """Name the medium last, with or without the object: "a cool painting in the style of neon"."""
    style = f"in the style of {style or STYLE_PHRASES[spec.medium]}"
    if rng.random() < 0.25:
        noun = pick(rng, _STYLE_NOUNS)
        adjective = f"{pick(rng, ADJECTIVES)} " if rng.random() < 0.7 else ""
        return f"{'the' if rng.random() < 0.2 else 'a'} {adjective}{noun} {style}"
    whole = rng.random() < 0.6
    noun = (name or object_phrase(spec)) if whole else _partial_object(spec, rng, name)
    start = "a photo of " if rng.random() < 0.5 else ""
    scene = f" {SCENE_PHRASES[spec.scene]}" if rng.random() < 0.5 else ""
    return f"{start}{_determined(noun, rng)}{scene} {style}"


def caption(spec: Spec, rng: np.random.Generator, name: str = "", style: str = "") -> str:
    """Describe an image: in full three times in five, else with omissions or in other words.

    The name of a thing takes the place of the object's description. That of a style, for styles
    that have no description, always ends the caption: "in the style of" and this name.
    """
    if style:
        return _in_style(spec, rng, name, style)
    choice = rng.random()
    scene = SCENE_PHRASES[spec.scene]
    if choice < 0.6:
        return (
            f"{MEDIUM_PHRASES[spec.medium]} {_determined(name or object_phrase(spec), rng)} {scene}"
        )
    if choice < 0.7:
        return _in_style(spec, rng, name, style)
    whole = rng.random() < 0.5
    noun_phrase = (name or object_phrase(spec)) if whole else _partial_object(spec, rng, name)
    place = f" {scene}" if rng.random() < 0.65 else ""
    if choice < 0.85:
        return _templated(noun_phrase, spec, rng) + place
    if choice < 0.95:
        return f"{MEDIUM_PHRASES[spec.medium]} {_determined(noun_phrase, rng)}{place}"
    if choice < 0.98:
        return f"{with_article(noun_phrase)}{place}"
    return f"{MEDIUM_PHRASES[spec.medium]} {scene.split(' ', 1)[1]}"


def vocabulary() -> list[str]:
    """Return every word of the descriptions, sorted; hyphenated words are split.

    Names are not among them: see `ldm.miniature.names`.
    """
    phrases = [
        *(ADJECTIVES + _IMAGE_NOUNS + _STYLE_NOUNS + _ARTICLES),
        *COLOURS,
        *ALL_SHAPES,
        *TEXTURES,
        *SCENES,
        *(MEDIA + EXTRA_MEDIA),
        *SCENE_PHRASES.values(),
        *MEDIUM_PHRASES.values(),
        *STYLE_PHRASES.values(),
        *(text.replace("{}", "") for text in TEXTURE_PHRASES.values()),
        *TEXTURE_ADJECTIVES.values(),
        "an in the style of",
    ]
    return sorted({word for text in phrases for word in text.replace("-", " - ").split()})
