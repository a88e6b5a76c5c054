"""Write a folder ready for the Hugging Face Hub: a word's file, sample images and a model card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ldm.util import UserError, write_whole
from ldm.words.files import FIRST_FILE, WordFile
from ldm.words.hub import IDENTIFIER
from ldm.words.travel import convert

IMAGES = "concept_images"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Facts of the header that the card shows, with what a reader calls them.
FACTS = {
    "encoder_family": "text encoder",
    "step": "steps",
    "learning_rate": "learning rate",
    "seed": "seed",
    "base_checkpoint": "base checkpoint",
    "base_checkpoint_hash": "hash of the base checkpoint",
    "config_hash": "hash of the configuration",
}
HEAD = """---
license: {license}
{base}pipeline_tag: text-to-image
instance_prompt: {name}
tags:
- textual_inversion
- text-to-image
- diffusers
---
"""
CODE = """```python
pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_textual_inversion("THIS_REPOSITORY")
pipeline({prompt})
```
"""


def write_hub_folder(
    folder: Path,
    file: WordFile,
    license_name: str,
    base_model: str | None = None,
    images: Sequence[Path] = (),
) -> None:
    """Write what `load_textual_inversion(REPOSITORY)` of diffusers and `read_words` read.

    The license is named as on the Hub, such as "cc-by-4.0"; so is the model that the word is for.
    Sample images are copied with their metadata left as they are. Raises UserError for several
    words, a license or name that the Hub's metadata cannot hold, a file that is no image, or a
    folder that has content.
    """
    if len(file.words) != 1:
        raise UserError(f"a repository holds one word, and these are {list(file.words)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license_name):
        raise UserError(
            f"license {license_name!r} is no identifier of the Hub, such as cc-by-4.0 or mit"
        )
    if base_model is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", base_model):
        raise UserError(f"base model {base_model!r} is no name of the Hub, OWNER/NAME")
    for image in images:
        if not image.is_file() or image.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"sample {str(image)!r} is no {' or '.join(IMAGE_SUFFIXES)} file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} has content: name a new folder")
    word = next(iter(file.words))
    names = [f"{IMAGES}/{i}{image.suffix.lower()}" for i, image in enumerate(images)]
    convert(folder / f"{FIRST_FILE}.safetensors", file, "diffusers", {})
    write_whole(folder / IDENTIFIER, word)
    for image, name in zip(images, names, strict=True):
        (folder / IMAGES).mkdir(exist_ok=True)
        shutil.copyfile(image, folder / name)
    write_whole(folder / "README.md", model_card(file, license_name, base_model, names))


def model_card(
    file: WordFile, license_name: str, base_model: str | None, images: Sequence[str]
) -> str:
    """Return the model card of one word, with the Hub's metadata block.

    `images` are paths of the sample images inside the folder.
    """
    ((word, vectors),) = file.words.items()
    name = json.dumps(word, ensure_ascii=False)  # a JSON string is a YAML string
    base = f"base_model: {base_model}\nlibrary_name: diffusers\n" if base_model else ""
    facts = [
        f"- {text}: {file.metadata[key]}" for key, text in FACTS.items() if key in file.metadata
    ]
    lines = [HEAD.format(license=license_name, base=base, name=name)]
    width = vectors.shape[-1]
    about = f"A word learned by textual inversion: {len(vectors)} vectors of width {width}."
    lines += [f"# {word}", "", about, "", *facts, *([""] if facts else [])]
    if not file.second:
        prompt = json.dumps(f"a photo of {word}", ensure_ascii=False)
        lines.append(CODE.format(base=json.dumps(base_model or "BASE"), prompt=prompt))
    lines += [f"![a sample image]({name})" for name in images]
    return "\n".join(lines) + "\n"
