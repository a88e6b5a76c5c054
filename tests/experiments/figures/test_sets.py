"""The sets that only the figures learn a word from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.experiments.figures.sets import (
    COLOURS,
    SCENES,
    SETS,
    SIZE,
    star_specs,
    style_specs,
    write_set,
)
from ldm.image_io import open_rgb
from ldm.miniature.render import MEDIA, PIXEL_BLOCKS
from ldm.miniature.world import render

ROOT = Path(__file__).parents[3]


def test_the_stars_are_two_in_each_medium_and_differ_in_the_rest() -> None:
    specs = star_specs()
    assert {spec.shape for spec in specs} == {"star"}
    assert sorted(spec.medium for spec in specs) == sorted(MEDIA * 2)
    assert sorted(spec.colour for spec in specs) == sorted(COLOURS)
    assert sorted(spec.scene for spec in specs) == sorted(SCENES)
    for medium in MEDIA:
        assert len({spec.colour for spec in specs if spec.medium == medium}) == 2


def test_chalk_is_light_lines_on_a_dark_board(tmp_path: Path) -> None:
    folder = write_set("chalk", tmp_path)
    spec = style_specs("sketch")[0]
    chalk = np.asarray(open_rgb(folder / "1.png"), np.float32) / 127.5 - 1
    np.testing.assert_allclose(chalk, -render(spec, SIZE), atol=1 / 127)
    sketch = render(spec, SIZE)
    assert chalk.mean() < -0.2 < 0.2 < sketch.mean()


def test_arcade_is_dark_and_of_coarse_pixels(tmp_path: Path) -> None:
    image = np.asarray(open_rgb(write_set("arcade", tmp_path) / "1.png"))
    side = SIZE // PIXEL_BLOCKS
    blocks = image.reshape(PIXEL_BLOCKS, side, PIXEL_BLOCKS, side, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert image.mean() < 100 < 150 < image.max()


@pytest.mark.parametrize("name", list(SETS))
def test_the_shipped_images_are_these(name: str, tmp_path: Path) -> None:
    made = sorted(write_set(name, tmp_path).iterdir())
    shipped = sorted((ROOT / "examples" / "concepts" / name).glob("*.png"))
    assert [path.name for path in made] == [path.name for path in shipped]
    for own, kept in zip(made, shipped, strict=True):
        levels = [np.asarray(open_rgb(path), np.int16) for path in (own, kept)]
        assert abs(levels[0] - levels[1]).max() <= 1, own.name  # sines differ between machines
