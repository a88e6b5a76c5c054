"""Objects from configuration, errors for the user, and the common parts of command lines.

The names `instantiate_from_config` and `get_obj_from_str` are public: YAML files of the original
code base and other tools rely on them.
"""

from __future__ import annotations

import argparse
import csv
import errno
import importlib
import inspect
import io
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# A configuration file may come from a stranger, so `target:` must not import just any module.
ALLOWED_PREFIXES = ("ldm.", "main.", "taming.", "pytorch_lightning.", "torch.nn.", "torch.optim.")


# Prefix of a file that is being written: it is hidden, and no set of images includes it.
PART = ".part-"
# A disk with fewer free bytes than this is full.
FULL_DISK = 2**16


class UserError(ValueError):
    """A mistake that the user can correct: one line that says what, where and what to do."""


def quote(text: str, length: int = 80) -> str:
    """Return a text in quotation marks for an error, cut after `length` characters."""
    return repr(text) if len(text) <= length else f"{text[:length]!r}… ({len(text)} characters)"


def one_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


@contextmanager
def told(before: str, *kinds: type[Exception], after: str = "") -> Iterator[None]:
    """Raise UserError for errors of some kinds: their first line between two texts."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{before}{first_line(error)}{after}") from error


def at_least(least: float, **values: float | None) -> None:
    """Raise ValueError for the first of the named values that is below `least`."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def one_of(choices: Collection[object], **values: object) -> None:
    """Raise ValueError for the first of the named values that is none of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def is_text(text: str) -> bool:
    """Tell whether a text can be written as UTF-8.

    Python keeps undecodable bytes of a command line, a name or a pipe as lone surrogates.
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


class ParameterError(UserError, TypeError):
    """A configuration has a parameter that the target does not take, or lacks one it needs."""


class Parser(argparse.ArgumentParser):
    """Accepts only whole option names, and reports errors in one line.

    What follows "Examples:" in the description stands at the end of the help.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        text, head, examples = (description or "").partition("\nExamples:")
        options = {"epilog": head.strip() + examples, **options, "allow_abbrev": False}
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=text, formatter_class=formatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the arguments; raise UserError for one that is not UTF-8 text."""
        for text in sys.argv[1:] if args is None else args:
            if not is_text(text):
                raise UserError(f"argument {quote(text)} is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of printing the usage."""
        raise UserError(f"{message} (see --help)")


def get_obj_from_str(name: str) -> Any:
    """Import `package.module.attribute`.

    Raises UserError where the name is outside `ALLOWED_PREFIXES` or does not exist.
    """
    if not isinstance(name, str):
        raise UserError(f"target {name!r} must be a dotted name, such as ldm.package.Class")
    if not name.startswith(ALLOWED_PREFIXES):
        allowed = ", ".join(ALLOWED_PREFIXES)
        raise UserError(f"target {name!r} is not allowed: it must start with one of {allowed}")
    module, _, attribute = name.rpartition(".")
    if module == "main":  # the original's script, whose classes other modules hold here
        module = "ldm.cli.train"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"target {name!r}: no module named {error.name!r}") from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise UserError(f"target {name!r}: {module} has no {attribute!r}") from error


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return what a class or function takes by name, and whether it takes nothing else.

    A class with `**options` takes its parent's parameters too.
    """
    found: dict[str, inspect.Parameter] = {}
    owners = [target]
    if isinstance(target, type):
        owners = [vars(c)["__init__"] for c in target.__mro__[:-1] if "__init__" in vars(c)]
    for owner in owners:
        try:
            kinds = inspect.signature(owner).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        named = [p for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {p.name: p for p in named if p.name != "self"} | found
        if not any(p.kind is p.VAR_KEYWORD for p in kinds):
            return found, True
    return found, False


def check_arguments(where: str, target: Any, arguments: Mapping[str, Any]) -> None:
    """Check that a target takes each of its arguments and lacks none, without calling it.

    Raises ParameterError naming `where` and the parameter.
    """
    known, complete = parameters(target)
    unknown = [str(name) for name in arguments if complete and name not in known]
    if unknown:
        raise ParameterError(
            f"{where} takes no parameter {unknown[0]!r}: known are {', '.join(sorted(known))}"
        )
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ParameterError(f"{where}: {error}") from error


def without_dropped(where: str, target: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the parameters that a target has dropped, which old files may give.

    `target.dropped` holds their names and the values without effect. Raises UserError for another
    value.
    """
    dropped: Mapping[str, Any] = getattr(target, "dropped", {})
    for name in dropped:
        if name in params and params[name] != dropped[name]:
            raise UserError(
                f"{where}: {name}={params[name]!r} is not supported: leave it out, or give "
                f"{dropped[name]!r}"
            )
    return {str(name): value for name, value in params.items() if name not in dropped}


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Build `config["target"](**config["params"], **extra)`.

    Args:
        config: a mapping with `target`, a dotted name, and optionally `params`.
        extra: further arguments, from the caller rather than the file.

    Raises:
        UserError: no `target`, or one that may not or cannot be imported.
        ParameterError: a TypeError too: the target does not take a parameter, or lacks one.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        given = f"keys {list(config)}" if isinstance(config, Mapping) else repr(config)
        raise UserError(f"expected a mapping with 'target' and 'params', got {given}")
    name, params = config["target"], config.get("params") or {}
    target = get_obj_from_str(name)
    if not callable(target) or not isinstance(params, Mapping):
        raise UserError(f"target {name}: expected a class and a mapping of params, got {params!r}")
    params = without_dropped(f"target {name}", target, params)
    twice = [key for key in params if key in extra]
    if twice:
        raise ParameterError(f"target {name}: {twice[0]!r} is given by the code, not by a file")
    check_arguments(f"target {name}", target, {**params, **extra})
    return target(**params, **extra)


def read_text(path: str | Path, what: str) -> str:
    """Return the content of a UTF-8 text file; "-" is the standard input.

    Raises UserError, which begins with `what`, where it cannot be read or is no such text.
    """
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{what} {path}: {reason}") from error


def check_output_folder(path: str | Path, what: str = "output folder") -> Path:
    """Return a folder, which need not exist yet; UserError where it takes no files."""
    path = Path(path)
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"{what} {path}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what} {path}: {existing} is not writable")
    return path


def write_whole(
    path: str | Path, content: bytes | str | Callable[[Path], object], *, replace: bool = True
) -> None:
    """Write a file whole or not at all.

    The content goes to a hidden file in the same folder, which then takes the name `path`. A
    reader, a kill or a full disk never leaves half a file under that name.

    Args:
        path: the file. Its folder is made. A link keeps its place, and the file that it names
            changes.
        content: bytes; text, written as UTF-8; or a function that writes the file it is given. The
            given name has the suffix of `path`.
        replace: whether a file that exists is replaced.

    Raises:
        UserError: the file cannot be written. The error names the file and the reason.
        FileExistsError: `replace` is false and the file exists.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{PART}{secrets.token_hex(6)}{target.suffix}")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch(exist_ok=False)
        mode = part.stat().st_mode  # a writer may make the file private
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.chmod(mode)
        if replace:
            part.replace(target)
        else:
            _take_name(part, target)
    except Exception as error:
        if isinstance(error, FileExistsError) and not replace and target.exists():
            raise
        reason = reason_of(error, target.parent)
        if reason is None:
            raise
        raise UserError(f"cannot write {str(path)!r}: {reason}") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def reason_of(error: Exception, folder: Path) -> str | None:
    """Return why something cannot be written into a folder; None if that is not the error's cause.

    Writers of tensors report a full disk by errors of their own.
    """
    if isinstance(error, OSError):
        return str(error.strerror or error)
    if folder.is_dir() and shutil.disk_usage(folder).free < FULL_DISK:
        return os.strerror(errno.ENOSPC)
    return None


def write_json(path: str | Path, content: object, indent: int = 2) -> None:
    """Write plain values as JSON, whole or not at all; errors as `write_whole`'s."""
    write_whole(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_table(path: str | Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a CSV file, whole or not at all; errors as `write_whole`'s."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, text.getvalue())


def _take_name(part: Path, target: Path) -> None:
    """Give a file a name that no other file has; raise FileExistsError where one has it."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        target.touch(exist_ok=False)
        part.replace(target)


def cli_main(run: Callable[[], int | None]) -> None:
    """Run a command line; an error of the user or the machine becomes one line on stderr.

    The exit status is then 2 for a UserError, 1 for a file or memory that fails during the run, and
    130 for Ctrl-C. Any other exception is a bug of this project and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(run() or 0)
    except UserError as error:
        line, status = f"error: {one_line(error)}", 2
    except OSError as error:
        if error.errno is None:  # raised by a library as "something went wrong"
            raise
        name = f"{error.filename}: " if error.filename else ""
        line, status = f"error: {name}{error.strerror}", 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        line, status = f"error: {one_line(error)} Take a smaller batch or size.", 1
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    sys.stderr.write(f"{line}\n")
    sys.exit(status)
