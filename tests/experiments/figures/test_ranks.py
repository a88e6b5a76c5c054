"""Figure 10b: what is plotted is what the answers say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ldm.cli import figures as cli
from ldm.experiments.figures import ranks
from ldm.experiments.figures.published import RANKS
from ldm.experiments.figures.record import FIGURES, Rendered, find
from ldm.experiments.figures.request import Request
from ldm.experiments.figures.session import Session
from ldm.experiments.study.questionnaire import KINDS, Choice, Question, Study, write_key
from ldm.util import UserError

MODELS = ("ours", "short", "three_words")


def study(name: str = "0123456789abcdef") -> Study:
    choices = tuple(Choice(f"p{i}", model, "unused.png") for i, model in enumerate(MODELS))
    asked = {kind: (Question("q1", "cat", "A *", "", (), choices),) for kind in KINDS}
    return Study(name, 0, MODELS, asked)


def answer(
    folder: Path, kind: str, person: str, order: Sequence[str], of: str = "", by: str = ""
) -> Path:
    path = folder / f"{kind}-{person}.json"
    names = [f"p{MODELS.index(model)}" for model in order]
    content = {
        "format": "ldm-study-answers",
        "study": of or study().name,
        "questionnaire": kind,
        "participant": person,
        "rankings": [{"question": "q1", "ranking": names}],
        **({"answered_by": by} if by else {}),
    }
    path.write_text(json.dumps(content))
    return path


def generate(folder: Path, answers: Sequence[Path]) -> Rendered:
    write_key(folder / "key.json", study())
    request = Request(*[folder] * 6, answers=answers, key=folder / "key.json")
    return ranks.user_study(find(FIGURES, "10b")[0], Session(request))


def all_answers(folder: Path, by: str = "") -> list[Path]:
    orders = (MODELS, ("short", "ours", "three_words"), ("ours", "three_words", "short"))
    return [
        answer(folder, kind, f"person {i}", order, by=by)
        for kind in KINDS
        for i, order in enumerate(orders)
    ]


def test_mean_ranks_are_plotted_and_written(tmp_path: Path) -> None:
    rendered = generate(tmp_path, all_answers(tmp_path))
    here = {row[1]: row[2:4] for row in rendered.rows if row[0] == "here"}
    for model, mean in (("ours", 8 / 3), ("short", 2), ("three_words", 4 / 3)):
        assert here[model] == pytest.approx((mean, mean))
    paper = {row[1]: row[2:4] for row in rendered.rows if row[0] == "paper"}
    assert paper == {name: (rank.text, rank.image) for name, rank in RANKS.items()}
    right = rendered.canvas.axes[1]
    plotted = [(float(x[0]), float(y[0])) for x, y in (line.get_data() for line in right.lines)]
    assert plotted == [here[model] for model in MODELS]
    assert len(right.patches) == len(MODELS)
    assert right.get_title() == "here, 3 participants by images and 3 by texts"
    assert "people" not in " ".join(rendered.notes)


def test_an_extractors_rankings_are_never_shown_as_peoples(tmp_path: Path) -> None:
    rendered = generate(tmp_path, all_answers(tmp_path, by="extractor scorer"))
    said = "rankings by extractor scorer, not by people"
    title = rendered.canvas.axes[1].get_title()
    assert title == f"here: {said}\n3 simulated participants by images and 3 by texts"
    assert any(said in note for note in rendered.notes)
    assert {row[0] for row in rendered.rows} == {"paper", f"here, {said}"}


def test_figures_refuse_answers_of_people_and_of_an_extractor(tmp_path: Path) -> None:
    simulated = answer(tmp_path, "text", "simulated", MODELS, by="extractor scorer")
    with pytest.raises(
        UserError, match=r"by people and .* by extractor scorer: analyse them apart"
    ):
        generate(tmp_path, [*all_answers(tmp_path), simulated])


def test_answers_of_another_study_are_refused(tmp_path: Path) -> None:
    other = answer(tmp_path, "image", "eve", MODELS, of="another")
    with pytest.raises(UserError, match="another study"):
        generate(tmp_path, [other])


def test_without_answers_figure_10_draws_its_other_half_and_says_so(
    tmp_path: Path, untrained_miniature: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = ("text", "image")
    columns = [f"{score}_{end}" for score in scores for end in ("value", "low", "high")]
    header = ",".join(["variant", "training_pictures", *columns])
    (tmp_path / "summary.csv").write_text(f"{header}\nours,5,0.3,0.2,0.4,0.6,0.5,0.7\n")
    options = ["--model", str(untrained_miniature), "--table", str(tmp_path)]
    with caplog.at_level("WARNING"):
        status = cli.main(["10", *options, "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert status == 2
    assert "figure 10b is left out: there are no answers" in caplog.text
    assert (tmp_path / "out" / "fig10a.png").is_file()
    assert not (tmp_path / "out" / "fig10b.png").exists()
