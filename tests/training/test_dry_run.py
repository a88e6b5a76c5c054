"""`--dry_run`: a page about the run, and not one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from ldm.training.dry_run import near_duplicates
from ldm.util import UserError
from tests.training.conftest import Outcome
from tests.training.test_reliability import Learn, files


@pytest.fixture
def folder(tmp_path: Path, pictures: Path) -> Path:
    """Images of every kind that the page tells of."""
    made = tmp_path / "mine"
    made.mkdir()
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((60, 60))
    smooth.save(made / "a.png")
    smooth.resize((40, 40)).save(made / "a2.jpg", quality=90)
    oblong = Image.fromarray(rng.integers(0, 255, (20, 50, 3), dtype=np.uint8))
    exif = oblong.getexif()
    exif[0x0112] = 6
    oblong.save(made / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).save(made / "small.png")
    (made / "notes.txt").write_text("x")
    (made / "broken.png").write_bytes(b"x")
    return made


def test_the_page_tells_what_a_run_would_do_and_nothing_is_written(
    arguments: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    more = ["--data_root", str(folder), "--skip_bad", "--max_steps", "7", "--init_word", "a dog"]
    assert main.main([*arguments, *more, "--dry_run"]) == 0
    page = capsys.readouterr().out
    for line in (
        "4 used: a.png, a2.jpg, small.png, turned.jpg",
        "skipped 1 other files (notes.txt)",
        "skipped as broken: broken.png",
        "1 rotated as the camera says: turned.jpg",
        "1 enlarged to 8x8: small.png 5x5",
        "1 far from square and squashed (see --center_crop): turned.jpg 50x20",
        "1 pairs of near duplicates: a.png = a2.jpg",
        "from the initializer word 'a dog', which is 2 tokens: each vector starts from their mean",
        "placeholder '*' is token 5",
        "one step taken: loss 0.",
        "precision 32-true, learning rate 0.01",
        "7 steps: at most 0:0",
        "main memory: ",
        f"log folder {tmp_path / 'logs'}/mine2",
        "every 2 steps and at the end",
        "nothing was written",
    ):
        assert line in page, (line, page)
    assert files(tmp_path) == before
    assert not (tmp_path / "logs").exists()


def test_captions_that_say_the_initializer_word_are_told(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.txt").write_text("a * dog in the dark\na * and a *")
    more = ["--data_root", str(folder), "--skip_bad", "--captions", "--dry_run"]
    assert main.main([*arguments, *more]) == 0
    page = capsys.readouterr().out
    assert "1 captions name the initializer word 'dog' beside the learned one" in page
    assert "1 captions name '*' twice" in page


def test_a_dry_resume_leaves_the_run_as_it_was(
    learn: Learn, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome: Outcome = learn("dry", "--no-test")
    before = files(outcome.folder)
    resume = ["-t", "--resume", str(outcome.folder), "--max_steps", "5", "--dry_run"]
    assert main.main(resume) == 0
    assert "at step 2 of 5" in capsys.readouterr().out
    assert files(outcome.folder) == before
    with pytest.raises(UserError, match="the checkpoint has no word '@'"):
        main.main([*resume, "--placeholder_string", "@"])


def test_class_images_and_a_second_stage_are_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main([*arguments, "--variant", "pivotal_dreambooth", "--dry_run"]) == 0
    page = capsys.readouterr().out
    assert "class images of 'a photo of a dog' would be generated" in page
    assert "a second stage would follow, in " in page
    assert not (tmp_path / "logs").exists()


def test_one_folder_is_looked_at(arguments: list[str], folder: Path) -> None:
    with pytest.raises(UserError, match="--dry_run looks at one folder: give one --data_root"):
        main.main([*arguments, "--data_root", str(folder), str(folder.parent), "--dry_run"])


def test_a_first_loss_that_is_not_finite_is_an_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="loss of the first step is not finite, in precision 32"):
        main.main([*arguments, "--dry_run", "model.params.scale_factor=1e30"])


def test_near_duplicates_are_those_that_look_alike(tmp_path: Path, pictures: Path) -> None:
    paths = sorted(pictures.iterdir())
    assert near_duplicates(paths) == []
    (tmp_path / "same.png").write_bytes(paths[1].read_bytes())
    assert near_duplicates([*paths, tmp_path / "same.png"]) == [(paths[1], tmp_path / "same.png")]
