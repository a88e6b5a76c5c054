"""A word's images beside images of its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.personalized_prior import FIRST_SAMPLE, PersonalizedWithPrior
from ldm.util import UserError


def folder_of(path: Path, *levels: int) -> Path:
    path.mkdir()
    for level in levels:
        Image.new("RGB", (4, 4), (level, level, level)).save(path / f"{level:03}.png")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> PersonalizedWithPrior:
    own, others = folder_of(tmp_path / "own", 10, 20), folder_of(tmp_path / "class", 200, 210, 220)
    return PersonalizedWithPrior(own, class_root=others, first_word="cat", size=4)


def test_each_sample_has_one_of_the_class(dataset: PersonalizedWithPrior) -> None:
    seen = set()
    for sample in range(40):
        item = dataset[sample]
        prior = item["prior"]
        assert "*" in item["caption"]
        assert prior["caption"] == "a photo of a cat"
        assert item["image"].max() < 0 < prior["image"].min()
        assert (item["sample"], prior["sample"]) == (sample, FIRST_SAMPLE + sample)
        seen.add(prior["image_id"] // 2)
    assert seen == {2, 3, 4}


def test_ids_of_both_kinds_name_their_images(dataset: PersonalizedWithPrior) -> None:
    ids = dataset.image_ids()
    assert ids == list(range(10))
    levels = [round((dataset.image(i).mean() + 1) * 127.5) for i in ids[::2]]
    assert levels == [10, 20, 200, 210, 220]
    for item in (dataset[s] for s in range(10)):
        np.testing.assert_array_equal(
            dataset.image(item["prior"]["image_id"]), item["prior"]["image"]
        )


def test_images_may_be_left_out(dataset: PersonalizedWithPrior) -> None:
    item = dataset.describe(3)
    assert "image" not in item
    assert "image" not in item["prior"]


def test_validation_has_no_class(dataset: PersonalizedWithPrior, tmp_path: Path) -> None:
    val = PersonalizedWithPrior(
        tmp_path / "own", class_root=tmp_path / "class", class_prompt="a cat", set="val"
    )
    assert "prior" not in val[0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", 10)
    with pytest.raises(UserError, match="class_root must be a folder of class images, got None"):
        PersonalizedWithPrior(own, first_word="cat")
    with pytest.raises(UserError, match="needs a class: give --init_word, or class_prompt"):
        PersonalizedWithPrior(own, class_root=own)
    with pytest.raises(UserError, match=r"class_root must be a folder .* got 'nowhere'"):
        PersonalizedWithPrior(own, class_root="nowhere", first_word="cat")
    with pytest.raises(ValueError, match="class_pictures must be at least 1, got 0"):
        PersonalizedWithPrior(own, class_root=own, class_pictures=0, first_word="cat")
