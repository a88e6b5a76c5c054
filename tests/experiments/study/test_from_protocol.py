"""A user study from a protocol's table: which cells serve, and what is written of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli.user_study import main
from ldm.experiments.figures.published import RANKS
from ldm.experiments.protocol.cells import Cell, build_cells
from ldm.experiments.protocol.folder import Finished, write_images
from ldm.experiments.protocol.spec import read_protocol
from ldm.experiments.study.from_protocol import read_table, write_manifest
from ldm.experiments.study.questionnaire import Study, read_key, read_manifest
from ldm.image_io import open_rgb
from ldm.resources import ROOT
from ldm.util import UserError, write_json, write_whole

MODELS = ("ours", "three_words")
IMAGE_PROMPT = "A photo of a %"
PROMPTS = ("A % on the moon", "A sketch of a %")
CONCEPTS = ("cat", "mug")
# What decides an image's colour: concept, model, seed, prompt.
Code = tuple[str, str, int, str]


def colour(code: Code, number: int = 0) -> tuple[int, int, int]:
    concept, model, seed, prompt = code
    red = 100 * CONCEPTS.index(concept) + 20 * seed + number
    green = 10 * [*RANKS, "image_only"].index(model)
    return red, green, 7 * [IMAGE_PROMPT, *PROMPTS].index(prompt)


def training_folder(folder: Path, concept: str) -> Path:
    place = folder / "concepts" / concept
    place.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        Image.new("RGB", (4, 4), (i, 200, CONCEPTS.index(concept))).save(place / f"{i}.png")
    return place


def add_cell(
    output: Path, concept: str, model: str, seed: int, *, keep: int = 1, **score: Any
) -> Path:
    """Write a finished cell as a worker does; `score` changes its settings."""
    settings: dict[str, Any] = {
        "training": {f"{i}.png": "hash" for i in range(5)},
        "placeholder": "%",
        "prompts": list(PROMPTS),
        "image_prompt": IMAGE_PROMPT,
        "checkpoint": "hash",
        "sampler_steps": 4,
        "scale": 3.0,
        **({"keep": keep} if keep else {}),
        **score,
    }
    source = "images" if model == "image_only" else "learned"
    places = {"folder": str(training_folder(output.parent, concept))}
    cell = Cell(concept, model, seed, source, {"seed": seed}, settings, places)
    folder = output / "cells" / cell.name
    write_whole(folder / "cell.json", cell.to_json().encode())
    if keep:
        prompts = [settings["image_prompt"], *PROMPTS]
        images = {
            prompt: [
                Image.new("RGB", (4, 4), colour((concept, model, seed, known), j))
                for j in range(keep)
            ]
            for prompt, known in zip(prompts, [IMAGE_PROMPT, *PROMPTS], strict=True)
        }
        write_images(folder / "pictures.zip", images)
    write_json(folder / "scores.json", {"score_hash": cell.score_hash})
    return folder


def build(
    folder: Path,
    models: Sequence[str] = MODELS,
    concepts: Sequence[str] = CONCEPTS,
    seeds: Sequence[int] = (1, 2),
    keep: int = 1,
) -> Path:
    output = folder / "table"
    for concept in concepts:
        for model in models:
            for seed in seeds:
                add_cell(output, concept, model, seed, keep=keep)
    return output


def names(cells: Sequence[Finished]) -> list[str]:
    return [item.cell.name for item in cells]


def test_the_manifest_has_every_image_of_the_chosen_cells_as_it_was_drawn(tmp_path: Path) -> None:
    output = build(tmp_path, [*MODELS, "regularized"], keep=2)
    path = write_manifest(read_table(output, MODELS, [2]), tmp_path / "study" / "pictures")
    with path.open(newline="") as file:
        assert csv.DictReader(file).fieldnames == ["concept", "model", "prompt", "picture"]
    rows = read_manifest(path)
    generated = [row for row in rows if row.model != "training"]
    assert len(generated) == 2 * 2 * 3 * 2  # concepts, models, prompts, kept
    found: dict[Code, list[Any]] = {}
    for row in generated:
        assert row.image.is_relative_to(tmp_path / "study" / "pictures")
        code = (row.concept, row.model, 2, row.prompt)
        found.setdefault(code, []).append(tuple(np.asarray(open_rgb(row.image))[0, 0].tolist()))
    assert found == {code: [colour(code, 0), colour(code, 1)] for code in found}
    training = [row for row in rows if row.model == "training"]
    assert [row.concept for row in training] == ["cat"] * 5 + ["mug"] * 5
    assert all(row.image.is_relative_to(tmp_path / "study") for row in training)
    source = tmp_path / "concepts" / "mug" / "4.png"
    assert training[-1].image.read_bytes() == source.read_bytes()


def test_all_seeds_that_every_model_has_finished_serve(tmp_path: Path) -> None:
    output = build(tmp_path, concepts=["cat"])
    add_cell(output, "cat", "ours", 3)
    assert names(read_table(output, MODELS)) == [
        f"cat/{model}/seed{seed}" for model in MODELS for seed in (1, 2)
    ]
    assert names(read_table(output, MODELS, [2])) == [f"cat/{model}/seed2" for model in MODELS]


def test_training_images_as_such_serve_beside_every_seed(tmp_path: Path) -> None:
    output = build(tmp_path, ["ours"], ["cat"], [1, 2])
    add_cell(output, "cat", "image_only", 1)
    found = names(read_table(output, ["ours", "image_only"]))
    assert found == ["cat/image_only/seed1", "cat/ours/seed1", "cat/ours/seed2"]


def test_a_concept_without_all_models_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = build(tmp_path)
    shutil.rmtree(output / "cells" / "mug" / "three_words")
    assert {item.cell.concept for item in read_table(output, MODELS)} == {"cat"}
    (warning,) = caplog.messages
    assert warning == "mug is left out: no finished cell with images of three_words"


def test_a_concept_without_a_seed_asked_for_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = build(tmp_path)
    (output / "cells" / "mug" / "ours" / "seed2" / "scores.json").unlink()  # not finished
    assert {item.cell.concept for item in read_table(output, MODELS, [1, 2])} == {"cat"}
    assert caplog.messages == ["mug is left out: not every model has finished seed 2 of it"]


def test_no_concept_left_is_an_error(tmp_path: Path) -> None:
    output = build(tmp_path)
    shutil.rmtree(output / "cells" / "mug" / "three_words")
    shutil.rmtree(output / "cells" / "cat" / "ours")
    with pytest.raises(UserError, match="no concept has images by every model of ours, three_w"):
        read_table(output, MODELS)
    with pytest.raises(UserError, match="no concept has images of seeds 7 by every model"):
        read_table(build(tmp_path), MODELS, [7])


def test_a_model_without_finished_cells_is_an_error(tmp_path: Path) -> None:
    output = build(tmp_path)
    for path in output.glob("cells/*/ours/*/scores.json"):
        write_json(path, {"score_hash": "of other settings"})
    with pytest.raises(UserError, match="no finished cell of 'ours': finish the protocol"):
        read_table(output, MODELS)


def test_cells_without_images_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cells of 'ours' kept no images: set keep_pictures"):
        read_table(build(tmp_path, keep=0), MODELS)


def test_images_of_an_earlier_run_do_not_serve(tmp_path: Path) -> None:
    output = build(tmp_path, concepts=["cat"], seeds=[1])
    before = (output / "cells/cat/ours/seed1/pictures.zip").read_bytes()
    folder = add_cell(output, "cat", "ours", 1, keep=0)
    (folder / "pictures.zip").write_bytes(before)
    with pytest.raises(UserError, match="'ours' kept no images"):
        read_table(output, MODELS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompts", ["A % at sunset"]), ("placeholder", "*"), ("image_prompt", "%"), ("scale", 5.0)],
)
def test_models_of_different_prompts_or_sampling_are_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    output = build(tmp_path, seeds=[1])
    add_cell(output, "mug", "three_words", 1, **{name: value})
    message = f"cat/ours/seed1 and mug/three_words/seed1 differ in {name}: run the protocol again"
    with pytest.raises(UserError, match=message):
        read_table(output, MODELS)


def test_a_folder_that_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is no output of scripts/protocol\.py"):
        read_table(tmp_path / "nowhere", MODELS)
    output = build(tmp_path)
    (output / "cells" / "cat" / "ours" / "seed1" / "cell.json").write_text("[]")
    with pytest.raises(UserError, match=r"seed1/cell\.json describes no cell"):
        read_table(output, MODELS)


def test_training_images_that_are_gone_and_damaged_archives_are_named(tmp_path: Path) -> None:
    output = build(tmp_path)
    table = read_table(output, MODELS)
    write_images(output / "cells/mug/ours/seed1/pictures.zip", {IMAGE_PROMPT: []})
    with pytest.raises(UserError, match=r"mug/ours/seed1/pictures\.zip: none of 'A photo of a %'"):
        write_manifest(table, tmp_path / "pictures")
    (tmp_path / "concepts" / "cat" / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png of cell cat/ours/seed1 does not exist"):
        write_manifest(table, tmp_path / "pictures")


def study_of(folder: Path, *options: str) -> Study:
    output = build(folder, tuple(RANKS))
    out = folder / "study"
    assert main(["make", "--protocol", str(output), "--output", str(out), *options]) == 0
    return read_key(out / "key.json")


def test_the_command_makes_the_papers_study_and_knows_prompts_and_placeholder(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path)
    assert study.models == tuple(sorted(RANKS))
    image, text = study.questions["image"], study.questions["text"]
    assert {question.prompt for question in image} == {IMAGE_PROMPT}
    assert sorted({question.text for question in text}) == ["A on the moon", "A sketch of a"]
    for question in (*image, *text):
        for choice in question.choices:
            # Of two seeds one was generated by lot; all else is as the choice says.
            seen = tuple(np.asarray(open_rgb(choice.image))[0, 0].tolist())
            codes = [(question.concept, choice.model, s, question.prompt) for s in (1, 2)]
            assert seen in [colour(code) for code in codes]


def test_a_study_that_was_moved_still_finds_its_images(tmp_path: Path) -> None:
    study_of(tmp_path)
    for gone in ("table", "concepts"):
        shutil.rmtree(tmp_path / gone)
    moved = (tmp_path / "study").rename(tmp_path / "elsewhere")
    assert str(tmp_path) not in (moved / "key.json").read_text()
    study = read_key(moved / "key.json")
    for questions in study.questions.values():
        for question in questions:
            for file in (*question.examples, *(c.image for c in question.choices)):
                assert Path(file).is_file()
                assert Path(file).is_relative_to(moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "x", "--placeholder", "*"], "--placeholder goes with --manifest"),
        (["--protocol", "x", "--image_prompt", "*"], "--image_prompt goes with --manifest"),
        (["--manifest", "x", "--models", "a", "b"], "--models goes with --protocol"),
        (["--manifest", "x", "--seeds", "1"], "--seeds goes with --protocol"),
        (["--protocol", "x", "--models", "a", "a"], "--models must name each once, got a a"),
        (["--protocol", "x", "--models", "a"], "--models must name at least two, got a"),
        (["--protocol", "x", "--models", "a", "training"], "'training' cannot be in a study"),
        (["--protocol", "x", "--manifest", "y"], "not allowed with"),
        ([], "one of the arguments --manifest --protocol is required"),
        (["--protocol", "x"], "x is no output of"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_a_line(
    tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(["make", *options, "--output", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cells_hold_what_this_reads(tmp_path: Path) -> None:
    """The doubles above have no key that true cells lack."""
    made = json.loads((add_cell(tmp_path / "table", "cat", "ours", 1) / "cell.json").read_text())
    spec = read_protocol(ROOT / "configs" / "protocol" / "smoke.yaml")
    true = build_cells(spec, {})[0]
    assert true.score.keys() >= made["score"].keys()
    assert true.places.keys() >= made["places"].keys()
    for name in true.score["training"]:
        assert (Path(true.places["folder"]) / name).is_file()
