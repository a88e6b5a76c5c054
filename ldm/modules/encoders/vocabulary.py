"""Finding and loading the vocabulary of a text encoder: a folder, or a name on the hub.

`transformers` gets only folders that hold a vocabulary. If files are missing, its recent versions
build a tokenizer without any word, and give no error.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ldm.hub import is_full_disk, is_of_the_client
from ldm.resources import ROOT, locate
from ldm.util import UserError, first_line

# Any of these groups of files is a whole vocabulary.
VOCABULARIES = {
    "BertTokenizerFast": (("vocab.txt",), ("tokenizer.json",)),
    "CLIPTokenizerFast": (("vocab.json", "merges.txt"), ("tokenizer.json",)),
}
# The folder where scripts/download_models.sh puts the vocabularies of the published models.
WEIGHTS = ROOT / "models" / "ldm"
DOWNLOADED = {
    "bert-base-uncased": WEIGHTS / "text2img-large/bert-base-uncased",
    "openai/clip-vit-large-patch14": WEIGHTS / "stable-diffusion-v1/clip-vit-large-patch14",
}
FETCHED = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "*_config.json", "special_*")
ADVICE = (
    "get it once with scripts/download_models.sh (for CLIP's: scripts/download_models.sh clip), or "
    "name its folder: --tokenizer of convert_embedding.py and merge_embeddings.py, "
    "cond_stage_config.params.tokenizer of a model"
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_tokenizer(kind: str, source: str) -> Any:
    """Load a `transformers` tokenizer, a `BertTokenizerFast` or `CLIPTokenizerFast`.

    The source is a local folder, or a name on the hub, which is asked only if the vocabulary is
    neither downloaded nor in the local cache. Raises UserError where it is missing or unreadable;
    the message tells how to get it.
    """
    folder = vocabulary_folder(kind, source)

    import transformers

    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for unreadable files
        reason = first_line(error)
        raise UserError(f"cannot read the vocabulary in {folder} ({reason}); {ADVICE}") from error


def vocabulary_folder(kind: str, source: str) -> Path:
    """Return the folder with the vocabulary's files; fetch them from the hub if needed."""
    downloaded = DOWNLOADED.get(source)
    if downloaded is not None and _is_whole(kind, downloaded):
        return downloaded
    folder = locate(source)
    if folder.is_dir():
        if not _is_whole(kind, folder):
            wanted = " or ".join(" and ".join(files) for files in VOCABULARIES[kind])
            raise UserError(
                f"no vocabulary in folder {source!r}: it should hold {wanted}; {ADVICE}"
            )
        return folder
    if HUB_NAME.fullmatch(source) is None:
        raise UserError(f"tokenizer folder {source!r} does not exist; {ADVICE}")
    return _from_hub(kind, source)


def _is_whole(kind: str, folder: Path) -> bool:
    return any(all((folder / f).is_file() for f in files) for files in VOCABULARIES[kind])


def _from_hub(kind: str, name: str) -> Path:
    from huggingface_hub import snapshot_download

    reason = "it has no vocabulary's files"
    wanted = list(FETCHED)
    for local in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local))
        except Exception as error:
            if not (isinstance(error, ValueError) or is_of_the_client(error)):
                raise
            full = "the disk of the cache is full: free space there, or set HF_HOME to another"
            reason = full if is_full_disk(error) else first_line(error)
            continue
        if _is_whole(kind, folder):
            return folder
    raise UserError(
        f"vocabulary {name!r} is neither a folder here, nor in the local cache, nor could it be "
        f"fetched ({reason}); {ADVICE}"
    )
