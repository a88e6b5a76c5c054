"""Names stand for one thing or style each, and captions say them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ldm.miniature.grammar import caption, full_caption, vocabulary
from ldm.miniature.names import (
    CONTRASTING,
    HELD_OUT_LOOKS,
    NAMED_THINGS,
    named_styles,
    named_things,
    names,
)
from ldm.miniature.render import COLOURS, MEDIA, TONES, Spec, render
from ldm.miniature.shapes import SHAPES, TEXTURES
from ldm.miniature.world import MiniatureWorld, held_out, style_name

THING = Spec("star", "teal", "checks", "white", "beach")


def test_there_are_enough_names_and_none_is_a_word_of_the_descriptions() -> None:
    assert len(named_things()) == NAMED_THINGS >= 400
    assert len(named_styles()) == len(MEDIA) * len(TONES)
    assert len(set(names())) == len(named_things()) + len(named_styles())
    assert not set(names()) & set(vocabulary())
    for name in names():
        assert len(name) == 6
        assert all(letter in "aeiou" for letter in name[1::2])


def test_each_thing_has_one_name_and_is_not_held_out() -> None:
    looks = list(named_things().values())
    assert len(set(looks)) == len(looks)
    assert not set(looks) & HELD_OUT_LOOKS
    for shape, colour, texture, second in looks:
        assert not held_out(Spec(shape, colour, texture, second))
        assert second == "" if texture == "plain" else second in CONTRASTING[colour]


def test_named_things_cover_every_shape_colour_and_texture() -> None:
    looks = list(named_things().values())
    for place, known in ((0, SHAPES), (1, COLOURS), (2, TEXTURES)):
        counts = Counter(look[place] for look in looks)
        assert set(counts) == set(known)
        assert min(counts.values()) > 0.4 * len(looks) / len(known)


def test_a_smaller_number_of_names_gives_the_first_ones() -> None:
    assert list(named_things(7).items()) == list(named_things().items())[:7]


def test_things_and_styles_have_their_shares_of_the_images() -> None:
    world = MiniatureWorld(thing_share=0.4, style_share=0.1)
    known = set(named_things().values())
    specs = [world.spec(i) for i in range(3000)]
    assert 0.36 < np.mean([spec.look in known for spec in specs]) < 0.48
    assert 0.08 < np.mean([spec.tone != "" for spec in specs]) < 0.12
    assert not any(held_out(spec) for spec in specs)
    plain = MiniatureWorld(thing_share=0.0, style_share=0.0)
    assert not any(plain.spec(i).tone for i in range(200))


def test_captions_say_a_name_three_times_in_four_and_describe_otherwise() -> None:
    world = MiniatureWorld(thing_share=1.0, style_share=0.0)
    by_look = {look: name for name, look in named_things().items()}
    said = []
    for sample in range(2000):
        spec = world.spec(sample)
        words = world.caption(sample, spec).split()
        said.append(by_look[spec.look] in words)
        if said[-1]:
            assert spec.shape not in words
            assert f"{spec.colour} {spec.shape}" not in " ".join(words)
        assert not (set(words) & set(names())) - {by_look[spec.look]}
    # Some captions leave the object out: fewer than the rate of 0.75 can name it.
    assert 0.66 < np.mean(said) < 0.76


def test_without_named_things_no_caption_says_a_name() -> None:
    world = MiniatureWorld(thing_share=0.0, style_share=0.0)
    words = {w for i in range(3000) for w in world.caption(i, world.spec(i)).split()}
    assert not words & set(names())


def test_a_name_stands_in_every_template() -> None:
    texts = [caption(THING, np.random.default_rng(i), name="zorupo") for i in range(600)]
    assert "a photo of a zorupo on the beach" in texts
    named = [text for text in texts if "zorupo" in text]
    assert len(named) > 0.9 * len(texts)
    for phrase in ("in the style of", "a rendition of", "close-up photo of", "the zorupo"):
        assert any(phrase in text for text in named), phrase
    assert not any(word in text.split() for text in named for word in ("star", "teal", "checks"))


def test_a_styles_name_stands_after_in_the_style_of() -> None:
    spec = Spec("star", "teal", medium="sketch", tone="rose")
    name = style_name(spec)
    assert named_styles()[name] == ("sketch", "rose")
    assert style_name(Spec("star", "teal")) == ""
    texts = {caption(spec, np.random.default_rng(i), style=name) for i in range(200)}
    assert all(text.endswith(f"in the style of {name}") for text in texts)
    assert any("star" in text for text in texts)
    world = MiniatureWorld(thing_share=0.0, style_share=1.0)
    shown = world.spec(3)
    assert world.caption(3, shown).endswith(f"in the style of {style_name(shown)}")


def test_full_captions_take_names() -> None:
    assert full_caption(THING, "zorupo") == "a photo of a zorupo on the beach"
    styled = full_caption(Spec("star", "red", scene="beach"), style="zorupo")
    assert styled == "a red star on the beach in the style of zorupo"


@pytest.mark.parametrize("tone", sorted(TONES))
def test_a_toned_image_has_colours_between_its_two_inks(tone: str) -> None:
    image = (render(Spec("star", "red", tone=tone), 32) + 1) * 127.5
    first, second = (np.asarray(ink, np.float32) for ink in TONES[tone])
    along = (image - first) @ (second - first) / ((second - first) @ (second - first))
    expected = first + along[..., None] * (second - first)
    assert np.abs(image - expected).max() < 1.5
    assert along.max() - along.min() > 0.4


def test_the_world_is_the_same_every_time_and_in_any_order() -> None:
    one, other = MiniatureWorld(), MiniatureWorld()
    forward = [one.caption(i, one.spec(i)) for i in range(50)]
    backward = [other.caption(i, other.spec(i)) for i in reversed(range(50))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("name", ["thing_share", "name_rate", "style_share"])
def test_shares_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got 1.5"):
        MiniatureWorld(**{name: 1.5})
    with pytest.raises(ValueError, match="thing_share \\+ style_share must lie"):
        MiniatureWorld(thing_share=0.7, style_share=0.4)
    with pytest.raises(ValueError, match="things must be at least 1, got 0"):
        MiniatureWorld(things=0)
