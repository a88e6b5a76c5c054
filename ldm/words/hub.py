"""Find a word's file in a folder or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.hub import snapshot
from ldm.util import UserError, read_text

HUB_PREFIX = "hf:"
# Files of words in a folder, the preferred one first: of a concept of the Hub, then of a run.
WORD_FILES = (
    "learned_embeds.safetensors",
    "learned_embeds.bin",
    "embeddings.safetensors",
    "embeddings.pt",
    "checkpoints/embeddings.safetensors",
    "checkpoints/embeddings.pt",
)
IDENTIFIER = "token_identifier.txt"


def find_word(path: str | Path) -> tuple[Path, str | None]:
    """Return a word's file, and the name that its folder gives it, or None.

    `path` is a file, a folder or a Hub name. A folder is a concept of the Hub or a run's log
    folder. A Hub name is like "sd-concepts-library/cat-toy" or "hf:NAME@REVISION". Raises UserError
    if the file or the name does not exist, or the folder holds no word.
    """
    local = Path(path)
    if not local.exists():
        name = _hub_name(str(path))
        if name is None:
            raise UserError(f"embedding file {str(path)!r} does not exist")
        local = _download(*name)
    if local.is_dir():
        return _in_folder(local, path)
    if not local.is_file():
        raise UserError(f"embedding file {str(path)!r} is not a regular file")
    return local, None


def _in_folder(folder: Path, asked: str | Path) -> tuple[Path, str | None]:
    found = next((folder / name for name in WORD_FILES if (folder / name).is_file()), None)
    if found is None:
        single = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".pt")]
        if len(single) != 1:
            raise UserError(
                f"folder {str(asked)!r} holds no {WORD_FILES[0]} and no other file of a word: give "
                "the file itself"
            )
        found = single[0]
    identifier = folder / IDENTIFIER
    if not identifier.is_file():
        return found, None
    text = read_text(identifier, "name")[:1000].split()
    return found, text[0] if len(text) == 1 else None


def _hub_name(text: str) -> tuple[str, str | None] | None:
    """Split a Hub name into (owner/name, revision). Return None for a path.

    A text without the prefix "hf:" is a Hub name only if it cannot be a file: it has one slash and
    no suffix of a word's file, and no local folder has the owner's name.
    """
    name, _, revision = text.removeprefix(HUB_PREFIX).partition("@")
    valid = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    if not valid:
        return None
    if not text.startswith(HUB_PREFIX):
        suffix = Path(name).suffix.lower()
        known = (".pt", ".bin", ".pth", ".ckpt", ".safetensors", ".pti", ".png", ".webp", ".avif")
        if suffix in known or Path(name).parent.exists():
            return None
    return name, revision or None


def _download(name: str, revision: str | None) -> Path:
    """Download the word of a repository into the Hub's cache. Return its local folder."""

    def choose(names: list[str]) -> list[str]:
        kept = ("learned_embeds", "embeddings.", IDENTIFIER)
        return [path for path in names if Path(path).name.startswith(kept)]

    return snapshot(name, revision, choose)
