"""Where the files that ship with the project are: in a checkout, or inside the installed package.

A wheel carries `configs/`, `models/miniature/` and parts of `examples/` in `ldm/_data`, under the
same relative paths as in a checkout.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).with_name("_data")
# The folder that shipped relative paths such as "configs/finetune.yaml" start from.
ROOT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[1]


def locate(path: str | Path) -> Path:
    """Find a file or folder from the working directory, then among the shipped files.

    Args:
        path: relative or absolute; `~` is the home folder.

    Returns:
        The first place where it exists; `path` itself if it exists in neither.
    """
    here = Path(path).expanduser()
    if here.exists() or here.is_absolute():
        return here
    shipped = ROOT / here
    return shipped if shipped.exists() else here
