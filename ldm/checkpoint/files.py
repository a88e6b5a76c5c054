"""Read a file of weights without running code, and say what another file is."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ldm.util import UserError, told

# Objects that training frameworks leave beside the weights. An empty object replaces them. A file
# that names any other object is refused.
HARMLESS_PACKAGES = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "argparse.",
    "collections.",
    "numpy.",
    "typing.",
    "pathlib.",
    "_codecs.encode",
    "torch.nn.modules.container.ParameterDict",
    "torch.nn.parameter.",
    "builtins.set",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
)
HOW_TO_GET = (
    "get the published weights with scripts/download_models.sh, or generate with the miniature: "
    "--ckpt_path models/miniature"
)


class _Nothing:
    """Replaces an object that is not needed; accepts every operation of a pickle."""

    def __new__(cls, *_: Any, **__: Any) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


def _stand_in(name: str) -> type[_Nothing]:
    """Return a class to use in a pickle in place of the one that it calls `name`."""
    module, _, plain = name.rpartition(".")
    return type(plain, (_Nothing,), {"__module__": module, "__qualname__": plain})


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a model file's tensors by name; they lie in the mapped file until they are used.

    The file is `.safetensors`, or a `.ckpt` or `.pt` that holds {"state_dict": …} or the names
    bare. Raises UserError for no such file, or not a model's; one line says what it is.
    """
    path = Path(path)
    kind = _file_kind(path)
    if kind == "safetensors":
        fault = f"{path}: truncated or damaged safetensors file ("
        with told(fault, SafetensorError, OSError, after=")"):
            return load_file(path)
    content = _read_pickle(path, mapped=kind == "zip")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a checkpoint; it holds a {type(content).__name__}")
    if "string_to_param" in content:
        raise UserError(
            f"{path}: an embedding file, which holds learned words and not a model; "
            "give it as --embedding_path"
        )
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def mapped_ranges() -> list[range]:
    """Return the addresses of the files that this process has mapped for itself alone.

    Of Linux only; elsewhere the list is empty.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for place, rights, _, _, inode, *name in (line.split(maxsplit=5) for line in lines):
        if rights == "rw-p" and inode != "0" and ".so" not in "".join(name):
            first, end = (int(address, 16) for address in place.split("-"))
            found.append(range(first, end))
    return found


def release(tensor: Tensor, mapped: Sequence[range]) -> None:
    """Free the memory of a tensor in a mapped file; its next use reads the file again.

    A tensor in none of the ranges, which `mapped_ranges` returns, stays as it is. Values that were
    changed in place are lost.
    """
    first, size = tensor.data_ptr(), tensor.nbytes
    if not tensor.is_contiguous() or not any(first in addresses for addresses in mapped):
        return
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (first + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def checkpoint_hash(path: str | Path) -> str:
    """Return 16 hexadecimal digits that identify a file, of its size and 64 samples of 64 KiB each.

    It takes milliseconds for any size, and stays the same on every machine. A folder of diffusers
    counts with the weights of all its components.
    """
    path = Path(path)
    if path.is_dir():
        parts = [p for p in sorted(path.glob("*/*")) if p.suffix in (".safetensors", ".bin")]
        text = "".join(f"{p.relative_to(path)} {checkpoint_hash(p)}\n" for p in parts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    size, piece = path.stat().st_size, 64 * 1024
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(64):
            file.seek(max(size - piece, 0) * i // 63)
            digest.update(file.read(piece))
    return digest.hexdigest()[:16]


def _file_kind(path: Path) -> str:
    """Return "safetensors", "zip" (torch's present format) or "pickle" (its old one)."""
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist: {HOW_TO_GET}")
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: give the file in it")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"checkpoint {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"{path}: an empty file; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer, not the weights; run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path}: an HTML page, not weights: the download failed; do it again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < min(size, 100_000_000):
        return "safetensors"
    if head[8:9] == b"{" and path.suffix == ".safetensors":
        raise UserError(f"{path}: truncated at {size} bytes; download it again")
    if head[:1] == b"\x80":
        return "pickle"
    raise UserError(f"{path}: not a checkpoint (neither torch's format nor safetensors)")


def _read_pickle(path: Path, mapped: bool) -> Any:
    fault = f"{path}: truncated or damaged at {path.stat().st_size} bytes; download it again ("
    with (
        told(fault, Exception, after=")"),  # a damaged pickle may raise anything
        told(f"{path}: not a plain checkpoint, so refused (", pickle.UnpicklingError, after=")"),
    ):
        strangers = get_unsafe_globals_in_checkpoint(path) if mapped else []
        refused = [name for name in strangers if not name.startswith(HARMLESS_PACKAGES)]
        if refused:
            raise UserError(
                f"{path}: refused, because loading it would run code: it asks for {refused[0]}"
            )
        with safe_globals([_stand_in(name) for name in strangers]):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
