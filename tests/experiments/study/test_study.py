"""The user study: blinded pages, answers there and back, known ranks and known ellipses."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.cli.user_study import main
from ldm.experiments.study.analysis import (
    Answers,
    analyse,
    covariance_of_means,
    ellipse_of,
    read_answers,
)
from ldm.experiments.study.page import page
from ldm.experiments.study.questionnaire import (
    KINDS,
    Choice,
    Question,
    Study,
    make_study,
    read_key,
    read_manifest,
    write_key,
)
from ldm.image_io import save_png
from ldm.util import UserError

MODELS = ("short-caption", "ours", "three-word", "regularised", "long-caption")
PROMPTS = ("A photo of *", "A * on the moon", "An oil painting of *")
BROWSER = Path(__file__).with_name("fake_browser.js")


def write_manifest(folder, drop=lambda row: False, suffix="csv"):
    """Two concepts, five models, three prompts, two images each; all images different."""
    rows, shade = [], 0
    for concept in ("cat", "mug"):
        kinds = [("training", "", 5)] + [(m, p, 2) for m in MODELS for p in PROMPTS]
        for model, prompt, count in kinds:
            for _ in range(count):
                shade += 1
                name = f"{model}-{shade}.png"
                image = Image.new("RGB", (8, 8), (shade, 3 * shade % 256, 90))
                save_png(image, folder / name, {"model": model, "prompt": prompt})
                rows.append({"concept": concept, "model": model, "prompt": prompt, "picture": name})
    rows = [row for row in rows if not drop(row)]
    path = folder / f"manifest.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_manifest(write_manifest(tmp_path_factory.mktemp("manifest")))


@pytest.fixture(scope="module")
def study(rows):
    return make_study(rows, seed=4)


def answer_file(study, kind, participant, order):
    """Answers of someone who ranks models in one order everywhere."""
    rankings = []
    for question in study.questions[kind]:
        name_of = {choice.model: choice.name for choice in question.choices}
        ranking = [name_of[model] for model in order]
        rankings.append({"question": question.name, "ranking": ranking})
    head = {"format": "ldm-study-answers", "study": study.name, "answer": participant}
    return {**head, "questionnaire": kind, "participant": participant, "rankings": rankings}


def saved(folder, *contents):
    paths = []
    for i, content in enumerate(contents):
        paths.append(folder / f"answers-{i}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def test_each_concept_is_asked_about_images_once_and_about_every_other_text(study):
    assert study.models == tuple(sorted(MODELS))
    image, text = study.questions["image"], study.questions["text"]
    assert sorted(q.concept for q in image) == ["cat", "mug"]
    assert sorted(q.text for q in text) == 2 * ["A on the moon"] + 2 * ["An oil painting of"]
    for question in (*image, *text):
        assert sorted(choice.model for choice in question.choices) == sorted(MODELS)
    assert all(len(set(q.examples)) == 4 and not q.text for q in image)
    assert not any(q.examples for q in text)


def test_a_seed_makes_one_study_and_another_makes_another(rows, study):
    assert make_study(rows, seed=4) == study
    assert make_study(list(reversed(rows)), seed=4).models == study.models
    assert make_study(rows, seed=5).name != study.name


def test_names_and_places_say_nothing_about_models(rows):
    """Over many seeds every model has every place, and names are not in the models' order."""
    places = {model: set() for model in MODELS}
    firsts = set()
    for seed in range(20):
        for question in make_study(rows, seed=seed).questions["text"]:
            for place, choice in enumerate(question.choices):
                places[choice.model].add(place)
            firsts.add(min(question.choices, key=lambda c: c.name).model)
    assert all(found == set(range(5)) for found in places.values())
    assert firsts == set(MODELS)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_page_asks_nothing_of_the_network_and_names_no_model(study, kind):
    html = page(study, kind)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>]+""", html)
    for forbidden in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttp"):
        assert forbidden not in html
    images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    questions = study.questions[kind]
    assert len(images) == sum(len(q.examples) + len(q.choices) for q in questions)
    seen = html.encode() + b"".join(base64.b64decode(image) for image in images)
    for model in MODELS:
        assert model.encode() not in seen
    assert b"manifest" not in seen
    for needed in ("viewport", "<noscript>", "aria-live", "aria-pressed"):
        assert needed in html


def test_a_text_cannot_end_the_script(study):
    question = replace(study.questions["text"][0], text="</script><b>")
    html = page(replace(study, questions={"text": (question,)}), "text")
    assert html.count("</script>") == 2
    data = re.search(r'id="study">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data.group(1))["questions"][0]["text"] == "</script><b>"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_pages_script_gives_the_ranking_that_was_pressed(study, kind, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(study, kind))
    order = [*MODELS[2:], *MODELS[:2]]
    wanted = {e["question"]: e["ranking"] for e in answer_file(study, kind, "p", order)["rankings"]}
    result = subprocess.run(
        [str(shutil.which("node")), str(BROWSER), str(file), "P 1", json.dumps(wanted)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert {e["question"]: e["ranking"] for e in content["rankings"]} == wanted
    for entry in content["rankings"]:
        assert sorted(entry["shown"]) == sorted(entry["ranking"])
    (answers,) = read_answers(study, saved(tmp_path, content))
    assert (answers.kind, answers.participant) == (kind, "p 1")
    for scores in answers.scores.values():
        assert [scores[model] for model in order] == [5, 4, 3, 2, 1]


def test_known_ranks_give_known_means(study, tmp_path):
    """By text A is first for two people of three and last for one; by images always second."""
    first, *rest = MODELS
    by_text = [[first, *rest], [first, *rest], [*rest, first]]
    files = [answer_file(study, "text", f"p{i}", order) for i, order in enumerate(by_text)]
    second = [rest[0], first, *rest[1:]]
    files += [answer_file(study, "image", f"p{i}", second) for i in range(3)]
    ranks = {r.model: r for r in analyse(study, read_answers(study, saved(tmp_path, *files)))}
    assert ranks[first].text == pytest.approx((5 + 5 + 1) / 3)
    assert ranks[first].image == 4
    assert ranks[rest[0]].text == pytest.approx((4 + 4 + 5) / 3)
    assert ranks[rest[0]].image == 5
    assert ranks[first].covariance[0, 0] == pytest.approx(np.var([5, 5, 1], ddof=1) / 3)
    assert ranks[first].covariance[1, 1] == 0
    assert sum(r.text for r in ranks.values()) == pytest.approx(15)


def test_pairs_have_the_covariance_of_their_mean():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12))
    first = {f"p{i}": v for i, v in enumerate(x)}
    second = {f"p{i}": v for i, v in enumerate(y)}
    np.testing.assert_allclose(covariance_of_means(first, second), np.cov(x, y) / 12)
    others = {f"q{i}": v for i, v in enumerate(y)}
    apart = np.diag([x.var(ddof=1), y.var(ddof=1)]) / 12
    np.testing.assert_allclose(covariance_of_means(first, others), apart)
    assert np.isnan(covariance_of_means(first, {"p0": 1.0})).all()


def test_the_covariance_of_partly_paired_means_is_what_repetition_finds():
    """10 in both, 10 more by text alone, correlation 0.8."""
    rng = np.random.default_rng(2)
    sources = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=(20000, 20))
    means = np.stack([sources[..., 0].mean(1), sources[:, :10, 1].mean(1)])
    found = [
        covariance_of_means(dict(enumerate(one[:, 0])), dict(enumerate(one[:10, 1])))
        for one in sources[:2000]
    ]
    np.testing.assert_allclose(np.mean(found, axis=0), np.cov(means), atol=4e-3)


@given(
    major=st.floats(0.1, 2), minor=st.floats(0.01, 0.09), angle=st.floats(1, 179),
    n=st.integers(3, 600),
)  # fmt: skip
def test_an_ellipse_of_known_covariance(major, minor, angle, n):
    turn = np.deg2rad(angle)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    ellipse = ellipse_of(axes @ np.diag([major**2, minor**2]) @ axes.T, n)
    assert ellipse.angle == pytest.approx(angle, abs=1e-5)
    assert ellipse.major / ellipse.minor == pytest.approx(major / minor, rel=1e-5)


def test_the_ellipses_size_is_hotellings():
    assert ellipse_of(np.eye(2), 10**7).major ** 2 == pytest.approx(5.9915, abs=1e-3)
    # 2·9/8·F(0.95; 2, 8), and F is 4.459 in the tables
    assert ellipse_of(np.eye(2), 10).major ** 2 == pytest.approx(18 / 8 * 4.459, rel=1e-3)
    with pytest.raises(ValueError, match="n must be at least 3, got 2"):
        ellipse_of(np.eye(2), 2)


def test_ellipses_hold_the_truth_in_95_of_100_studies():
    rng = np.random.default_rng(3)
    held = 0
    for sources in rng.multivariate_normal([3, 3], [[1, 0.5], [0.5, 2]], size=(2000, 8)):
        x, y = sources.T
        covariance = covariance_of_means(dict(enumerate(x)), dict(enumerate(y)))
        e = ellipse_of(covariance, 8)
        turn = np.deg2rad(e.angle)
        off = np.array([3 - x.mean(), 3 - y.mean()])
        along = off @ [np.cos(turn), np.sin(turn)]
        across = off @ [-np.sin(turn), np.cos(turn)]
        held += (along / e.major) ** 2 + (across / e.minor) ** 2 <= 1
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_two_participants_have_no_ellipse(study):
    scores = {q.name: {c.model: 3 for c in q.choices} for q in study.questions["text"]}
    few = [Answers(kind, f"p{i}", scores) for kind in ("text", "image") for i in range(2)]
    assert all(r.ellipse is None and r.covariance[0, 0] == 0 for r in analyse(study, few))


def test_the_command_line_from_manifest_to_plot(tmp_path, capsys):
    manifest = write_manifest(tmp_path, suffix="json")
    out = tmp_path / "study"
    assert main(["make", "--manifest", str(manifest), "--output", str(out), "--seed", "1"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["key.json", "questionnaires"]
    assert sorted(p.name for p in (out / "questionnaires").iterdir()) == ["image.html", "text.html"]
    key = read_key(out / "key.json")
    orders = [MODELS, MODELS[::-1], MODELS]
    files = saved(
        tmp_path,
        *(answer_file(key, k, f"p{i}", o) for k in ("image", "text") for i, o in enumerate(orders)),
    )
    results = out / "results"
    fixed = ["analyse", "--key", str(out / "key.json"), "--output", str(results)]
    assert main([*fixed, *map(str, files)]) == 0
    table = {r["model"]: r for r in csv.DictReader((results / "ranks.csv").open())}
    assert float(table[MODELS[0]]["text"]) == pytest.approx(11 / 3, rel=1e-5)
    assert float(table[MODELS[0]]["cov"]) == pytest.approx(16 / 9, rel=1e-5)
    assert table[MODELS[0]]["participants_both"] == "3"
    with Image.open(results / "ranks.png") as plot:
        assert plot.width > 500
    assert (results / "ranks.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match=r"key\.json exists, and answers may need it"):
        main(["make", "--manifest", str(manifest), "--output", str(out)])


def test_a_key_is_read_as_it_was_written(study, tmp_path):
    write_key(tmp_path / "key.json", study)
    assert read_key(tmp_path / "key.json") == study


def test_a_key_finds_its_images_from_anywhere(tmp_path, monkeypatch):
    """Those below it as seen from it, so that a folder may be moved; others by their whole path."""
    below, apart = tmp_path / "study" / "a.png", tmp_path / "b.png"
    for file in (below, apart):
        save_png(Image.new("RGB", (8, 8)), file)
    monkeypatch.chdir(tmp_path)
    choices = (Choice("p0", "ours", "study/a.png"), Choice("p1", "other", "b.png"))
    asked = (Question("q1", "cat", "A *", "", ("study/a.png",), choices),)
    write_key(tmp_path / "study" / "key.json", Study("0", 0, MODELS, dict.fromkeys(KINDS, asked)))
    (tmp_path / "study").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    question = read_key(tmp_path / "moved" / "key.json").questions["text"][0]
    assert question.examples == (str(tmp_path / "moved" / "a.png"),)
    found = [choice.image for choice in question.choices]
    assert found == [str(tmp_path / "moved" / "a.png"), str(apart)]


def test_a_key_of_before_finds_its_images_from_where_it_was_made(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_png(Image.new("RGB", (8, 8)), tmp_path / "generated" / "a.png")
    write_key(tmp_path / "study" / "key.json", study)
    content = json.loads((tmp_path / "study" / "key.json").read_text())
    choice = content["questions"]["text"][0]["choices"][0]
    del choice["image"]
    choice["picture"] = "generated/a.png"
    (tmp_path / "study" / "key.json").write_text(json.dumps(content))
    question = read_key(tmp_path / "study" / "key.json").questions["text"][0]
    assert question.choices[0].image == "generated/a.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "0" * 16}, r"are of another study \(0{16}, the key is of [0-9a-f]{16}\)"),
        ({"format": "other"}, "is no file of answers"),
        ({"participant": 3}, "is no file of answers"),
        ({"answered_by": 3}, "is no file of answers"),
        ({"questionnaire": "sound"}, "do not rank every image of every question"),
        ({"rankings": []}, "do not rank every image of every question"),
        ({"rankings": None}, "do not rank every image of every question"),
        ({"rankings": [{"question": "t01", "ranking": ["tp000"]}]}, "do not rank every image"),
    ],
)
def test_answers_that_do_not_belong_are_refused_in_a_line(study, tmp_path, change, message):
    content = {**answer_file(study, "text", "p", MODELS), **change}
    with pytest.raises(UserError, match=message) as caught:
        read_answers(study, saved(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_nobody_is_counted_twice_and_both_questionnaires_are_needed(study, tmp_path):
    one = answer_file(study, "text", "Ada", MODELS)
    with pytest.raises(UserError, match="are both of participant 'ada' to the text questionnaire"):
        read_answers(study, saved(tmp_path, one, {**one, "participant": " ada"}))
    with pytest.raises(UserError, match="no answers to the image questionnaire"):
        analyse(study, read_answers(study, saved(tmp_path, one)))
    with pytest.raises(UserError, match="no answers: give"):
        read_answers(study, [])


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (lambda r: r["model"] not in ("training", "ours"), "at least two models"),
        (
            lambda r: (r["concept"], r["model"], r["prompt"]) == ("mug", "ours", PROMPTS[1]),
            r"no image of 'mug' by 'ours' from 'A \* on the moon'",
        ),
        (lambda r: r["model"] == "training", "has 0 training images of 'cat'"),
        (lambda r: r["prompt"] == PROMPTS[0], "nothing to ask in the image questionnaire"),
    ],
)
def test_a_manifest_that_lacks_something_is_refused(tmp_path, drop, message):
    rows = read_manifest(write_manifest(tmp_path, drop))
    with pytest.raises(UserError, match=message):
        make_study(rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "no rows"),
        ("m.csv", "model,prompt\nours,a\n", "row 1: no picture"),
        ("m.csv", "model,picture\nours,a.png\n", "row 1: no prompt"),
        ("m.csv", "model,prompt,picture\nours,a,b.png\n", r"row 1: image .*b\.png does not"),
        ("m.json", "{", "m.json: Expecting"),
        ("m.json", "[1]", "no rows"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "ldm-study-key"}'])
def test_a_key_that_is_none_is_named(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(UserError, match="is no key of a study"):
        read_key(tmp_path / "key.json")
