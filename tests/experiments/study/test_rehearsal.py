"""The user study's rehearsal: an extractor's rankings, from pages to plot, and always called so."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.cli.user_study import main
from ldm.evaluation import extractors
from ldm.experiments.figures.published import RANKS, TRADE_OFF, Published
from ldm.experiments.study import analysis as study_analysis
from ldm.experiments.study.analysis import analyse, caveat, read_answers
from ldm.experiments.study.questionnaire import KINDS, Choice, Question, Study, write_key
from ldm.experiments.study.rehearsal import (
    TEMPERATURE,
    open_images,
    rank,
    rehearse,
    score_choices,
    write_answers,
)
from ldm.util import UserError

MODELS = ("faithful", "wordy", "grey")
COLOURS = {"faithful": "red", "wordy": "blue", "grey": "grey"}
BY = {"name": "double", "kind": "Double", "hash": "0" * 16}


class Double:
    """An image's features are its colour; a text's, the colour it names last."""

    model = torch.nn.Linear(1, 1)

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[float(v) for v in image.getpixel((0, 0))] for image in images])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return self.image_features([Image.new("RGB", (4, 4), t.split()[-1]) for t in texts])


def build(folder: Path) -> Study:
    """One thing, which is red, and a text about blue; a question of each kind."""
    for colour in ("red", "blue", "grey"):
        Image.new("RGB", (4, 4), colour).save(folder / f"{colour}.png")
    choices = tuple(
        Choice(f"p{i}", model, str(folder / f"{COLOURS[model]}.png"))
        for i, model in enumerate(MODELS)
    )
    examples = (str(folder / "red.png"), str(folder / "red.png"))
    image = Question("i01", "thing", "A photo of *", "", examples, choices)
    text = Question("t01", "thing", "* in blue", "in blue", (), choices)
    study = Study("0123456789abcdef", 0, MODELS, {"image": (image,), "text": (text,)})
    write_key(folder / "key.json", study)
    return study


def people(folder: Path, study: Study) -> list[Path]:
    """Write the answers of three people, as the pages save them."""
    folder.mkdir()
    files = []
    for kind in KINDS:
        for person in range(3):
            ranking = [{"question": f"{kind[0]}01", "ranking": ["p0", "p1", "p2"]}]
            content = {
                "format": study_analysis.FORMAT,
                "study": study.name,
                "questionnaire": kind,
                "participant": f"person {person}",
                "rankings": ranking,
            }
            files.append(folder / f"{kind}-{person}.json")
            files[-1].write_text(json.dumps(content))
    return files


def test_choices_are_scored_by_cosines_with_the_images_or_the_text(tmp_path: Path) -> None:
    study = build(tmp_path)
    scores = score_choices(study, open_images(study), Double())
    assert scores["image"]["i01"] == pytest.approx([1, 0, 3**-0.5])  # red, blue, grey by red
    assert scores["text"]["t01"] == pytest.approx([0, 1, 3**-0.5])  # and by blue


def test_rankings_have_plackett_and_luces_probabilities() -> None:
    rng = np.random.default_rng(0)
    scores, temperature, n = np.array([0.3, 0.1, 0.2]), 0.1, 20000
    found = Counter(tuple(rank(scores, temperature, rng)) for _ in range(n))
    weight = np.exp(scores / temperature)
    for order in permutations(range(3)):
        first, second, _ = order
        expected = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        assert found[order] / n == pytest.approx(expected, abs=0.012)


def expected_ranks(scores: Mapping[str, float], temperature: float) -> np.ndarray:
    """Return 1 + the sum over the others of the probability to come before them."""
    values = np.array([scores[name] for name in RANKS]) / temperature
    wins = 1 / (1 + np.exp(values[None] - values[:, None]))
    return 1 + wins.sum(1) - 0.5  # less that over itself


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_temperature_fits_the_papers_ranks_to_its_scores(kind: str) -> None:
    def value(of: Published) -> float:
        return float(getattr(of, kind))

    ranks = np.array([value(rank) for rank in RANKS.values()])
    scores = {name: value(TRADE_OFF[name]) for name in RANKS}
    grid = np.arange(0.01, 0.3, 0.001)
    errors = [np.square(expected_ranks(scores, t) - ranks).sum() for t in grid]
    assert grid[np.argmin(errors)] == pytest.approx(TEMPERATURE, abs=0.003)


def test_a_seed_gives_one_rehearsal_and_more_participants_add_to_it(tmp_path: Path) -> None:
    study = build(tmp_path)
    scores = score_choices(study, open_images(study), Double())
    few = rehearse(study, scores, BY, participants=3, temperature=1.0, seed=5)
    assert rehearse(study, scores, BY, participants=7, temperature=1.0, seed=5)[:6] == few
    assert rehearse(study, scores, BY, participants=3, temperature=1.0, seed=6) != few
    orders = {
        tuple(answers["rankings"][0]["ranking"])
        for answers in rehearse(study, scores, BY, participants=40, temperature=1.0)
    }
    assert len(orders) == 6  # nobody repeats another


def test_answers_are_read_as_the_pages_are_and_give_the_scores_order(tmp_path: Path) -> None:
    study = build(tmp_path)
    scores = score_choices(study, open_images(study), Double())
    made = rehearse(study, scores, BY, participants=3, temperature=1e-3)
    answers = read_answers(study, write_answers(tmp_path / "answers", made))
    assert caveat(answers) == "rankings by extractor double, not by people"
    ranks = {r.model: (r.text, r.image) for r in analyse(study, answers)}
    assert ranks == {"faithful": (1, 3), "wordy": (3, 1), "grey": (2, 2)}


def test_answers_of_people_and_of_an_extractor_are_not_mixed(tmp_path: Path) -> None:
    study = build(tmp_path)
    scores = score_choices(study, open_images(study), Double())
    own = people(tmp_path / "people", study)
    made = rehearse(study, scores, BY, participants=1)
    files = write_answers(tmp_path / "rehearsal", made)
    assert caveat(read_answers(study, own)) == ""
    for mixed in ([*own, *files], [*files, *own]):
        with pytest.raises(UserError, match=r"are by .*: analyse them apart") as caught:
            read_answers(study, mixed)
        assert "people" in str(caught.value)
        assert "extractor double" in str(caught.value)
    other = rehearse(study, scores, {**BY, "name": "other"}, participants=2)[2:]
    with pytest.raises(UserError, match=r"extractor double and .* by extractor other"):
        read_answers(study, [*files, *write_answers(tmp_path / "other", other)])


def test_the_command_line_from_key_to_ranks_says_who_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = build(tmp_path)
    monkeypatch.setattr(extractors, "find_extractor", lambda name: Double())
    out, key = tmp_path / "rehearsal", ["--key", str(tmp_path / "key.json")]
    with caplog.at_level("INFO"):
        command = ["rehearse", *key, "--scorer", "some/double", "--participants", "4"]
        assert main([*command, "--output", str(out)]) == 0
        assert "no people's answers" in caplog.text
        files = sorted(map(str, out.iterdir()))
        assert len(files) == 8
        assert json.loads(Path(files[0]).read_text())["rehearsal"]["temperature"] == TEMPERATURE
        results = tmp_path / "results"
        assert main(["analyse", *key, *files, "--output", str(results)]) == 0
    by = "rankings by extractor some/double, not by people"
    assert f"a rehearsal: {by}" in caplog.text
    assert "simulated participants: 4 by text, 4 by images, 4 both" in caplog.text
    with (results / "ranks.csv").open() as file:
        assert [row["note"] for row in csv.DictReader(file)] == [by] * 3
    own = people(tmp_path / "people", study)
    caplog.clear()
    assert main(["analyse", *key, *map(str, own), "--output", str(results)]) == 0
    with (results / "ranks.csv").open() as file:
        assert [row["note"] for row in csv.DictReader(file)] == [""] * 3
    assert "rehearsal" not in caplog.text
    with pytest.raises(UserError, match="lies there already: give another --output"):
        main([*command, "--output", str(out)])


def test_the_plot_of_an_extractors_rankings_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    titles: list[str] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *_, **__: titles.append(self.axes[0].get_title())
    )
    study = build(tmp_path)
    ranks = analyse(study, read_answers(study, people(tmp_path / "people", study)))
    study_analysis.save_plot(ranks, [tmp_path / "a.png"], "rankings by a thing")
    study_analysis.save_plot(ranks, [tmp_path / "b.png"])
    assert titles == ["rankings by a thing", ""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--participants", "0"], "--participants must be at least 1, got 0"),
        (["--temperature", "0"], "--temperature must be above 0, got 0"),
        (["--temperature", "nan"], "--temperature must be above 0, got nan"),
        (["--temperature", "inf"], "--temperature must be above 0, got inf"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--key", "nowhere.json"], "key nowhere.json: No such file"),
        ([], r"red\.png' does not exist"),
    ],
)
def test_a_mistake_is_said_before_the_extractor_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    build(tmp_path)
    (tmp_path / "red.png").unlink()
    monkeypatch.delattr(extractors, "find_extractor")
    command = ["rehearse", "--key", str(tmp_path / "key.json"), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*command, *options])


def test_the_shipped_scorer_answers(tmp_path: Path) -> None:
    study = build(tmp_path)
    assert main(
        ["rehearse", "--key", str(tmp_path / "key.json"), "--output", str(tmp_path / "out"),
         "--participants", "3"]
    ) == 0  # fmt: skip
    answers = read_answers(study, sorted((tmp_path / "out").iterdir()))
    assert caveat(answers) == "rankings by extractor scorer, not by people"
    assert len(answers) == 6
