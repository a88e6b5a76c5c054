"""Find a word's file in a folder or in a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ldm.hub import HUB_NAME, snapshot
from ldm.util import UserError, read_text

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
        name = HUB_NAME.fullmatch(str(path))
        if name is None or name[3] or (not name[1] and _may_be_a_file(Path(name[2]))):
            raise UserError(f"embedding file {str(path)!r} does not exist")
        # Into the Hub's cache.
        local = snapshot(name[2], name[4], _of_a_word)
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


def _may_be_a_file(name: Path) -> bool:
    """Tell whether a name like "OWNER/NAME" may be a path: by its suffix, or an existing folder."""
    known = (".pt", ".bin", ".pth", ".ckpt", ".safetensors", ".pti", ".png", ".webp", ".avif")
    return name.suffix.lower() in known or name.parent.exists()


def _of_a_word(names: list[str]) -> list[str]:
    kept = ("learned_embeds", "embeddings.", IDENTIFIER)
    return [path for path in names if Path(path).name.startswith(kept)]
