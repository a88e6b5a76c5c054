"""Runs one cell in a process of its own: `python -m ldm.experiments.protocol.worker FOLDER`.

The folder holds cell.json. Standard input is a pipe that its starter keeps open: when it closes,
the starter has ended, and the worker ends too. A training saves first, and the next worker
in this folder resumes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.names import find_delta
from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import (
    CELL,
    CURVES,
    DELTA,
    IMAGES,
    SCORES,
    TIMES,
    WORD,
    read_json,
)
from ldm.util import UserError, cli_main, write_json, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.evaluation.sources import ImageSource

log = logging.getLogger(__name__)
LAST_WORD = "embeddings.safetensors"  # in the folder of a run's checkpoints
GRACE = 60.0  # seconds in which a training may save after its starter has ended
# Set by the starter: what the worker may use.
DEVICE, THREADS = "LDM_PROTOCOL_DEVICE", "OMP_NUM_THREADS"


class Leash:
    """Ends this process group when standard input closes, which is when the starter dies."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(0, 4096):
            pass
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)  # main.py ends its step and saves
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(GRACE)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def run(self, command: Sequence[str], folder: str) -> int:
        """Run a command in a folder; return its exit status."""
        environment = {**os.environ, "PYTHONPATH": folder}
        self.child = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL
        )
        return self.child.wait()


def run_cell(folder: Path, leash: Leash) -> None:
    """Learn the cell's word, unless that is done, and score it.

    Raises UserError for a word that does not serve, SystemExit where the training failed, which has
    said why.
    """
    cell = Cell.from_json((folder / CELL).read_text(encoding="utf-8"))
    times: dict[str, Any] = {"learn": 0.0, "resumed": False, "steps": 0}
    if cell.learn is not None and not has_word(folder, cell):
        times = learn(cell, folder, leash)
    elif cell.learn is not None:
        known = read_json(folder / TIMES)
        times |= {name: known[name] for name in (*times, "words_at_once") if name in known}
    start = time.monotonic()
    scores = score(cell, folder)
    times |= {"score": round(time.monotonic() - start, 1), "pictures": cell.images_generated}
    times["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(folder / TIMES, times)
    # A worker may have been sent a word; nothing of its training is left to resume.
    for runs in folder.glob("learning-*"):
        shutil.rmtree(runs)
    write_json(folder / SCORES, scores)


def has_word(folder: Path, cell: Cell) -> bool:
    """Tell whether the cell's word is learned already."""
    from ldm.words.files import read_words

    if not (folder / WORD).is_file():
        return False
    return read_words(folder / WORD).metadata.get("protocol_learn_hash") == cell.learn_hash


def learn(cell: Cell, folder: Path, leash: Leash) -> dict[str, Any]:
    """Teach the word by main.py, or resume a run of these settings; return what times.json has."""
    assert cell.learn is not None
    logs = folder / f"learning-{cell.learn_hash}"
    for other in folder.glob("learning-*"):
        if other != logs:
            shutil.rmtree(other)
    run, times = train([cell], folder, logs, leash)
    last = run / "second_stage" if (run / "second_stage" / "checkpoints").is_dir() else run
    (folder / DELTA).unlink(missing_ok=True)
    if (delta := find_delta(last / "checkpoints")).is_file():
        delta.replace(folder / DELTA)
    if (curves := run / "logger" / "metrics.csv").is_file():
        write_whole(folder / CURVES, curves.read_bytes())
    keep(cell, folder, last / "checkpoints" / LAST_WORD)
    return times


def train(
    cells: Sequence[Cell], folder: Path, logs: Path, leash: Leash
) -> tuple[Path, dict[str, Any]]:
    """Teach the words of cells in one run of main.py, or resume it.

    `folder` is for copies of images, `logs` for the log folder. Returns the run's log folder, and
    what times.json has. SystemExit where the training failed.
    """
    assert cells[0].learn is not None
    command, resumed = learning_command(cells, folder, logs), begun(logs)
    if resumed is not None:
        command = [*command[:2], "-t", "--no-test", "--resume", str(resumed), *command[-2:]]
        log.info("resuming %s", resumed)
    start = time.monotonic()
    where = ["--gpus", "0"] if device() == "cuda" else ["--accelerator", "cpu"]
    if status := leash.run([*command, *where], str(cells[0].places["root"])):
        sys.exit(status)  # main.py has logged the error
    run = begun(logs)
    if run is None:
        raise UserError(f"main.py left no word in {logs}")
    return run, {
        "learn": round(time.monotonic() - start, 1),
        "resumed": resumed is not None,
        "steps": cells[0].learn["steps"],
    }


def learning_command(cells: Sequence[Cell], folder: Path, logs: Path) -> list[str]:
    """Return the command that begins to learn words; the last two arguments set the threads.

    The cells differ only in their concepts.
    """
    options = list(cells[0].places["options"])
    roots, words = [], []
    for cell in cells:
        assert cell.learn is not None
        root, size = Path(cell.places["folder"]), cell.places["size"]
        if size is not None:
            root = first_images(root, size, folder / "learning-pictures" / root.resolve().name)
        roots.append(str(root))
        words.append(cell.learn["first_word"])
    for name, values in (("--data_root", roots), ("--init_word", words)):
        place = options.index(name) + 1
        options[place : place + 1] = values
    return [
        *(sys.executable, str(Path(cells[0].places["root"]) / "main.py"), *options),
        *("--seed", str(cells[0].seed), "--logdir", str(logs), "--name", "run"),
        *("--threads", os.environ.get(THREADS, "1")),
    ]


def device() -> str:
    """Return the device of training and generation: of a GPU, the one this process was given."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    asked = os.environ.get(DEVICE, "auto")
    return found if asked == "auto" else asked


def first_images(source: Path, size: int, target: Path) -> Path:
    """Copy a folder's first images, and the captions beside them, into another; return that."""
    from ldm.data.folder import caption_file, list_images

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in list_images(source)[:size]:
        for file in (path, caption_file(path)):
            if file.is_file():
                shutil.copy(file, target)
    return target


def begun(logs: Path) -> Path | None:
    """Return the log folder of a run to resume; None where none has saved."""
    saved = sorted(logs.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return saved[-1].parent.parent if saved else None


def keep(cell: Cell, folder: Path, file: Path) -> None:
    """Copy a learned word into its cell's folder, with where it comes from."""
    from ldm.words.files import read_words, write_words

    assert cell.learn is not None
    word = read_words(file)
    facts = {
        "concept": cell.concept,
        "variant": cell.variant,
        "training_pictures": str(len(cell.learn["pictures"])),
        "protocol_learn_hash": cell.learn_hash,
    }
    facts = {**word.metadata, **facts}
    write_words(folder / WORD, word.words, word.token_ids, facts, word.second)


def score(cell: Cell, folder: Path) -> dict[str, Any]:
    """Generate the cell's images and score them; return what scores.json holds."""
    from ldm.data.folder import list_images
    from ldm.evaluation.evaluate import evaluate
    from ldm.evaluation.extractors import find_extractor
    from ldm.experiments.protocol.folder import keeping, write_images
    from ldm.image_io import open_rgb
    from ldm.miniature.editability import edit_scores

    asked = cell.score
    training = [open_rgb(path) for path in list_images(cell.places["folder"])]
    source, norms = image_source(cell, folder, training)
    kept: dict[str, list[Image]] = {}
    if "keep" in asked:
        source = keeping(source, asked["keep"], kept)
    extractor = find_extractor(cell.places["extractor"], device())
    found = evaluate(
        source,
        extractor,
        training,
        asked["prompts"],
        image_prompt=asked["image_prompt"],
        placeholders=[asked["placeholder"]],
        images=asked["pictures"],
        extra=edit_scores(extractor, resamples=asked["resamples"]),
        resamples=asked["resamples"],
    )
    if kept:
        write_images(folder / IMAGES, kept)
    hashes = {"learn_hash": cell.learn_hash, "score_hash": cell.score_hash}
    return {**hashes, **norms, **found.to_json()}


def image_source(
    cell: Cell, folder: Path, training: Sequence[Image]
) -> tuple[ImageSource, dict[str, float | None]]:
    """Return the source of the cell's images, and the norms of the word and the vocabulary."""
    from ldm.evaluation import sources
    from ldm.inference import Sampling, load_model, load_words

    unknown: dict[str, float | None] = {"word_norm": None, "vocabulary_norm": None}
    if cell.source == "images":
        return sources.from_images(training), unknown
    asked, words = cell.score, [cell.score["placeholder"]]
    delta = folder / DELTA if (folder / DELTA).is_file() else None
    places = cell.places
    model = load_model(places["config"], places["checkpoint"], device(), weight_delta=delta)
    load_words(model, [])
    prompts = [asked["image_prompt"], *asked["prompts"]]
    sampling = Sampling(
        steps=asked["sampler_steps"], scale=asked["scale"], seed=asked["seed"], batch_size=0
    )
    source = sources.from_model(model, sampling)
    if cell.source == "captions":
        texts = sources.captioned(prompts, len(asked["captions"]), asked["captions"], words)
        sources.check_lengths(model, texts)
        return sources.from_captions(source, asked["captions"], words), unknown
    if cell.source == "prompts":
        return sources.from_prompts(source, words), unknown
    load_words(model, folder / WORD, prompts)
    assert model.embedding_manager is not None
    norms = model.embedding_manager.norms()
    return source, {
        "word_norm": norms[f"norm/{words[0]}"],
        "vocabulary_norm": norms["vocabulary/mean"],
    }


def main(run: Callable[[Path, Leash], None] = run_cell) -> int:
    """Run what is in the folder that the command line names, with the starter's CPU threads."""
    leash = Leash()
    (folder,) = sys.argv[1:]
    if threads := os.environ.get(THREADS):
        import torch

        torch.set_num_threads(int(threads))
    run(Path(folder), leash)
    return 0


if __name__ == "__main__":
    cli_main(main)
