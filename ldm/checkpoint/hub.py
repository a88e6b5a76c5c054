"""Where a base is: a file, a folder, a model that ships with the project, or a name on the Hub."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from ldm.checkpoint.tables import INDEX, choose_weights
from ldm.hub import HUB_NAME, snapshot
from ldm.resources import locate, weights_in
from ldm.util import UserError

logger = logging.getLogger(__name__)

SMALL = (".json", ".txt")  # configurations and vocabularies
COMPONENTS = ("unet", "vae", "vqvae", "bert", "text_encoder", "text_encoder_2")
LEFT_OUT = ("safety_checker/", "feature_extractor/", "openvino", "flax")
HOW_TO_GET = (
    "get the published weights with scripts/download_models.sh, name a Hub repository such as "
    "CompVis/ldm-text2im-large-256, or give the miniature, models/miniature"
)


def locate_base(name: str | Path) -> Path:
    """Return the file of a base's weights, or its folder of diffusers.

    `name` is a path, from here or from the project's folder; the name of a folder under models/,
    such as "miniature"; or a Hub name: "org/name", "hf:org/name@REVISION", or "hf:org/name/FILE"
    for one file of a repository. Raises UserError if it is nowhere, or the Hub does not give it.
    """
    text = str(name)
    for place in (locate(name), locate(f"models/{text}")):
        if place.is_dir() and not is_diffusers_folder(place):
            return file_in(place)
        if place.exists():
            return place
    found = HUB_NAME.fullmatch(text)
    looks_local = Path(text).suffix in (".ckpt", ".safetensors", ".pt", ".bin", ".pth")
    # A name that begins with an existing folder is a path.
    is_path = looks_local or locate(text.partition("/")[0]).is_dir()
    if found is None or (not found[1] and (found[3] or is_path)):
        raise UserError(f"checkpoint {name} does not exist: {HOW_TO_GET}")
    return fetch(found[2], (found[3] or "").removeprefix("/"), found[4])


@cache
def fetch(repository: str, file: str = "", revision: str | None = None) -> Path:
    """Return a repository's files in the Hub's cache; see `ldm.hub.snapshot`.

    A process asks the Hub once. Of each component the safetensors are taken if there are any; a
    repository without `model_index.json` has to have one file of weights.
    """
    where = repository + (f"@{revision}" if revision else "")

    def choose(names: list[str]) -> list[str]:
        if file and file not in names:
            raise UserError(f"{where} on the Hub has no file {file}")
        return [file] if file else wanted_files(names, where)

    folder = snapshot(repository, revision, choose)
    logger.info("%s from the Hub, revision %s", repository, folder.name)
    return folder / file if file else locate_base(folder)


def wanted_files(names: list[str], where: str) -> list[str]:
    """Return which of a repository's files a base needs.

    Raises UserError for one that is no pipeline, and has no file of weights or several.
    """
    if INDEX not in names:
        single = [n for n in names if "/" not in n and n.endswith((".safetensors", ".ckpt"))]
        if len(safe := [n for n in single if n.endswith(".safetensors")]) == 1 or len(single) == 1:
            return safe or single
        hint = f": name one, as hf:{where}/{single[0]}" if single else ""
        what = f"{len(single)} files of weights" if single else "no weights of a base"
        raise UserError(f"{where} on the Hub has no {INDEX} and {what}{hint}")
    wanted = [n for n in names if n.endswith(SMALL) and not n.startswith(LEFT_OUT)]
    for component in COMPONENTS:
        own = [n.partition("/")[2] for n in names if n.startswith(f"{component}/")]
        wanted += [f"{component}/{name}" for name in choose_weights(own)]
    return wanted


def config_beside(path: Path) -> Path | None:
    """Return the configuration beside a file: STEM.yaml or config.yaml; None if there is none."""
    places = (path.with_suffix(".yaml"), path.with_name("config.yaml"))
    return next((place for place in places if place.is_file()), None)


def is_diffusers_folder(path: Path) -> bool:
    """Tell whether a folder is a pipeline of diffusers."""
    return (path / INDEX).is_file() or (path / "unet" / "config.json").is_file()


def file_in(folder: Path) -> Path:
    """Return the weights in a folder that is no pipeline of diffusers; UserError for not one."""
    inside = weights_in(folder)
    if inside is not None:
        return inside
    found = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".ckpt")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found[:4])
        raise UserError(f"folder {folder} has {len(found)} files of weights ({names}): name one")
    if (folder / "config.json").is_file():
        raise UserError(f"folder {folder} is one component of a model: give the folder above it")
    raise UserError(
        f"folder {folder} has no weights: expected a folder of diffusers (model_index.json) or a "
        "file model.safetensors or model.ckpt"
    )
