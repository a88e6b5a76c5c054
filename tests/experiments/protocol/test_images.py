"""Images that cells keep for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.experiments.protocol.folder import keeping, read_images, write_images
from ldm.util import UserError


def _image_source(prompts: Sequence[str], each: int) -> list[Image.Image]:
    """Generate images whose colour tells prompt and number."""
    return [
        Image.new("RGB", (4, 4), (len(prompt), i, 0)) for prompt in prompts for i in range(each)
    ]


def test_the_first_images_of_each_prompt_come_back_as_they_were(tmp_path: Path) -> None:
    kept: dict[str, list[Image.Image]] = {}
    source = keeping(_image_source, 2, kept)
    all_drawn = source(["a *"], 3) + source(["a * on the moon", "im Garten, ein *"], 5)
    assert len(all_drawn) == 13
    write_images(tmp_path / "pictures.zip", kept)
    found = read_images(tmp_path / "pictures.zip")
    assert list(found) == ["a *", "a * on the moon", "im Garten, ein *"]
    for prompt, images in found.items():
        assert [np.asarray(image)[0, 0].tolist() for image in images] == [
            [len(prompt), i, 0] for i in range(2)
        ]


def test_fewer_drawn_than_to_be_kept_are_all_kept() -> None:
    kept: dict[str, list[Image.Image]] = {}
    keeping(_image_source, 4, kept)(["a", "b"], 1)
    assert {prompt: len(images) for prompt, images in kept.items()} == {"a": 1, "b": 1}


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_no_archive_is_said_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pictures.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"pictures\.zip"):
        read_images(path)
