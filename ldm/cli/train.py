"""`main.py`: train a model or learn a word.

Configurations of the original code base name `main.DataModuleFromConfig`, `main.ImageLogger` and
other classes. They live in `ldm.training`. This module imports them on demand, so that `--help`
answers at once.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Sequence
from typing import Any

from ldm.training.arguments import parse
from ldm.util import UserError

EXPORTS = {
    "DataModuleFromConfig": "ldm.training.datamodule",
    "ImageLogger": "ldm.training.image_logger",
    "SetupCallback": "ldm.training.callbacks",
    "CUDACallback": "ldm.training.callbacks",
}


def __getattr__(name: str) -> Any:
    """Look up a re-exported class (PEP 562)."""
    if name not in EXPORTS:
        raise AttributeError(f"module 'main' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, then import what is heavy and run."""
    options = parse(argv)
    if not options.train and not options.resume and not options.dry_run:
        raise UserError("nothing to do: add -t to train")
    from ldm.training.config import load, load_each

    try:
        if len(options.data_roots) > 1 and options.dry_run:
            raise UserError("--dry_run looks at one folder: give one --data_root")
        if "auto" in options.init_word:
            from ldm.cli.initializer import with_chosen_words

            options = with_chosen_words(options)
        if len(options.data_roots) > 1:
            from ldm.training.many import learn_many

            return learn_many(load_each(options))
        config = load(options)  # mistakes in files show before the heavy imports
        if options.dry_run:
            from ldm.training.dry_run import dry_run

            return dry_run(config)
        from ldm.training.run import run_stages

        return run_stages(config)
    except (UserError, OSError):
        if options.debug:
            traceback.print_exc()
        raise
