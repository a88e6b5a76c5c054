"""Images in and out: files → upright RGB, tensors in [-1, 1] ↔ PIL, grids, PNGs with settings."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from ldm.util import UserError, at_least, first_line, write_whole

IMAGE_SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".avif", ".heic", ".heif"),
    )
)
SETTINGS_CHUNK = "settings"
# File names that Windows keeps for devices, whatever the suffix.
RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {
    f"{p}{i}" for p in ("com", "lpt") for i in range(10)
}


def open_rgb(path: str | Path) -> Image.Image:
    """Open an image upright, as 8-bit RGB: EXIF rotation applied, transparency laid onto white.

    Of an animation this is the first frame; 16-bit values are scaled to 8 bits. Raises UserError
    where there is no such file, or no image that can be decoded.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would wait
        raise UserError(f"image {str(path)!r} is not a regular file: give an image file")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except FileNotFoundError as error:
        raise UserError(f"image {str(path)!r} does not exist") from error
    except Exception as error:  # decoders of damaged files raise anything
        advice = "convert it to PNG or JPEG, or take it out of the folder"
        line = f"image {str(path)!r} cannot be read ({first_line(error)}): {advice}"
        raise UserError(line) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # convert("RGB") would clip these instead of scaling them.
        values = np.asarray(image, np.float64)
        top = values.max(initial=0.0)
        full = 1.0 if image.mode == "F" and top <= 1 else 65535.0 if top > 255 else 255.0
        if image.mode.startswith("I;16"):
            full = 65535.0
        grey = np.clip(values / full * 255 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA"):
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def to_pil(image: Tensor) -> Image.Image:
    """Convert [c, h, w] in [-1, 1], c of 1 or 3, to an RGB image; values outside are clamped.

    Raises ValueError for another shape, or values that are no numbers.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image must be [1 or 3, h, w], got {tuple(image.shape)}")
    values = image.detach().to("cpu", torch.float32)
    if not values.isfinite().all():
        raise ValueError("image holds undefined numbers; in half precision, try full precision")
    levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """Convert an image to float32 [3, h, w] in [-1, 1]."""
    levels = torch.from_numpy(np.array(image.convert("RGB")))
    return levels.permute(2, 0, 1).float() / 127.5 - 1


def pil_grid(
    images: Sequence[Image.Image], columns: int | None = None, padding: int = 2
) -> Image.Image:
    """Arrange images of one size in rows, with black lines around each.

    Args:
        images: at least one.
        columns: images in a row; about a square by default.
        padding: width of the lines, in pixels.
    """
    at_least(1, columns=columns)
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images must be at least one, all of one size, got {sorted(sizes)}")
    ((width, height),) = sizes
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    across, down = width + padding, height + padding
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * across + padding, rows * down + padding))
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        grid.paste(image, (column * across + padding, row * down + padding))
    return grid


def safe_name(text: str, length: int = 80) -> str:
    """Make a file name, without suffix, of any text: "a photo of *" → "a-photo-of".

    Valid on every system. Letters of every script are kept; an empty name becomes "image".
    """
    plain = unicodedata.normalize("NFKC", text)
    name = re.sub(r"[^\w]+", "-", plain)
    # Names end at 255 bytes on most file systems, and a letter may take four.
    name = name.encode()[:length].decode(errors="ignore").strip("-_")
    return f"{name}-" if name.lower() in RESERVED_NAMES else name or "picture"


def save_png(
    image: Image.Image, path: str | Path, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write a PNG, never over another file: where `path` is taken, the name gets -1, -2, ….

    Args:
        image: any image.
        path: wanted file, ending in .png; folders are made.
        settings: what the image was made with; kept in the text chunk "settings" as JSON, the
            prompt also as plain text under "prompt".

    Returns:
        The file written; UserError where it cannot be.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    chunks = PngImagePlugin.PngInfo()
    if settings:
        chunks.add_itxt(SETTINGS_CHUNK, json.dumps(dict(settings), ensure_ascii=False))
        if "prompt" in settings:
            chunks.add_itxt("prompt", str(settings["prompt"]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    free, number = path, 0
    while True:
        try:
            write_whole(free, buffer.getvalue(), replace=False)
            return free
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")


def write_image(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Write an image whole or not at all, in place of a file that exists.

    The suffix of `path` decides the format; `options` are those of Pillow's writer, such as
    `quality`. Errors as `write_whole`.
    """
    write_whole(path, lambda part: image.save(part, **options))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that `save_png` stored, {} where there are none.

    Raises UserError for no readable image, or a damaged chunk.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(SETTINGS_CHUNK)
        settings = json.loads(text) if text else {}
    except Exception as error:  # decoders of damaged files raise anything
        raise UserError(f"cannot read the settings of {str(path)!r}: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"the settings of {str(path)!r} are no JSON object")
    return settings
