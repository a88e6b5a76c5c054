"""Open a file that may hold learned words: pickle, safetensors or image. None of it is run.

The content decides what a file is, not its suffix. `ldm.words.formats` reads what comes out.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ldm.util import UserError, told

# A pickle or image of words is small. One that is larger, or unpacks to more, is not opened.
LARGEST_BYTES = 2**28
LARGEST_PIXELS = 2**24
# AUTOMATIC1111's text chunk: base64 of JSON.
CARD_CHUNK = "sd-ti-embedding"

IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
JPEG_XL_HEADS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


def read_container(path: Path) -> tuple[Any, dict[str, str]]:
    """Return what a regular file holds, and the metadata of a safetensors header.

    Raises UserError for one that is unreadable, damaged or too large, has no words, or would run
    code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"embedding file {str(path)!r}: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{str(path)!r} is a git-lfs pointer, not the word; run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{str(path)!r} is a web page, not a word: the download failed; repeat it")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith(JPEG_XL_HEADS):
        raise UserError(
            f"{str(path)!r} is a JPEG XL image, which is not read here: convert it to PNG without "
            "loss"
        )
    if head.startswith(IMAGE_HEADS) or head[8:12] == b"WEBP" or head[4:8] == b"ftyp":
        return _read_card(path), {}
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pickle(path), {}
    what = "it is no safetensors file, torch file or image" if head else "it is empty"
    raise UserError(f"{str(path)!r} is not a readable embedding file: {what}")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    fault = f"{str(path)!r} is not a readable safetensors file: "
    with told(fault, SafetensorError, OSError), safe_open(path, "pt", "cpu") as file:
        # Mapped, not read: a LoRA that bundles a word may have a gigabyte.
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def _read_pickle(path: Path) -> Any:
    """Load a pickle that may build tensors and ParameterDicts, and do nothing else."""
    # A damaged pickle can fail in any way, but runs nothing.
    with told(f"{str(path)!r} is not a readable embedding file: ", Exception):
        _check_size(path)
        try:
            with torch.serialization.safe_globals([nn.ParameterDict]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
                raise UserError(
                    f"{str(path)!r} refused: loading it could run code, it asks for "
                    f"{forbidden[1]!r}; ask its author for a .safetensors file"
                ) from error
            # Torch's own text advises to load without its checks.
            raise UserError(f"{str(path)!r} is not a readable embedding file") from error


def _check_size(path: Path) -> None:
    """Raise UserError for a pickle that is, or unpacks to, more than `LARGEST_BYTES`."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(part.file_size for part in archive.infolist()))
    if size > LARGEST_BYTES:
        raise UserError(
            f"{str(path)!r} holds {size / 1e6:.0f} MB: more than any word; a model is given as "
            "--ckpt_path"
        )


def _read_card(path: Path) -> Any:
    """Read the word in an image: AUTOMATIC1111's text chunk, or else its pixels."""
    from PIL import Image

    too_large = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    # A bomb is a warning up to twice the limit, and an error above. A decoder fails in many ways.
    with (
        told(f"{str(path)!r} is not a readable image: ", Exception),
        told(f"{str(path)!r} is far too large an image to carry a word: ", *too_large),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise UserError(
                    f"{str(path)!r} has {image.width} x {image.height} pixels: more than any "
                    "image that carries a word"
                )
            image.load()
            text = image.info.get(CARD_CHUNK)
            pixels = None if isinstance(text, str) else image.convert("RGB")
    fault = f"{str(path)!r}: the word in this image is damaged: "
    with told(fault, ValueError, TypeError, RuntimeError, zlib.error):
        data = base64.b64decode(text) if isinstance(text, str) else _pixel_data(np.asarray(pixels))
        if data is not None:
            return json.loads(data, object_hook=_json_tensor)
    raise UserError(
        f"{str(path)!r} holds no word: neither in a text chunk {CARD_CHUNK!r} nor in its pixels"
    )


def _json_tensor(node: dict[str, Any]) -> Any:
    return torch.tensor(node["TORCHTENSOR"]) if "TORCHTENSOR" in node else node


def _pixel_data(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes | None:
    """Return the JSON that an image's pixels [h, w, 3] carry, None where they carry nothing.

    AUTOMATIC1111's second form: two blocks left and right of the image, each separated from it by a
    black column, hold the lower and upper four bits of a zlib stream in the lower four bits of
    their channels, XORed with a fixed pseudo-random sequence.
    """
    lit = np.all(pixels > 0, axis=2)
    rows, columns = np.flatnonzero(np.any(lit, axis=1)), np.flatnonzero(np.any(lit, axis=0))
    if not rows.size:
        return None
    nibbles = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(nibbles.sum((0, 2), dtype=np.int64) == 0)
    if black.size < 2:
        return None
    lower, upper = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if lower.shape != upper.shape or not lower.size:
        return None
    noise = pseudo_random(lower.size).reshape(lower.shape) & 0x0F
    packed = (((upper ^ noise) << 4) | (lower ^ noise)).tobytes()
    if packed[:1] != b"\x78":  # not a zlib stream: an image like any other
        return None
    return zlib.decompressobj().decompress(packed, LARGEST_BYTES // 16)


def pseudo_random(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the sequence that AUTOMATIC1111 hides a word's bits with. Shape [count], 0 to 254.

    x_0 = 0, x_n = 1664525 x_{n-1} + 1013904223 mod 2^32; the sequence is x_n mod 255 for n ≥ 1.
    """
    powers = np.full(count, 1664525, dtype=np.uint32)
    powers[:1] = 1
    sums = np.cumsum(np.cumprod(powers, dtype=np.uint32), dtype=np.uint32)
    return ((sums * np.uint32(1013904223)) % np.uint32(255)).astype(np.uint8)
