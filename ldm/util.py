"""Building objects from configuration, and errors meant for the user.

The names `instantiate_from_config` and `get_obj_from_str` are public: YAML files of the original
code base and other tools rely on them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

# A configuration file may come from a stranger; `target:` must not import whatever it likes.
ALLOWED_PREFIXES = (
    "ldm.",
    "main.",
    "taming.",
    "pytorch_lightning.",
    "torch.nn.",
    "torch.optim.",
)


class UserError(ValueError):
    """A mistake the user can mend: one line saying what, where and what to do."""


def get_obj_from_str(name: str) -> Any:
    """Import `package.module.attribute`.

    Raises UserError where the name is outside `ALLOWED_PREFIXES` or does not exist.
    """
    if not name.startswith(ALLOWED_PREFIXES):
        raise UserError(
            f"target {name!r} is not allowed: it must start with one of {', '.join(ALLOWED_PREFIXES)}"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"target {name!r}: no module named {error.name!r}") from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise UserError(f"target {name!r}: {module} has no {attribute!r}") from error


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Build `config["target"](**config["params"], **extra)`.

    Args:
        config: a mapping with `target`, a dotted name, and optionally `params`.
        extra: further arguments, from the caller rather than the file.

    Raises:
        UserError: no `target`, or one that may not or cannot be imported.
        TypeError: the target does not take a parameter; the message names it.
    """
    if "target" not in config:
        raise UserError(f"expected a mapping with 'target' and 'params', got keys {list(config)}")
    return get_obj_from_str(config["target"])(**(config.get("params") or {}), **extra)


def cli_main(run: Callable[[], int | None]) -> None:
    """Run a command line: a UserError becomes one line on stderr and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(run() or 0)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
