"""Ten thousand damaged files for each reader give a value or the declared error, and fast.

Each mutation starts from a good file and flips bits, cuts, repeats, overwrites or inserts bytes.
"""

from __future__ import annotations

import base64
import io
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, PngImagePlugin
from safetensors.torch import save as safetensors_bytes

from ldm.checkpoint.files import read_state_dict
from ldm.data.folder import read_captions
from ldm.image_io import open_rgb, read_settings, save_png
from ldm.training.merge import merge_files
from ldm.training.resume import read_checkpoint
from ldm.util import UserError
from ldm.words.files import read_words, write_words

MUTATIONS = 10_000
SECONDS = 1.0
MEMORY = 200 * 2**20
TELLING = (0x00, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x2E, 0x3A, 0x7B, 0x7D)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to four places."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(out) - place)
        kind = rng.randrange(7)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place : place + length] = bytes([rng.choice(TELLING)] * length)
        elif kind == 2:
            out[place : place + length] = rng.randbytes(length)
        elif kind == 3:
            del out[place : place + length]
        elif kind == 4:
            out[place:place] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 5:
            other = rng.randrange(len(out) + 1)
            out[place:place] = out[other : other + 64]
        else:
            del out[place:]
        if not out:
            break
    return bytes(out)


def _zip(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _inside(data: bytes, rng: random.Random) -> bytes:
    """Damage one member of a zip archive, under right checksums: the pickle itself is met."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(n for n in parts if n.endswith("data.pkl"))
    return _zip({**parts, name: mutate(parts[name], rng)})


def word_files(folder: Path) -> dict[str, bytes]:
    tensor = torch.randn(2, 8)
    write_words(folder / "a.pt", {"*": tensor}, {"*": 5}, {"step": "3"})
    write_words(folder / "b.safetensors", {"*": tensor}, None, {"step": "3"})
    stored = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": tensor.tolist()}}, "name": "a"})
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(stored.encode()).decode())
    Image.new("RGB", (4, 4)).save(folder / "c.png", pnginfo=info)
    buffer = io.BytesIO()
    torch.save({"x": tensor}, buffer, _use_new_zipfile_serialization=False)
    (folder / "d.bin").write_bytes(buffer.getvalue())
    return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}


def model_files(folder: Path) -> dict[str, bytes]:
    state = {"a.weight": torch.randn(3, 3), "b": torch.zeros(2, dtype=torch.float16)}
    found = {".safetensors": safetensors_bytes(state)}
    for suffix, new in ((".ckpt", True), (".pt", False)):
        buffer = io.BytesIO()
        content = {"state_dict": state, "global_step": 3}
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        found[suffix] = buffer.getvalue()
    return found


def run_files(folder: Path) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(
        {
            "pytorch-lightning_version": "2.4", "global_step": 3, "loops": {"fit_loop": {}},
            "state_dict": {"a": torch.randn(3)}, "lr_schedulers": [], "callbacks": {},
            "optimizer_states": [], "epoch": 0,
        },
        buffer,
    )  # fmt: skip
    return {".ckpt": buffer.getvalue()}


def yaml_files(folder: Path) -> dict[str, bytes]:
    config = {
        "model": {"target": "ldm.x.Y", "base_learning_rate": 5e-3, "params": {"a": [1, 2]}},
        "data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2}},
        "run": {"seed": "${model.params.a[0]}"},
    }
    return {".yaml": OmegaConf.to_yaml(OmegaConf.create(config)).encode()}


def caption_files(folder: Path) -> dict[str, bytes]:
    return {".txt": "a photo of *\n\na cät in {} the sun ☃\r\n".encode()}


def image_files(folder: Path) -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    found = {}
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"):
        image.save(folder / f"a{suffix}", **({} if suffix == ".bmp" else {"exif": exif}))
        found[suffix] = (folder / f"a{suffix}").read_bytes()
    return found


def settings_files(folder: Path) -> dict[str, bytes]:
    path = save_png(Image.new("RGB", (4, 4)), folder / "a.png", {"prompt": "a ☃", "seed": 3})
    return {".png": path.read_bytes()}


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process grow by at most `MEMORY` bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (word_files, read_words),
        (model_files, read_state_dict),
        (run_files, read_checkpoint),
        (yaml_files, lambda path: merge_files([path], [])),
        (caption_files, lambda path: read_captions(path.with_suffix(".png"))),
        (image_files, open_rgb),
        (settings_files, read_settings),
    ],
    ids=["words", "models", "checkpoints", "YAML", "captions", "images", "PNG settings"],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_the_declared_error_fast_and_in_little_memory(
    make: Callable[[Path], dict[str, bytes]], read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "good").mkdir()
    rng, good = random.Random(0), make(tmp_path / "good")
    for suffix, data in good.items():
        (tmp_path / f"whole{suffix}").write_bytes(data)
        read(tmp_path / f"whole{suffix}")
    refused, problems = 0, []
    with little_memory():
        for number in range(MUTATIONS):
            suffix = rng.choice(sorted(good))
            zipped = good[suffix].startswith(b"PK") and rng.random() < 0.5
            path = tmp_path / f"x{suffix}"
            path.write_bytes((_inside if zipped else mutate)(good[suffix], rng))
            start = time.perf_counter()
            try:
                read(path)
            except UserError as error:
                refused += 1
                if "\n" in str(error):
                    problems.append(f"{number} {suffix}: two lines: {error}")
            except Exception as error:
                problems.append(f"{number} {suffix}: {type(error).__name__}: {error}")
            if (seconds := time.perf_counter() - start) > SECONDS:
                problems.append(f"{number} {suffix}: {seconds:.1f} s")
    assert not problems, "\n".join([str(len(problems)), *problems[:10]])
    assert refused or make is caption_files
