"""The images that cells keep: the first few of each prompt, in one archive a cell."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ldm.evaluation.sources import ImageSource
from ldm.util import UserError, write_whole

INDEX = "prompts.json"  # the prompts, in the order of the images' first numbers


def keeping(source: ImageSource, count: int, kept: dict[str, list[Image.Image]]) -> ImageSource:
    """Return a source that puts the first `count` images of each prompt into `kept`, too."""

    def generated(prompts: Sequence[str], each: int) -> list[Image.Image]:
        images = source(prompts, each)
        for i, prompt in enumerate(prompts):
            kept[prompt] = images[i * each : i * each + min(count, each)]
        return images

    return generated


def write_images(path: Path, images: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write prompts' images as a ZIP of PNG files, whole or not at all."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(INDEX, json.dumps(list(images), ensure_ascii=False))
        for i, own in enumerate(images.values()):
            for j, image in enumerate(own):
                png = io.BytesIO()
                image.save(png, "PNG")
                file.writestr(f"{i:02d}-{j:02d}.png", png.getvalue())
    write_whole(path, archive.getvalue())


def read_images(path: Path) -> dict[str, list[Image.Image]]:
    """Return what `write_images` wrote; UserError where there is no such archive."""
    found: dict[str, list[Image.Image]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(file.namelist())
            for i, prompt in enumerate(json.loads(file.read(INDEX))):
                own = [name for name in names if name.startswith(f"{i:02d}-")]
                found[prompt] = [Image.open(io.BytesIO(file.read(name))) for name in own]
    except OSError as error:
        raise UserError(f"images {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"images {path}: no archive that a protocol's cell kept") from error
    return found
