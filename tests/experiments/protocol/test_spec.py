"""Protocols as files: the shipped ones are right, mistakes are told in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.protocol import main
from ldm.experiments.protocol.cells import Cell, build_cells
from ldm.experiments.protocol.command import check_training
from ldm.experiments.protocol.spec import ProtocolSpec, read_protocol
from ldm.resources import ROOT
from ldm.util import UserError

FOLDER = ROOT / "configs" / "protocol"
PAPER = (  # what Fig. 10a has
    *("ours", "high_lr", "low_lr", "two_words", "three_words", "progressive", "per_image_tokens"),
    *("regularized", "captions_short", "captions_long", "image_only", "prompt_only"),
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the smoke protocol with changes: write("variants.two={}", ...) → path."""

    def make(*changes: str) -> Path:
        merged = OmegaConf.merge(
            OmegaConf.load(FOLDER / "smoke.yaml"), OmegaConf.from_dotlist(list(changes))
        )
        path = tmp_path / "protocol.yaml"
        OmegaConf.save(merged, path)
        return path

    return make


def cells(spec: ProtocolSpec) -> list[Cell]:
    return build_cells(spec, {"name": "scorer", "hash": "0"})


def test_the_miniature_covers_the_papers_variants_and_the_directional_one() -> None:
    spec = read_protocol(FOLDER / "miniature.yaml")
    assert len(spec.concepts) >= 8
    assert len(spec.seeds) == 3
    steps = {variant.name: variant.steps for variant in spec.variants}
    assert set(PAPER) <= set(steps)
    assert (steps["ours"], steps["ours_5000"]) == (100, 5000)
    check_training(spec)


def test_the_set_sizes_of_figure_12(tmp_path: Path) -> None:
    """Larger sets are made, not shipped: stand-ins take their place."""
    for name in OmegaConf.load(FOLDER / "sizes.yaml").concepts.words:
        (tmp_path / name).mkdir()
        for i in range(25):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    spec = read_protocol(FOLDER / "sizes.yaml", [f"concepts.folder={tmp_path}"])
    assert [v.size for v in spec.variants if v.size] == [1, 3, 5, 10]
    assert {len(concept.images) for concept in spec.concepts} == {25}
    check_training(spec)


def test_the_papers_protocol_is_the_papers(tmp_path: Path) -> None:
    """Its weights and images are the user's: stand-ins take their place."""
    weights = tmp_path / "model.ckpt"
    weights.write_bytes(b"x")
    for name in ("statue", "cat-toy"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    spec = read_protocol(
        FOLDER / "paper.yaml", [f"checkpoint={weights}", f"concepts.folder={tmp_path}"]
    )
    check_training(spec)
    assert set(PAPER) <= {variant.name for variant in spec.variants}
    asked = (spec.images, spec.sampler_steps, spec.scale, spec.extractor)
    assert asked == (64, 50, 5.0, "openai/clip-vit-base-patch32")
    assert {v.steps for v in spec.variants} == {5000, 400}


def test_a_base_may_be_a_file_or_a_folder(tmp_path: Path) -> None:
    of_file = read_protocol(FOLDER / "smoke.yaml")
    assert read_protocol(FOLDER / "smoke.yaml", ["checkpoint=miniature"]) == of_file
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "model.bin").write_bytes(b"x")
    spec = read_protocol(FOLDER / "smoke.yaml", [f"checkpoint={folder}"])
    assert spec.checkpoint == folder
    (cell, other) = (cells(made)[0] for made in (spec, of_file))
    assert cell.score["checkpoint"] != other.score["checkpoint"]


def test_cells_are_concepts_by_variants_by_seeds_and_images_know_no_seed() -> None:
    spec = read_protocol(FOLDER / "smoke.yaml", ["seeds=[1,2]"])
    names = [cell.name for cell in cells(spec)]
    assert len(names) == len(set(names)) == 2 * (2 * 4 + 1)
    first = ("ours/seed1", "ours/seed2", "captions_short/seed1")
    assert names[:3] == [f"teal-star/{name}" for name in first]
    assert {cell.images_generated for cell in cells(spec) if cell.source == "images"} == {0}
    sized = next(cell for cell in cells(spec) if cell.variant == "ours_n2")
    assert sized.learn is not None
    assert len(sized.learn["pictures"]) == 2
    assert len(sized.score["training"]) == 5


@pytest.mark.parametrize(
    ("change", "relearned", "rescored"),
    [
        ("pictures=3", False, True),
        ("prompts=examples/prompts/paper.txt", False, True),
        ("steps=5", True, True),
        ("concepts.words.teal-star.first_word=photo", True, True),
        ("variants.ours.overrides=[model.base_learning_rate=0.1]", True, True),
        ("estimate.step=7", False, False),
        ("reference=image_only", False, False),
    ],
)
def test_the_hashes_cover_what_decides_and_nothing_else(
    change: str, relearned: bool, rescored: bool
) -> None:
    before, after = (cells(read_protocol(FOLDER / "smoke.yaml", c))[0] for c in ([], [change]))
    assert (before.learn_hash != after.learn_hash) is relearned
    assert (before.score_hash != after.score_hash) is rescored


@pytest.mark.parametrize(("entry", "relearned"), [("threads", False), ("seed", True)])
def test_the_hashes_know_a_base_without_its_threads(
    entry: str, relearned: bool, tmp_path: Path
) -> None:
    """A cell is told its threads by the grid; they decide how fast it is."""
    hashes = []
    for value in (None, 1, 2):
        base = OmegaConf.load(ROOT / "configs/miniature/finetune.yaml")
        base.run = {} if value is None else {entry: value}
        OmegaConf.save(base, tmp_path / "base.yaml")
        spec = read_protocol(FOLDER / "smoke.yaml", [f"base=[{tmp_path / 'base.yaml'}]"])
        hashes.append(cells(spec)[0].learn_hash)
    assert (len(set(hashes)) == 3) is relearned
    assert (len(set(hashes)) == 1) is not relearned


def test_the_hashes_do_not_know_where_files_lie() -> None:
    cell = cells(read_protocol(FOLDER / "smoke.yaml"))[0]
    moved = dataclasses.replace(cell, places={**cell.places, "folder": "/elsewhere"})
    assert (moved.learn_hash, moved.score_hash) == (cell.learn_hash, cell.score_hash)


MISTAKES = [
    ("sedes=[1]", "unknown key sedes"),
    ("variants.ours.stpes=1", r"unknown key variants.ours.stpes: known are overlay, steps"),
    ("variants.two_wrods={}", "no variant 'two_wrods': there are two_words"),
    ("variants.ours.steps=0", "variants.ours.steps must be a whole number from 1"),
    ("variants.ours.captions=short", "only there; here it is 'learned'"),
    ("variants.captions_short.captions=rude", "wants 'rude' captions: concept 'teal-star' has"),
    ("variants.ours.overrides=[x]", "expected a.b=c, got 'x'"),
    ("concepts.words.ghost={first_word: star}", "concept 'ghost' has no folder"),
    ("concepts.folder=nowhere", "concepts.folder nowhere: no such folder"),
    ("concepts.words.a/b={first_word: star}", "'a/b' cannot be a folder's name"),
    ("image_prompt=a photo", "prompt 'a photo' names no learned word"),
    ("checkpoint=none.ckpt", "checkpoint none.ckpt does not exist"),
    ("prompts=none.txt", "prompts none.txt: no such file"),
    ("sizes.pictures=[6]", "6, but concept 'teal-star' has 5"),
    ("sizes.variant=image_only", "is no variant that learns a word"),
    ("seeds=[1,1]", "seeds must differ"),
    ("seeds=[]", "seeds must be a list"),
    ("reference=theirs", "reference 'theirs' is not among the variants"),
    ("scale=much", "scale must be a number"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_one_line_naming_the_file(write: Write, change: str, message: str) -> None:
    path = write(change)
    with pytest.raises(UserError, match=message) as caught:
        read_protocol(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_without_the_word_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of * here\na photo of nothing\n")
    with pytest.raises(UserError, match="'a photo of nothing' names no learned word"):
        read_protocol(write(f"prompts={tmp_path / 'prompts.txt'}"))


def test_an_override_that_no_training_takes_is_told_before_any_begins(write: Write) -> None:
    path = write("variants.ours.overrides=[model.params.nonsense=1]")
    with pytest.raises(UserError, match=r"variant ours: .*nonsense"):
        check_training(read_protocol(path))


def test_missing_clip_weights_are_told_before_any_cell_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.evaluation.extractors._hub_answers", lambda: False)
    path = write("extractor=openai/no-such-clip")
    with pytest.raises(UserError, match="no-such-clip is not on this machine"):
        main([str(path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["nonsense"], "overrides are written key=value"),
        (["--only", "nothing/*"], "matches no cell; they are named as 'teal-star/ours/seed1'"),
        (["--gpus", "1"], "--gpus SHARE goes with --ray"),
        (["--device", "abacus"], "--device 'abacus'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    write: Write, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main([str(write()), "--output", str(tmp_path / "out"), *options])


def test_a_dry_run_lists_the_cells_and_makes_nothing(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    output = tmp_path / "out"
    found: Any = main([str(write()), "--output", str(output), "--dry-run", "--workers", "2"])
    assert found == 0
    assert "teal-star/ours/seed1" in caplog.text
    assert "10 cells, 10 to run: about" in caplog.text
    assert not output.exists()
