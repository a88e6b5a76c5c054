"""The miniature world: deterministic, in range, true to what is held out, in known words."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ldm.miniature.grammar import SCENE_PHRASES, caption, full_caption, vocabulary
from ldm.miniature.names import CONTRASTING, HELD_OUT_LOOKS, names
from ldm.miniature.render import COLOURS, EXTRA_MEDIA, GREY, MEDIA, Spec, render, silhouette
from ldm.miniature.scenes import SCENES
from ldm.miniature.shapes import ALL_SHAPES, EXTRA_SHAPES, SHAPES, TEXTURES
from ldm.miniature.world import MiniatureWorld, held_out, sample_spec

ROOT = Path(__file__).parents[2]


def texture_args(texture: str) -> dict[str, str]:
    return {"texture": texture, "second": "" if texture == "plain" else "yellow"}


def test_the_world_is_as_rich_as_promised() -> None:
    assert (len(SHAPES), len(COLOURS), len(TEXTURES), len(SCENES), len(MEDIA)) == (12, 20, 6, 10, 5)
    assert min(len(others) for others in CONTRASTING.values()) >= 8
    assert len(HELD_OUT_LOOKS) >= 8
    assert (len(EXTRA_SHAPES), len(EXTRA_MEDIA)) == (2, 4)


@pytest.mark.parametrize("medium", [*MEDIA, *EXTRA_MEDIA])
@pytest.mark.parametrize("shape", sorted(ALL_SHAPES))
def test_every_image_is_finite_in_range_and_shows_something(shape: str, medium: str) -> None:
    for i, texture in enumerate(TEXTURES):
        scene = list(SCENES)[(i + len(shape)) % len(SCENES)]
        spec = Spec(shape, "red", **texture_args(texture), scene=scene, medium=medium)
        image = render(spec, 64)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert -1 <= image.min() < image.max() <= 1
        assert image.std() > 0.05


@pytest.mark.parametrize("size", [32, 50, 96])
def test_any_resolution_shows_the_same_image(size: int) -> None:
    spec = sample_spec(0, 3)
    spec = replace(spec, medium="photo")
    image, large = render(spec, size), render(spec, size * 4)
    assert image.shape == (size, size, 3)
    reduced = large.reshape(size, 4, size, 4, 3).mean((1, 3))
    assert np.abs(image - reduced).mean() < 0.05


def test_sizes_too_small_and_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 8, got 4"):
        render(Spec("star", "red"), 4)
    with pytest.raises(ValueError, match=r"colour must be one of .* got 'puce'"):
        Spec("star", "puce")
    with pytest.raises(ValueError, match="second must be one of"):
        Spec("star", "red", texture="dots")
    with pytest.raises(ValueError, match="split must be one of train, val"):
        MiniatureWorld(split="test")
    with pytest.raises(ValueError, match="length must be at least 1"):
        MiniatureWorld(length=0)
    with pytest.raises(ValueError, match=r"caption_dropout must lie in \[0, 1\]"):
        MiniatureWorld(caption_dropout=2)


def test_the_middle_of_a_photo_has_the_colour_it_is_said_to_have() -> None:
    for colour, value in COLOURS.items():
        image = render(Spec("square", colour), 64)
        middle = (image[24:40, 24:40].mean((0, 1)) + 1) * 127.5
        distances = {name: np.abs(middle - other).sum() for name, other in COLOURS.items()}
        assert min(distances, key=lambda name: distances[name]) == colour, (colour, value, middle)


def test_sketches_have_no_colour_and_pixel_art_has_blocks() -> None:
    sketch = render(Spec("star", "red", medium="sketch"), 64)
    grey = sketch @ GREY
    assert np.abs(sketch - grey[..., None]).max() < 0.15
    pixel = render(Spec("star", "red", medium="pixel"), 64)
    blocks = pixel[::4, ::4].repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(pixel, blocks)


def test_the_silhouette_is_where_the_object_is() -> None:
    spec = replace(sample_spec(0, 1), shape="ring", medium="photo", texture="plain", second="")
    spec = replace(spec, dx=0.0, dy=0.0, scale=0.6)
    mask = silhouette(spec, 64)
    assert (mask.shape, mask.dtype) == ((64, 64), np.float32)
    assert (mask.min(), mask.max()) == (0, 1)
    blue, white = (render(replace(spec, colour=c), 64) for c in ("blue", "white"))
    changed = np.abs(blue - white).max(-1) > 1
    assert (changed == (mask > 0.5)).mean() > 0.95
    assert mask[32, 32] == 0  # a ring's middle


def test_scenes_differ_even_without_colour() -> None:
    greys = [render(Spec("star", "red", scene=scene), 32) @ GREY for scene in SCENES]
    for i, one in enumerate(greys):
        for other in greys[:i]:
            assert np.abs(one - other).mean() > 0.1


def test_a_world_is_the_same_every_time_and_in_any_order() -> None:
    world, again = (MiniatureWorld(length=20, seed=5, caption_dropout=0.1) for _ in range(2))
    samples = [0, 19, 20, 7, 45]
    first = {sample: world[sample] for sample in samples}
    for sample in reversed(samples):
        other = again[sample]
        assert {k: v for k, v in other.items() if k != "image"} == {
            k: v for k, v in first[sample].items() if k != "image"
        }
        np.testing.assert_array_equal(other["image"], first[sample]["image"])
    assert world[3]["caption"] != MiniatureWorld(length=20, seed=6)[3]["caption"]


def test_each_pass_shows_every_image_once_in_its_own_order() -> None:
    world = MiniatureWorld(length=30)
    passes = [[world.image_of(30 * epoch + i) for i in range(30)] for epoch in range(2)]
    assert [sorted(order) for order in passes] == [list(world.image_ids())] * 2
    assert passes[0] != passes[1]
    item = world[31]
    assert (item["image_id"], item["sample"]) == (passes[1][1], 31)
    np.testing.assert_array_equal(item["image"], world.image(item["image_id"]))


def test_captions_change_from_pass_to_pass() -> None:
    world = MiniatureWorld(length=1)
    assert len({world.describe(sample)["caption"] for sample in range(20)}) > 5


def test_without_images_nothing_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    world = MiniatureWorld(length=4)
    expected = {k: v for k, v in world[1].items() if k != "image"}
    monkeypatch.setattr("ldm.miniature.world.render", lambda *_: pytest.fail("rendered an image"))
    assert world.describe(1) == expected


def test_caption_dropout_empties_its_share() -> None:
    world = MiniatureWorld(length=500, caption_dropout=0.1)
    empty = sum(world.describe(sample)["caption"] == "" for sample in range(2000))
    assert 150 < empty < 250  # 200 ± 3.7 standard deviations


def test_splits_share_no_index_and_windows_slide() -> None:
    train, val = MiniatureWorld(length=50), MiniatureWorld(length=50, split="val")
    assert not {train.spec(i) for i in range(50)} & {val.spec(i) for i in range(50)}
    assert MiniatureWorld(length=5, first_index=10).spec(0) == train.spec(10)


def test_nothing_held_out_is_ever_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(held_out(sample_spec(0, index)) for index in range(3000))
    # Hold out something common: rejection must take effect for it too.
    common = sample_spec(0, 0).look
    monkeypatch.setattr("ldm.miniature.world.HELD_OUT_LOOKS", frozenset({common}))
    assert sample_spec(0, 0).look != common


@pytest.mark.parametrize("look", sorted(HELD_OUT_LOOKS))
def test_held_out_looks_are_so_in_every_scene_and_medium(look: tuple[str, str, str, str]) -> None:
    shape, colour, texture, second = look
    assert second in CONTRASTING[colour]
    for scene in SCENES:
        for medium in MEDIA:
            assert held_out(Spec(shape, colour, texture, second, scene, medium))


def test_extra_shapes_and_media_are_held_out() -> None:
    assert all(held_out(Spec(shape, "red")) for shape in EXTRA_SHAPES)
    assert all(held_out(Spec("star", "red", medium=medium)) for medium in EXTRA_MEDIA)
    assert not held_out(Spec("star", "red"))


def test_full_captions_say_everything() -> None:
    spec = Spec("star", "teal", "dots", "yellow", "beach", "photo")
    assert full_caption(spec) == "a photo of a teal star with yellow dots on the beach"
    orange = Spec("mug", "orange", scene="sunset", medium="pixel")
    assert full_caption(orange) == "pixel art of an orange mug at sunset"


def test_articles_fit_their_nouns() -> None:
    world = MiniatureWorld(length=3000)
    texts = [world.caption(i, world.spec(i)) for i in range(3000)]
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
    assert any("with an orange border" in text for text in texts)


def test_captions_leave_things_out_and_use_the_templates_words() -> None:
    spec = Spec("star", "teal", "dots", "yellow", "beach", "neon")
    texts = [caption(spec, np.random.default_rng(i)) for i in range(1500)]
    full = sum("teal star with yellow dots on the beach" in text for text in texts)
    assert full / len(texts) > 0.4
    for part in ("teal", "yellow", "star", SCENE_PHRASES["beach"], "neon"):
        assert any(part in text for text in texts)
        assert any(part not in text for text in texts)
    words = {word for text in texts for word in text.replace("-", " - ").split()}
    templates = "good cropped close bright dark clean dirty cool nice small weird large my one the"
    assert set(templates.split()) | {"rendering", "rendition", "style"} <= words
    assert words <= set(vocabulary())


def test_the_tokenizer_knows_every_caption_and_every_name_is_one_token(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    command = [sys.executable, "scripts/miniature/train_tokenizer.py", "--captions", "4000"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path)
    entries = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split()
    assert len(set(entries)) == len(entries) == len(tokenizer)
    config = OmegaConf.load(ROOT / "configs" / "miniature" / "diffusion.yaml")
    assert config.model.params.cond_stage_config.params.vocab_size == len(tokenizer)
    assert tokenizer.pad_token_id == 0
    world = MiniatureWorld()
    texts = [world.describe(i)["caption"] for i in range(1000)] + [" ".join(vocabulary())]
    encoded = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert max(len(ids) for ids in encoded[:-1]) <= 32
    for word in (*vocabulary(), *names(), *"*@&~#7z"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert tokenizer.tokenize("A Close-Up of *") == ["a", "close", "-", "up", "of", "*"]
    assert tokenizer.tokenize("elephant") == ["[UNK]"]
