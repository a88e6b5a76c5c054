"""Load a base of full size with random weights, and take a training step: seconds and memory.

    python scripts/dev/full_size.py ldm sd1 sdxl

A file with the published names, shapes and precision is written from the family's configuration and
deleted at the end: 6 GB (ldm), 4 GB (sd1), 7 GB (sdxl, float16). A process of its own loads it by
`load_model(FILE)` and takes a training step of a word at batch 1. The vocabularies must be there:

    scripts/download_models.sh vocabulary clip
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Type of the file, type of the networks in memory, side of the training image in pixels. On a CPU
# half precision is bfloat16: `--precision bf16` of main.py.
FAMILIES = {
    "ldm": ("float32", "float32", 256),
    "sd1": ("float32", "float32", 512),
    "sdxl": ("float16", "bfloat16", 512),
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="+", choices=list(FAMILIES), help="of the bases")
    parser.add_argument("--size", type=int, help="side of the training image in pixels")
    parser.add_argument("--folder", type=Path, help="for the file (the system's temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(family: str, path: Path, size: int) -> None:
    """Load the file, take a training step and print what both took."""
    import torch

    from ldm.experiments.benchmark.sides import SIDES, training_step
    from ldm.inference import load_model
    from ldm.training.memory import peak_bytes
    from ldm.words.manager import EmbeddingManager

    kind = FAMILIES[family][1]
    before, start = peak_bytes("cpu"), time.perf_counter()
    model = load_model(path, dtype=getattr(torch, kind))
    loading, held = time.perf_counter() - start, peak_bytes("cpu")
    model.requires_grad_(False)
    model.embedding_manager = EmbeddingManager(model.cond_stage_model, ["*"], ["cat"])
    model.image_size, model.seed = size // model.first_stage_downsampling, 0
    start = time.perf_counter()
    step = training_step(model.train(), SIDES["ours, float32"], 1)  # encodes the image
    encoding, start = time.perf_counter() - start, time.perf_counter()
    word = model.embedding_manager.word("*").detach().clone()
    loss = step()
    seconds = time.perf_counter() - start
    moved = not torch.equal(word, model.embedding_manager.word("*"))
    assert math.isfinite(loss)
    assert moved
    weights = sum(weight.numel() for weight in model.parameters()) / 1e9
    print(
        f"{family}: {weights:.2f} G weights in {kind}, {size} px, {torch.get_num_threads()} "
        f"threads: loading {loading:.1f} s, encoding the image {encoding:.1f} s, "
        f"step {seconds:.1f} s; "
        f"peak GB: imports {before / 1e9:.1f}, loaded {held / 1e9:.1f}, "
        f"after the step {peak_bytes('cpu') / 1e9:.1f}"
    )


def main() -> None:
    """Write, measure and delete each family's file."""
    options = parse()
    import torch

    from ldm.experiments.benchmark.startup import write_random_base

    for family in options.families:
        size = options.size or FAMILIES[family][2]
        if options.measure:
            measure(family, options.measure, size)
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / f"{family}.safetensors"
            write_random_base(family, path, getattr(torch, FAMILIES[family][0]))
            print(f"{family}: a file of {path.stat().st_size / 1e9:.2f} GB", flush=True)
            command = [sys.executable, __file__, family, "--size", str(size)]
            subprocess.run([*command, "--measure", str(path)], check=True)


if __name__ == "__main__":
    main()
