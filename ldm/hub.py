"""The Hugging Face Hub: one way to get files, and one line for each way in which it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ldm.util import UserError, first_line


def snapshot(
    repository: str, revision: str | None, choose: Callable[[list[str]], Sequence[str]]
) -> Path:
    """Return a repository's folder in the Hub's cache; what is lacking is downloaded.

    Without a network the cache is used as it is.

    Args:
        repository: "org/name".
        revision: a branch, tag or commit.
        choose: the names of the repository's files → those that are wanted.

    Raises:
        UserError: the repository or its revision does not exist, it is gated, or there is neither a
            network nor a cached copy.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = repository + (f"@{revision}" if revision else "")
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=20)
        wanted = list(choose([entry.rfilename for entry in info.siblings or ()]))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise UserError(
            f"{where} on the Hub is gated: accept its terms on huggingface.co/{repository}, then "
            "log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repository} on the Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repository} is no file or folder here, and no repository on the Hub that you may "
            "read: check the name; a private one needs `hf auth login`"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{where} on the Hub lacks a file: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, UserError) or not _of_the_network(error):
            raise
        reason = first_line(error)
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where} is no file or folder here, not in the Hub's cache, and the Hub cannot be "
            f"reached ({reason}): go online once, or give a file or folder"
        ) from error


def _of_the_network(error: Exception) -> bool:
    """Tell whether the network or the Hub is to blame; its client's errors vary by version."""
    library = type(error).__module__.partition(".")[0]
    network = ("httpx", "requests", "huggingface_hub")
    return isinstance(error, OSError) or library.startswith(network)
