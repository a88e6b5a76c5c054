"""The demo from end to end on an untrained miniature, and what its page and numbers say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.cli import demo as cli
from ldm.experiments.demo import run as demo
from ldm.experiments.demo.page import DemoResult, page
from ldm.experiments.demo.scores import ScoredPrompt, Scores, read_curves, saved_words
from ldm.miniature.measure import Concept, load_concepts
from ldm.util import UserError, cli_main
from ldm.words.files import write_words

ROOT = Path(__file__).parents[3]


def arguments(model: Path, outdir: Path, *more: str) -> list[str]:
    return [
        *("--model", str(model), "--scorer", str(model / "scorer")),
        *("--words", str(model / "words"), "--outdir", str(outdir), *more),
    ]


def test_the_demo_learns_generates_scores_and_reports(
    untrained_miniature: Path, tmp_path: Path
) -> None:
    few = ["--steps", "4", "--ddim_steps", "1", "--samples", "2", "--scored", "2"]
    assert cli.main(arguments(untrained_miniature, tmp_path, *few)) == 0
    html = (tmp_path / "index.html").read_text("utf-8")
    for text in (
        "teal star with yellow dots",
        "a photo of a * on the moon",
        "in the style of @",
        "@ is a word learned before, chalk",
    ):
        assert text in html
    assert html.count("<svg") == 2, "loss and norm"
    grids = sorted(path.name for path in (tmp_path / "grids/teal-star").glob("*.png"))
    assert len(grids) == 4 + 5
    found = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    scores = [found, found["first_word"], found["training_pictures"]]
    for name in ("image_similarity", "text_similarity"):
        assert all(-1 <= score[name] <= 1 for score in scores)
    assert found["seconds"] > 0
    assert found["steps_per_second"] > 0
    assert len(found["prompts"]) == 5
    assert found["steps"] == 4


def test_words_over_the_steps_are_different_words(
    untrained_miniature: Path, tmp_path: Path
) -> None:
    from ldm.inference import load_model

    model = load_model(
        untrained_miniature / "config.yaml", untrained_miniature / "model.safetensors"
    )
    width = model.cond_stage_model.width
    for step in (1, 2):
        word = {"*": torch.randn(1, width)}
        write_words(tmp_path / f"embeddings_gs-{step}.safetensors", word, {"*": 5})
    saved = saved_words(tmp_path)
    assert list(saved) == [1, 2]
    options = cli.parse(["--samples", "2", "--ddim_steps", "1"])
    (concept,) = load_concepts(ROOT / "examples/concepts", ["teal-star"])
    scores = Scores(Levels(), [grey(0), grey(1)], ["*"])
    session = demo.Session(options, concept, model, scores, (Path("x"), "@"), {})
    one, two = (session.images("a photo of {word}", path) for path in saved.values())
    again = session.images("a photo of {word}", saved[1])
    assert [p.tobytes() for p in one] == [p.tobytes() for p in again]
    assert [p.tobytes() for p in one] != [p.tobytes() for p in two]
    session.images("a photo of a {word}", None)
    assert model.embedding_manager.placeholders == [], "the words are gone for the next prompt"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--concept", "unicorn"), "no concept 'unicorn'"),
        (("--second", "unicorn"), "no word 'unicorn'"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--ckpt", "nowhere.ckpt"), "checkpoint nowhere.ckpt does not exist"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_a_wrong_argument_is_one_line_before_any_training(
    more: tuple[str, ...], said: str, untrained_miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        cli.main(arguments(untrained_miniature, tmp_path, *more))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_training_command_is_the_one_a_user_would_type(tmp_path: Path) -> None:
    options = cli.parse(["--outdir", str(tmp_path), "--steps", "40"])
    star, style = load_concepts(ROOT / "examples/concepts", ["teal-star", "blueprint"])
    command = demo.training_command(options, star)
    for option, value in (
        ("--base", "configs/miniature/finetune.yaml"),
        ("--model", "models/miniature/model.safetensors"),
        ("--data_root", "examples/concepts/teal-star"),
        ("--init_word", "star"),
        ("--max_steps", "40"),
    ):
        assert command[command.index(option) + 1] == value
    assert any("personalized_style" in word for word in demo.training_command(options, style))


@pytest.mark.parametrize(
    ("status", "ends_with", "said"),
    [(2, 2, ""), (-9, 2, "error: main.py ended with status -9\n")],
)
def test_what_the_training_said_is_not_said_again(
    status: int,
    ends_with: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = cli.parse(["--outdir", str(tmp_path)])
    (concept,) = load_concepts(ROOT / "examples/concepts", ["teal-star"])
    ended = SimpleNamespace(returncode=status)
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(SystemExit) as caught:
        cli_main(lambda: demo.learn(options, concept) and 0)
    assert caught.value.code == ends_with
    assert capsys.readouterr().err == said


class Levels:
    """A scorer whose features are an image's grey level, and for a text the number of words."""

    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([[1.0, float(image.getpixel((0, 0))[0])] for image in images])

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, float(len(text.split()))] for text in texts])


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level,) * 3)


def test_scores_hold_each_image_against_the_same_prompt() -> None:
    scores = Scores(Levels(), [grey(0), grey(1)], ["*"])
    # Four words are left of the prompt: the image of level 4 points exactly there.
    scored = scores.score("scene", "a photo of * there", [grey(4)])
    assert scored.text_similarity == pytest.approx(1)
    expected = (1 / 17**0.5 + 5 / (17 * 2) ** 0.5) / 2
    assert scored.image_similarity == pytest.approx(expected)
    first = scores.score("scene", "a photo of dog there", [grey(4)], "a photo of * there")
    assert first.text_similarity == pytest.approx(1)
    assert scores.training_own() == pytest.approx(0.5**0.5)
    assert scores.training_text(["*"]) == pytest.approx((1 + 0.5**0.5) / 2)


def test_curves_leave_empty_cells_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,a,b\n1,2,\n2,,5\n3,4,6\n")
    assert read_curves(tmp_path / "metrics.csv") == {"a": ([1, 3], [2, 4]), "b": ([2, 3], [5, 6])}


def test_no_saved_word_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embeddings_gs"):
        saved_words(tmp_path)


def result(concept: Concept, curves: dict[str, tuple[list[float], list[float]]]) -> DemoResult:
    scored = ScoredPrompt("scene", "a photo of a * there", [grey(1)], 0.8, 0.3, 0.35)
    first = ScoredPrompt("scene", "a photo of a star there", [grey(1)], 0.6, 0.2, 0.25)
    return DemoResult(
        concept=concept,
        second=("@", "chalk"),
        over_steps=[(0, [grey(1)])],
        plain=scored,
        prompts=[scored, scored],
        initializer_plain=first,
        initializer_prompts=[first],
        training_similarity=0.9,
        training_text_similarity=0.1,
        curves=curves,
        steps=100,
        seconds={"learn": 50.0, "generate": 10.0},
        command="python main.py",
    )


def test_metrics_say_what_was_measured() -> None:
    (concept,) = load_concepts(ROOT / "examples/concepts", ["teal-star"])
    metrics = result(concept, {"seconds": ([50, 100], [20.0, 40.0])}).metrics()
    assert metrics["image_similarity"] == 0.8
    assert metrics["text_similarity"] == pytest.approx(0.3)
    assert metrics["first_word"]["image_similarity"] == 0.6
    assert metrics["training_pictures"]["image_similarity"] == 0.9
    assert metrics["seconds"] == 60
    assert metrics["steps_per_second"] == 2.5
    assert result(concept, {}).metrics()["steps_per_second"] == 2


def test_the_page_of_a_run_without_curves_still_opens() -> None:
    (concept,) = load_concepts(ROOT / "examples/concepts", ["teal-star"])
    html = page(result(concept, {}))
    assert "89% of that between the training images" in html
    assert "<svg" not in html
