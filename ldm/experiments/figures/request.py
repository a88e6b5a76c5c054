"""The inputs and settings of figures, checked before weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ldm.checkpoint.names import DELTA_FILE, find_delta
from ldm.experiments.figures.pivotal import WORD
from ldm.experiments.figures.record import Figure, Line
from ldm.util import UserError


def is_miniature(weights: Path) -> bool:
    """Tell whether weights are the miniature's: a small CLIP lies beside them."""
    from ldm.evaluation.extractors import scorer_beside

    return scorer_beside(weights) is not None


@dataclass(frozen=True)
class Request:
    """Where a figure's inputs lie and how its images are generated.

    Attributes:
        config, weights: of the model.
        words: folder of learned words, a file `NAME.safetensors` (or .pt, .bin) each.
        concepts: folder of concepts, a folder of images each.
        table: the protocol's output folder.
        output: folder of the figures.
        answers: answer files of the user study.
        key: key file of the user study.
        pivotal: folder of pivotal tuning: weight_delta.safetensors and the word; None for none.
        image, mask: of the local edit; None takes the miniature's own scene.
        extractor: the feature extractor that scores: a folder or a name on the Hub; empty for the
            model's own.
        images: number of images of a prompt.
        steps, scale, seed: of sampling.
        device: where to generate.
        rename: a figure's concept → the one to take in its place.
    """

    config: Path | None
    weights: Path
    words: Path
    concepts: Path
    table: Path
    output: Path
    answers: Sequence[Path] = ()
    key: Path | None = None
    pivotal: Path | None = None
    image: Path | None = None
    mask: Path | None = None
    extractor: str = ""
    images: int = 16
    steps: int = 50
    scale: float = 5.0
    seed: int = 42
    device: str = "cpu"
    rename: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_miniature(self) -> bool:
        """Whether the model is the miniature."""
        return is_miniature(self.weights)

    def lines(self, figure: Figure) -> tuple[Line, ...]:
        """Return a figure's lines for this model, with the concepts asked for."""
        return tuple(
            replace(line, concepts=tuple(self.rename.get(name, name) for name in line.concepts))
            for line in figure.lines(self.is_miniature)
        )

    def word_file(self, concept: str) -> Path:
        """Return the file of a learned word; UserError where there is none."""
        if not self.words.is_dir():
            raise UserError(f"words folder {self.words} does not exist: give --words DIR")
        for suffix in (".safetensors", ".pt", ".bin"):
            if (path := self.words / f"{concept}{suffix}").is_file():
                return path
        held = ", ".join(sorted({path.stem for path in self.words.glob("*.*")})) or "none"
        raise UserError(
            f"no learned word {concept!r} in {self.words} (there: {held}): "
            f"learn it, or take another with --rename {concept}=NAME"
        )

    def pivotal_files(self) -> tuple[Path, Path]:
        """Return the weight delta of pivotal tuning, and its word; UserError without them."""
        folder = self.pivotal or Path()
        words = (folder / name for name in (WORD, "word.safetensors"))
        delta, word = find_delta(folder), next(filter(Path.is_file, words), None)
        if word is None or not delta.is_file():
            raise UserError(
                f"--pivotal {folder} lacks {DELTA_FILE} or {WORD}: give "
                "LOGFOLDER/second_stage/checkpoints of a run with configs/variants/pivotal.yaml"
            )
        return delta, word

    def concept_folder(self, concept: str) -> Path:
        """Return the folder of a concept's images; UserError where there is none."""
        folder = self.concepts / concept
        if not self.concepts.is_dir():
            raise UserError(f"concepts folder {self.concepts} does not exist: give --concepts DIR")
        if not folder.is_dir():
            raise UserError(
                f"no folder {concept!r} in {self.concepts}: put the concept's images there, or "
                f"take another with --rename {concept}=NAME"
            )
        return folder


def check(figure: Figure, request: Request) -> None:
    """Raise UserError where a figure lacks what it needs: what is missing, and how to get it."""
    for line in request.lines(figure):
        for concept in line.concepts:
            if "words" in figure.needs:
                request.word_file(concept)
            if "concepts" in figure.needs:
                request.concept_folder(concept)
    if "table" in figure.needs and not (request.table / "summary.csv").is_file():
        raise UserError(
            f"the protocol's table {request.table}/summary.csv is not there: run `make protocol`, "
            "or give --table DIR"
        )
    if "pivotal" in figure.needs and request.pivotal is not None:
        request.pivotal_files()
    if "answers" in figure.needs:
        _check_answers(request)
    if "scene" in figure.needs:
        _check_scene(request)


def _check_answers(request: Request) -> None:
    if not request.answers or request.key is None:
        raise UserError(
            "there are no answers of a user study: make one with scripts/user_study.py, and give "
            "--answers FILE ... and --key key.json"
        )
    for path in (request.key, *request.answers):
        if not path.is_file():
            raise UserError(f"user study: {path} does not exist")


def _check_scene(request: Request) -> None:
    if (request.image is None) != (request.mask is None):
        raise UserError("--image and --mask go together: give both or neither")
    if request.image is None and not request.is_miniature:
        raise UserError("the local edit needs --image FILE and --mask FILE with this model")
    for path in (request.image, request.mask):
        if path is not None and not path.is_file():
            raise UserError(f"image {path} does not exist")
