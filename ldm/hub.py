"""The Hugging Face Hub: one way to get files, and one line for each way in which it fails."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ldm.util import UserError, first_line

# "org/name" or "hf:org/name[/FILE][@REVISION]".
HUB_NAME = re.compile(r"(hf:)?([A-Za-z0-9][\w.-]*/[\w.-]+)(/[^@]+)?(?:@([\w./-]+))?")


def snapshot(
    repository: str, revision: str | None, choose: Callable[[list[str]], Sequence[str]]
) -> Path:
    """Return a repository's folder in the Hub's cache; missing files are downloaded.

    Without a network the cache is used as it is.

    Args:
        repository: "org/name".
        revision: a branch, tag or commit.
        choose: the names of the repository's files → those that are wanted.

    Raises:
        UserError: the repository or its revision does not exist, it is gated, the cache's disk is
            full, or there is neither a network nor a cached copy.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
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
        if isinstance(error, UserError) or not is_of_the_client(error):
            raise
        if is_full_disk(error):
            raise UserError(
                f"{where} on the Hub does not fit: the disk of its cache {constants.HF_HUB_CACHE} "
                "is full; free space there, or set HF_HOME to a folder on another disk"
            ) from error
        fault, remedy = f"the Hub cannot be reached ({first_line(error)})", "go online once"
        if isinstance(error, OSError) and error.filename:
            fault = f"the cache cannot be written ({first_line(error)})"
            remedy = "set HF_HOME to a folder that can"
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where} is no file or folder here, not in the Hub's cache, and {fault}: "
            f"{remedy}, or give a file or folder"
        ) from error


def is_of_the_client(error: Exception) -> bool:
    """Tell whether the network, the disk or the Hub failed; errors depend on the client's version.

    `hf_xet`, which transfers large files, raises RuntimeError for all of them.
    """
    library = type(error).__module__.partition(".")[0]
    network = ("httpx", "requests", "huggingface_hub")
    return isinstance(error, (OSError, RuntimeError)) or library.startswith(network)


def is_full_disk(error: Exception) -> bool:
    """Tell whether a file could not be written because the disk, or the user's quota, is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    code = error.errno if isinstance(error, OSError) else None
    return code in full or any(os.strerror(number) in str(error) for number in full)
