"""Where the files that ship with the project are: in a checkout, or inside the installed package.

A wheel carries `configs/`, `models/miniature/` and parts of `examples/` in `ldm/_data`, under the
same relative paths as in a checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGED = Path(__file__).with_name("_data")
# The folder that shipped relative paths such as "configs/finetune.yaml" start from.
ROOT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[1]


# The names of a model's weights in its folder, the preferred one first.
WEIGHTS = ("model.safetensors", "model.ckpt")


def child_environment() -> dict[str, str]:
    """Return the environment of a child process that imports this `ldm`."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path}


def weights_in(folder: Path) -> Path | None:
    """Return the weights in a model's folder; None if there are none."""
    return next((path for name in WEIGHTS if (path := folder / name).is_file()), None)


def locate(path: str | Path) -> Path:
    """Find a file or folder from the working directory, then among the shipped files.

    `~` is the home folder. Returns the first place where it exists; `path` itself if there is none.
    """
    here = Path(path).expanduser()
    if here.exists() or here.is_absolute():
        return here
    shipped = ROOT / here
    return shipped if shipped.exists() else here
