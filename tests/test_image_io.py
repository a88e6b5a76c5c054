"""Pictures in and out."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.image_io import (
    from_pil,
    open_rgb,
    pil_grid,
    read_settings,
    safe_name,
    save_png,
    to_pil,
)
from ldm.util import UserError

RED = (255, 0, 0)


def test_every_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1))
    tensor = from_pil(image)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_pil(tensor)), np.asarray(image))


def test_values_are_clamped_and_grey_becomes_rgb():
    image = to_pil(torch.tensor([[[-9.0, 0.0, 9.0]]]))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_to_pil_refuses_what_is_no_image():
    with pytest.raises(ValueError, match=r"\[1 or 3, h, w\], got \(4, 2, 2\)"):
        to_pil(torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="undefined numbers"):
        to_pil(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path, orientation):
    """Store an image the way a camera does for each EXIF orientation; it must look the same."""
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = RED  # top left
    upright[0, 1:] = (0, 0, 255)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    stored.save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "p.png")), upright)


def palette(transparent):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    if transparent:
        image.info["transparency"] = 1
    return image


def with_alpha(mode, *pixels):
    image = Image.new(mode, (2, 1))
    image.putdata(pixels)
    return image


def sixteen(*values):
    return Image.fromarray(np.array([values], np.uint16))


MODES = {
    "RGB": ("png", lambda: with_alpha("RGB", RED, (0, 255, 0)), [RED, (0, 255, 0)]),
    "RGBA onto white": (
        "png",
        lambda: with_alpha("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)),
        [RED, (255, 255, 255)],
    ),
    "half transparent": (
        "png",
        lambda: with_alpha("RGBA", (255, 0, 0, 51), (0, 0, 0, 51)),
        [(255, 204, 204), (204, 204, 204)],
    ),
    "LA": ("png", lambda: with_alpha("LA", (10, 255), (10, 0)), [(10,) * 3, (255,) * 3]),
    "L": ("png", lambda: with_alpha("L", 7, 250), [(7,) * 3, (250,) * 3]),
    "1": ("png", lambda: with_alpha("1", 0, 1), [(0,) * 3, (255,) * 3]),
    "palette": ("png", lambda: palette(False), [RED, (0, 255, 0)]),
    "palette with transparency": ("png", lambda: palette(True), [RED, (255, 255, 255)]),
    "16 bit": ("png", lambda: sixteen(257 * 3, 65535), [(3,) * 3, (255,) * 3]),
    "dark 16 bit": ("png", lambda: sixteen(0, 200), [(0,) * 3, (1,) * 3]),
    "32 bit": (
        "tiff",
        lambda: Image.fromarray(np.array([[0, 200]], np.int32)),
        [(0,) * 3, (200,) * 3],
    ),
    "float": (
        "tiff",
        lambda: Image.fromarray(np.array([[0, 1.0]], np.float32)),
        [(0,) * 3, (255,) * 3],
    ),
    "CMYK": ("tiff", lambda: with_alpha("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), [RED, (255,) * 3]),
}


@pytest.mark.parametrize("name", MODES)
def test_any_mode_becomes_rgb(tmp_path, name):
    suffix, make, expected = MODES[name]
    path = tmp_path / f"p.{suffix}"
    make().save(path)
    image = open_rgb(path)
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(2)] == expected


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (2, 1), c) for c in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "p.gif", save_all=True, append_images=frames[1:])
    assert open_rgb(tmp_path / "p.gif").getpixel((0, 0)) == RED


def test_unreadable_images_are_one_line_with_the_file(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    for name, message in [("text.png", "cannot"), ("cut.jpg", "cannot"), ("no.png", "exist")]:
        with pytest.raises(UserError, match=message) as caught:
            open_rgb(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@given(
    b=st.integers(1, 7),
    columns=st.none() | st.integers(1, 8),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@settings(deadline=None)
def test_grid_holds_every_image_in_reading_order(b, columns, padding, size):
    images = [Image.new("RGB", size, (i + 1, i + 1, i + 1)) for i in range(b)]
    grid = np.asarray(pil_grid(images, columns, padding))
    across = (grid.shape[1] - padding) // (size[0] + padding)
    assert across <= (columns or b)
    for i in range(b):
        y, x = (i // across) * (size[1] + padding), (i % across) * (size[0] + padding)
        cell = grid[y : y + size[1] + 2 * padding, x : x + size[0] + 2 * padding]
        inside = cell[padding : padding + size[1], padding : padding + size[0]]
        assert (inside == i + 1).all()
        assert (cell == 0).sum() == cell.size - inside.size
    assert (grid > 0).sum() == b * 3 * size[0] * size[1]


def test_grid_arguments():
    with pytest.raises(ValueError, match="at least one"):
        pil_grid([])
    with pytest.raises(ValueError, match=r"columns.*got 0"):
        pil_grid([Image.new("RGB", (2, 2))], columns=0)
    with pytest.raises(ValueError, match="one size"):
        pil_grid([Image.new("RGB", (1, 2)), Image.new("RGB", (2, 1))])
    assert pil_grid([Image.new("RGB", (4, 5), RED)] * 3, columns=3).size == (20, 9)


def test_settings_travel_with_the_image(tmp_path):
    facts = {"prompt": "ein Bild von * – 猫", "seed": 3, "scale": 7.5, "words": ["*", "@"]}
    path = save_png(Image.new("RGB", (2, 2), RED), tmp_path / "new" / "p.png", facts)
    assert read_settings(path) == facts
    with Image.open(path) as image:
        assert image.text["prompt"] == facts["prompt"]
        assert json.loads(image.text["settings"])["seed"] == 3
    assert read_settings(save_png(Image.new("RGB", (2, 2)), tmp_path / "plain.png")) == {}
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(UserError, match=r"text\.png"):
        read_settings(tmp_path / "text.png")


def test_nothing_is_overwritten(tmp_path):
    images = [Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(3)]
    paths = [save_png(image, tmp_path / "p.png") for image in images]
    assert [p.name for p in paths] == ["p.png", "p-1.png", "p-2.png"]
    assert [open_rgb(p).getpixel((0, 0))[0] for p in paths] == [0, 1, 2]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "file" / "p.png")
    with pytest.raises(ValueError, match=r"\.png"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "p.jpg")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a photo of *", "a-photo-of"),
        ("../../etc/passwd", "etc-passwd"),
        ("a/b\\c:d", "a-b-c-d"),
        ("*", "picture"),
        ("", "picture"),
        ("CON", "CON-"),
        ("猫 on a mat", "猫-on-a-mat"),
    ],
)
def test_safe_names(text, name):
    assert safe_name(text) == name


@given(st.text(max_size=300))
def test_every_text_gives_a_name_that_can_be_written(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    name = safe_name(text)
    assert name
    assert name == os.path.basename(name)
    path = folder / f"{name}.tmp"
    path.write_text("")
    assert path.parent == folder
    path.unlink()
