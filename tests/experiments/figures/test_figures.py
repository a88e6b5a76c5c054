"""The command lines: figures end to end, and what is wrong before anything is generated."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli import figures as cli
from ldm.evaluation.bootstrap import Estimate
from ldm.experiments.figures import bias
from ldm.experiments.figures.output import SUFFIXES
from ldm.experiments.figures.record import FIGURES, Line, find
from ldm.experiments.figures.request import Request
from ldm.experiments.figures.session import Scored, Session
from ldm.inference import GeneratedImage
from ldm.miniature.clip import PROMPTS
from ldm.miniature.render import MEDIA
from ldm.util import UserError

Options = Callable[..., list[str]]


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "figures").glob("*")}


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a figure's CSV, which a comment stands before."""
    return list(csv.DictReader(path.read_text().splitlines()[1:]))


@pytest.mark.parametrize("name", ["7", "9"])
def test_a_figure_end_to_end(name: str, options: Options, tmp_path: Path) -> None:
    assert cli.main([name, *options()]) == 0
    (figure,) = find(FIGURES, name)
    assert files(tmp_path) == {f"{figure.stem}{suffix}" for suffix in SUFFIXES}
    table = read_table(tmp_path / "figures" / f"{figure.stem}.csv")
    prompts = {prompt for line in figure.miniature for prompt in line.prompts}
    assert {row["prompt"] for row in table} == prompts
    assert {row["shown"] for row in table} == {"1"}
    about = (tmp_path / "figures" / f"{figure.stem}.txt").read_text()
    assert f"scripts/figures.py {name} --model" in about
    for part in ('"hash"', '"words": {', "model.safetensors"):
        assert part in about


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1", "4", "5", "6", "8", "11", "13", "14", "15", "16"])
def test_the_other_figures_end_to_end(name: str, options: Options, tmp_path: Path) -> None:
    assert cli.main([name, *options()]) == 0
    assert len(files(tmp_path)) == len(SUFFIXES)


def test_seed_and_images_decide_the_table(options: Options, tmp_path: Path) -> None:
    more = ("--pictures", "2", "--seed", "7")
    assert cli.main(["3", *options(*more)]) == 0
    table = read_table(tmp_path / "figures" / "fig03.csv")
    ours = [row for row in table if row["row"].startswith("ours")]
    assert [row["seed"] for row in ours] == ["7", "8"] * 3
    short = [row for row in table if row["row"] == "short captions"]
    assert {row["drawn_from"] for row in short} >= {"A photo of a teal star"}


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("1", ("--words", "nowhere"), "words folder nowhere does not exist"),
        ("1", ("--concepts", "nowhere"), "concepts folder nowhere does not exist"),
        ("1", ("--rename", "teal-star=unicorn"), "no learned word 'unicorn'"),
        ("1", ("--rename", "teal-star"), "NAME=OTHER"),
        ("1", ("--model", "nowhere"), "nowhere"),
        ("1", ("--pictures", "0"), "--images must be at least 1"),
        ("1", ("--steps", "1001"), "--steps must lie in 1..1000"),
        ("1", ("--scale", "nan"), "--scale must be at least 0"),
        ("1", ("--seed", "-1"), "--seed"),
        ("9", ("--image", "nowhere.png"), "--image and --mask go together"),
        ("9", ("--image", "no.png", "--mask", "no.png"), "image no.png does not exist"),
        ("11", ("--pivotal", "nowhere"), "nowhere lacks weight_delta.safetensors"),
        ("10b", (), "there are no answers of a user study"),
        ("10b", ("--answers", "a.json", "--key", "no.json"), "no.json does not exist"),
        ("12", ("--table", "nowhere"), "nowhere/summary.csv is not there: run `make protocol`"),
    ],
)
def test_bad_input_is_one_line_before_weights_are_read(
    name: str,
    more: tuple[str, ...],
    said: str,
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "ldm.experiments.figures.session.load_model", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(UserError) as error:
        cli.main([name, *options(*more)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "--ckpt_path" not in str(error.value), "an option that the command refuses"
    assert not (tmp_path / "figures").exists()


def test_a_missing_concept_is_named(options: Options, some_concepts: Path) -> None:
    with pytest.raises(UserError, match="no folder 'pink-heart'"):
        cli.main(["1", *options("--concepts", str(some_concepts))])


def test_a_concept_without_captions_is_named_before_weights_are_read(
    options: Options, some_concepts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ldm.experiments.figures.session.load_model", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(UserError, match="'teal-star' has no captions"):
        cli.main(["5", *options("--concepts", str(some_concepts))])


def test_an_empty_mask_is_one_line(options: Options, tmp_path: Path) -> None:
    for name in ("image.png", "mask.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    paths = ("--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"))
    with pytest.raises(UserError, match="empty"):
        cli.main(["9", *options(*paths)])


def test_all_draws_what_it_can_and_names_the_rest(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        status = cli.main(options("12", "9", "--table", str(tmp_path)))
    assert status == 2
    assert "figure 12 is left out" in caplog.text
    assert "1 of 2 figures were left out: 12" in caplog.text
    assert files(tmp_path) == {f"fig09{suffix}" for suffix in SUFFIXES}


@pytest.mark.parametrize(("more", "status"), [((), 2), (("--allow-missing",), 0)])
def test_missing_inputs_may_be_allowed(
    more: tuple[str, ...], status: int, options: Options, tmp_path: Path
) -> None:
    wanted = ("12", "10a", "--table", str(tmp_path))
    assert cli.main(options(*wanted, *more)) == status
    assert not files(tmp_path)


def test_an_unknown_figure_is_refused(options: Options) -> None:
    with pytest.raises(UserError, match="no figure '99'"):
        cli.main(options("99"))


def request(tmp_path: Path) -> Request:
    return Request(*[tmp_path] * 6)


class Levels:
    """Features of an image: its grey level's direction; of a text: always the same."""

    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        levels = torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index]
        return torch.stack([levels.cos(), levels.sin()], 1)

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(texts), -1)


def test_the_best_candidate_is_chosen_by_both_cosines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.experiments.figures import gallery
    from ldm.experiments.figures.subjects import Subject

    session = Session(request(tmp_path))
    scores = [(0.1, 0.9), (0.6, 0.6), (0.9, 0.1)]
    found = [
        Scored(GeneratedImage(Image.new("RGB", (4, 4), (i,) * 3), "*", i), *pair)
        for i, pair in enumerate(scores)
    ]
    own = Subject("teal-star", (Image.new("RGB", (4, 4), (200,) * 3),))
    monkeypatch.setattr(Session, "subject", lambda *_: own)
    monkeypatch.setattr(Session, "generate_line", lambda _, line, __: [found for _ in line.prompts])
    monkeypatch.setattr(Request, "is_miniature", True)
    rendered = gallery.curated(find(FIGURES, "6")[0], session)
    chosen = [row[3] for row in rendered.rows if row[-1]]
    assert chosen == [1] * 8  # four prompts of each style
    levels = [int(axes.images[0].get_array()[0, 0, 0]) for axes in rendered.canvas.axes]
    assert levels == [200, 1, 1, 1, 1] * 2


def test_scores_are_means_over_the_named_concepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.experiments.figures.subjects import Subject

    session = Session(request(tmp_path))
    session.__dict__["extractor"] = Levels()
    grey = {"a": Image.new("RGB", (4, 4), (0,) * 3), "b": Image.new("RGB", (4, 4), (1,) * 3)}
    monkeypatch.setattr(Session, "subject", lambda _, name: Subject(name, (grey[name],)))
    generated = [[GeneratedImage(grey["a"], prompt, 0)] for prompt in ("*", "* @")]
    monkeypatch.setattr(Session, "generate", lambda *_, **__: generated)
    (alone,), (both,) = session.generate_line(Line(("a", "b"), ("*", "* @")), 1)
    one = float(torch.tensor(1.0).cos())
    assert alone.image_similarity == pytest.approx(1)
    assert both.image_similarity == pytest.approx((1 + one) / 2)
    assert alone.text_similarity == pytest.approx(1)


def test_shares_are_counted_alone_and_by_group() -> None:
    given = np.array([0, 0, 1, 3])
    found = bias.count(given, ["a", "b", "c", "d"], "warm", ["a", "d"])
    assert [found[name].value for name in ("a", "b", "c", "d", "warm")] == [
        0.5,
        0.25,
        0,
        0.25,
        0.75,
    ]
    assert found["c"] == Estimate(0, 0, 0)
    assert found["warm"].low < 0.75 < found["warm"].high


def test_a_change_is_counted_in_pairs_of_the_same_noise() -> None:
    before, after = np.array([0, 0, 0, 1] * 8), np.array([1, 0, 0, 1] * 8)
    names = ["sketch", "photo"]
    change = bias.paired_change(before, after, names, ["sketch"])
    assert change.value == -0.25
    # Apart, 32 images of 0.75 and 0.5 would overlap; no pair changes towards the sketch.
    assert change.high < 0
    assert bias.paired_change(before, before, names, ["sketch"]) == Estimate(0, 0, 0)


def test_the_group_of_figure_8_is_among_its_answers_and_those_are_the_models_media() -> None:
    (figure,) = find(FIGURES, "8")
    for layout in figure.layout.values():
        assert set(layout["members"]) < set(layout["answers"])
    answers = figure.layout["miniature"]["answers"]
    assert tuple(answers) == MEDIA
    assert answers == {name: PROMPTS["medium"][name] for name in MEDIA}
