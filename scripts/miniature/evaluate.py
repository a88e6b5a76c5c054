"""Measure the miniature and write the table of models/miniature/README.md (`make miniature-eval`).

    python scripts/miniature/evaluate.py                               # everything, resumably
    python scripts/miniature/evaluate.py --parts autoencoder scorer     # some of it
    python scripts/miniature/evaluate.py --parts concepts --concepts teal-star red-mug --again

Parts: autoencoder (PSNR), scorer and selector (accuracies of the two CLIPs), samples (does the
scorer see what captions ask for), words (learn a word for each concept with main.py, with several
seeds, of which the selector chooses one), concepts (the scorer measures those words), table.
What is measured already, in models/miniature/metrics.json, is not measured again without --again.
Images go to examples/miniature/, learned words to examples/words/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ldm.evaluation.sources import ImageSource, from_model
from ldm.experiments.figures.output import write_png
from ldm.image_io import pil_grid
from ldm.inference import Sampling, load_model, load_words
from ldm.miniature.clip import MiniatureClip
from ldm.miniature.grammar import vocabulary
from ldm.miniature.measure import (
    Concept,
    autoencoder_psnr,
    caption_agreement,
    clip_accuracy,
    load_concepts,
    rendered_share,
    score_concept,
    score_word,
    vocabulary_features,
)
from ldm.miniature.table import insert, table
from ldm.util import cli_main, write_json

PARTS = ("autoencoder", "scorer", "selector", "samples", "words", "concepts", "table")
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "miniature"
WORD = "embeddings.safetensors"
LOG = logging.getLogger("miniature-eval")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--concepts", nargs="+", metavar="NAME", help="only these (all)")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--model", type=Path, default=MODEL / "model.safetensors")
    parser.add_argument("--config", type=Path, default=MODEL / "config.yaml")
    parser.add_argument("--scorer", "--judge", type=Path, default=MODEL / "scorer")
    parser.add_argument("--selector", type=Path, default=MODEL / "selector")
    parser.add_argument("--finetune", type=Path, default=ROOT / "configs/miniature/finetune.yaml")
    parser.add_argument("--variant", default="fast", help="recipe, as in main.py (fast)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 23], help="(1 2 23)")
    parser.add_argument("--words", type=Path, default=ROOT / "examples/words")
    parser.add_argument("--images", "--pictures", type=Path, default=ROOT / "examples/miniature")
    parser.add_argument("--metrics", type=Path, default=MODEL / "metrics.json")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/miniature-eval")
    parser.add_argument("--samples", type=int, default=768, help="captions to generate (768)")
    parser.add_argument("--each", type=int, default=16, help="images of a learned word (16)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (50)")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance (3)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1, help="words to learn at a time (1)")
    return parser.parse_args(arguments)


class Evaluation:
    """The parts of the evaluation over one model, and the file of what is measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.metrics: dict[str, Any] = {}
        if options.metrics.is_file():
            self.metrics = json.loads(options.metrics.read_text(encoding="utf-8"))

    def store(self, part: str, found: Any) -> None:
        """Keep one part's numbers, rounded, at once: the evaluation may be interrupted."""
        plain = json.dumps(found)
        self.metrics[part] = json.loads(plain, parse_float=lambda text: round(float(text), 4))
        write_json(self.options.metrics, self.metrics)
        LOG.info("%s: %s", part, json.dumps(self.metrics[part]))

    def wanted(self, part: str, name: str | None = None) -> bool:
        """Tell whether something is still to be measured."""
        known = self.metrics.get(part, {})
        return self.options.again or not (known if name is None else name in known)

    def load(self, *words: Path) -> Any:
        """Load the model, and learned words."""
        model = load_model(self.options.config, self.options.model)
        if words:
            load_words(model, words)
        return model

    def source(self, *words: Path) -> ImageSource:
        """Return what generates images with learned words: (prompts, images of each) → images."""
        own = self.options
        sampling = Sampling(steps=own.steps, scale=own.scale, batch_size=own.batch_size)
        return from_model(self.load(*words), sampling)

    def save(self, images: Sequence[Any], name: str, columns: int) -> None:
        """Write a grid of images, twice as large as generated."""
        path = self.options.images / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = pil_grid(images, columns)
        write_png(path, grid.resize((2 * grid.width, 2 * grid.height), 0), {})

    def concepts(self) -> list[Concept]:
        """Return the concepts asked for."""
        return load_concepts(ROOT / "examples/concepts", self.options.concepts)

    def measure_autoencoder(self) -> None:
        """PSNR on unseen images."""
        count = 1024
        psnr, shown = autoencoder_psnr(self.load(), count)
        self.save(shown, "reconstructions", 8)
        self.store("autoencoder", {"psnr": psnr, "images": count})

    def measure_scorer(self, part: str = "scorer") -> None:
        """A CLIP's accuracies on unseen images."""
        count = 2048
        accuracy = clip_accuracy(MiniatureClip.load(getattr(self.options, part)), count)
        self.store(part, {**accuracy, "images": count})

    def measure_selector(self) -> None:
        """The same of the CLIP that chooses."""
        self.measure_scorer("selector")

    def measure_samples(self) -> None:
        """What the scorer sees in images of random captions."""
        scorer, generate = MiniatureClip.load(self.options.scorer), self.source()
        started = time.monotonic()
        count = self.options.samples
        agreement, images, texts = caption_agreement(generate, scorer, count)
        seconds = time.monotonic() - started
        self.save(images[:64], "samples", 8)
        lines = [f"{i // 8 + 1}.{i % 8 + 1} {text}\n" for i, text in enumerate(texts[:64])]
        (self.options.images / "samples.txt").write_text("".join(lines), encoding="utf-8")
        rest = {"captions": count, "steps": self.options.steps, "scale": self.options.scale}
        found = {**dataclasses.asdict(agreement), **rest, "seconds": seconds}
        self.store("samples", found)

    def learn_word(self, concept: Concept, seed: int) -> float:
        """Learn one word by the command line that users have, unless it is there.

        Returns:
            Seconds of the whole command; 0 if it was there.
        """
        options = self.options
        logs = options.work / concept.name / f"seed{seed}"
        if (logs / WORD).is_file():
            return 0.0
        shutil.rmtree(logs, ignore_errors=True)
        command = [sys.executable, str(ROOT / "main.py"), "--base", str(options.finetune)]
        command += ["-t", "--no-test", "--actual_resume", str(options.model), "-l", str(logs)]
        command += ["--variant", options.variant] if options.variant else []
        command += ["--seed", str(seed), "-n", concept.name]
        command += concept.learning_options(str(ROOT / "examples/concepts" / concept.name))
        environment = dict(os.environ)
        if options.jobs > 1:
            environment["OMP_NUM_THREADS"] = str(self.cores())
        started = time.monotonic()
        logs.mkdir(parents=True)
        with (logs / "output.txt").open("w", encoding="utf-8") as output:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        seconds = time.monotonic() - started
        if done.returncode:
            raise RuntimeError(f"learning {concept.name} failed: see {logs / 'output.txt'}")
        (found,) = logs.glob(f"*/checkpoints/{WORD}")
        shutil.copyfile(found, logs / WORD)
        return seconds

    def cores(self) -> int:
        """Return the cores of each of the jobs; a process can be pinned to some, as by taskset."""
        affinity = getattr(os, "sched_getaffinity", None)
        count = len(affinity(0)) if affinity else os.cpu_count() or 1
        return max(1, count // self.options.jobs)

    def choose_word(self, concept: Concept) -> dict[str, Any]:
        """Ship the seed's word in whose images the selector sees scene and concept most often.

        Equal shares are decided by the image similarity.
        """
        options = self.options
        selector = MiniatureClip.load(options.selector)
        found = {}
        for seed in options.seeds:
            file = options.work / concept.name / f"seed{seed}" / WORD
            generate = self.source(file)
            score, _ = score_word(generate, selector, concept, options.each)
            found[seed] = [score.both, score.image_similarity]
        best = max(found, key=found.__getitem__)
        options.words.mkdir(parents=True, exist_ok=True)
        file = options.work / concept.name / f"seed{best}" / WORD
        shutil.copyfile(file, options.words / f"{concept.name}.safetensors")
        return {"seed": best, "selector": {str(seed): values for seed, values in found.items()}}

    def measure_words(self) -> None:
        """Learn and choose the words that are not there yet; keep the longest command's seconds."""
        for concept in self.concepts():
            if not self.wanted("words", concept.name):
                continue
            with ThreadPoolExecutor(self.options.jobs) as pool:
                runs = pool.map(partial(self.learn_word, concept), self.options.seeds)
            known = self.metrics.get("words", {})
            before = known.get(concept.name, {}).get("seconds", 0.0)  # of words that were there
            own = {"seconds": max(runs) or before, "cores": self.cores()}
            own |= self.choose_word(concept)
            self.store("words", {**known, concept.name: own})

    def measure_concepts(self) -> None:
        """Measure the learned words against the training images and the vocabulary."""
        scorer = MiniatureClip.load(self.options.scorer)
        words = [word for word in vocabulary() if word.isalpha() and len(word) > 2]
        features: dict[bool, Any] = {}
        for concept in self.concepts():
            file = self.options.words / f"{concept.name}.safetensors"
            if not (self.wanted("concepts", concept.name) and file.is_file()):
                continue
            generate = self.source(file)
            kind = concept.is_style
            if kind not in features:
                LOG.info("generating every word of the vocabulary (%d) to compare with", len(words))
                features[kind] = vocabulary_features(generate, scorer, words, concept.prompt, 4)
            score, shown = score_concept(
                generate, scorer, concept, features[kind], self.options.each
            )
            given = [image.resize((64, 64)) for image in concept.images]
            self.save([*given, *shown], f"concepts/{concept.name}", 5)
            own = {**dataclasses.asdict(score), "rendered": rendered_share(scorer, concept)}
            self.store("concepts", {**self.metrics.get("concepts", {}), concept.name: own})

    def measure_table(self) -> None:
        """Write the table into the model card."""
        text = table(self.metrics)
        card = self.options.metrics.with_name("README.md")
        insert(text, card)
        print(text)


def run() -> None:
    """Measure the parts asked for."""
    options = parse()
    evaluation = Evaluation(options)
    for part in PARTS:
        several = part in ("words", "concepts", "table")
        if part in options.parts and (several or evaluation.wanted(part)):
            getattr(evaluation, f"measure_{part}")()


if __name__ == "__main__":
    cli_main(run)
