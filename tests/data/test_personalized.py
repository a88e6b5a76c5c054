"""Folders of images: what is shown and said for each sample, and what is refused."""

import logging
import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from ldm.data import personalized, personalized_style
from ldm.data.folder import insert_placeholder, list_images
from ldm.data.personalized import PersonalizedBase
from ldm.data.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from ldm.image_io import open_rgb
from ldm.util import UserError, instantiate_from_config
from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS


def paint(path: Path, colour: int, width: int = 8, height: int = 6) -> None:
    """A image whose left half is `colour` and whose right half is black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = colour
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i, name in enumerate(["c.png", "a.png", "b.PNG"]):
        paint(root / name, 100 + 50 * i)
    return root


def colours(dataset):
    """The bright half's value of each unflipped image, in order of places."""
    ids = [i for i in dataset.image_ids() if i % 2 == 0]
    return [round((dataset.image(i)[0, 0, 0] + 1) * 127.5) for i in ids]


def test_the_number_of_images_has_the_originals_name(folder):
    dataset = PersonalizedBase(folder, repeats=7)
    assert (dataset.num_images, len(dataset)) == (3, 21)


class TestListing:
    def test_is_sorted_by_name(self, folder):
        assert colours(PersonalizedBase(folder)) == [150, 200, 100]

    def test_skips_junk_and_folders_with_a_report(self, folder, caplog):
        for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt", "a.txt"):
            (folder / name).write_text("x")
        (folder / "old").mkdir()
        paint(folder / "old" / "z.png", 9)
        with caplog.at_level(logging.INFO):
            dataset = PersonalizedBase(folder)
        assert len(dataset.paths) == 3
        (report,) = [r.message for r in caplog.records]
        assert "3 images" in report
        assert "4 other files (.DS_Store, ._a.png, Thumbs.db, notes.txt)" in report
        assert "1 sub-folders (old)" in report

    def test_of_nothing_is_an_error_that_says_what_is_there(self, tmp_path):
        with pytest.raises(UserError, match="holds no images: put"):
            list_images(tmp_path)
        (tmp_path / "film.mp4").write_text("")
        with pytest.raises(UserError, match=r"only 1 other files \(film.mp4\)"):
            list_images(tmp_path)
        with pytest.raises(UserError, match="not a folder"):
            list_images(tmp_path / "film.mp4")
        with pytest.raises(UserError, match="not a folder"):
            list_images(tmp_path / "nowhere")

    def test_a_broken_image_is_found_at_once(self, folder):
        (folder / "d.jpg").write_text("not an image")
        with pytest.raises(UserError, match=r"d\.jpg.*cannot be read"):
            PersonalizedBase(folder)

    def test_takes_regular_files_only(self, folder, caplog):
        os.mkfifo(folder / "fifo.png")
        own = socket.socket(socket.AF_UNIX)
        own.bind(str(folder / "socket.jpg"))
        (folder / "gone.png").symlink_to(folder / "nothing")
        (folder / "zero.png").symlink_to("/dev/zero")
        (folder / "link.png").symlink_to(folder / "a.png")
        with caplog.at_level(logging.INFO):
            assert len(PersonalizedBase(folder).paths) == 4
        assert "4 that are not regular files (fifo.png, gone.png, socket.jpg, zero.png)" in (
            caplog.text
        )
        own.close()

    def test_a_file_that_is_no_regular_one_is_refused_where_it_is_named(self, tmp_path):
        os.mkfifo(tmp_path / "fifo.png")
        with pytest.raises(UserError, match=r"fifo.png' is not a regular file"):
            open_rgb(tmp_path / "fifo.png")

    def test_a_file_that_vanishes_meanwhile_is_one_line(self, folder, monkeypatch):
        monkeypatch.setattr(personalized, "list_images", lambda _: (folder / "gone.png",))
        with pytest.raises(UserError, match=r"gone.png' does not exist"):
            PersonalizedBase(folder)

    def test_a_folder_that_cannot_be_read_is_one_line(self, folder, monkeypatch):
        def vanished(_):
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr(Path, "iterdir", vanished)
        with pytest.raises(UserError, match=r"data_root .* cannot be read: No such file"):
            list_images(folder)

    def test_broken_images_can_be_skipped(self, folder, caplog):
        (folder / "aa.png").write_bytes((folder / "a.png").read_bytes()[:60])
        (folder / "d.jpg").write_bytes(b"no image")
        with pytest.raises(UserError, match=r"aa.png' cannot be read .* --skip_bad"):
            PersonalizedBase(folder)
        dataset = PersonalizedBase(folder, skip_bad=True)
        assert [path.name for path in dataset.paths] == ["a.png", "b.PNG", "c.png"]
        assert colours(dataset) == [150, 200, 100]
        assert "skipped 2 of 5 images that cannot be read: " in caplog.text
        assert "aa.png" in caplog.text
        assert [name for name, _ in dataset.skipped] == ["aa.png", "d.jpg"]
        for path in dataset.paths:
            path.write_bytes(b"")
        with pytest.raises(UserError, match=r"none of the 5 images .* can be read"):
            PersonalizedBase(folder, skip_bad=True)


class TestPictures:
    def test_are_squashed_to_a_square(self, tmp_path):
        paint(tmp_path / "wide.png", 255, width=12, height=4)
        image = PersonalizedBase(tmp_path, size=8, interpolation="nearest").image(0)
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.float32
        assert (image[:, :4] == 1).all()
        assert (image[:, 4:] == -1).all()

    def test_equal_pillows_resize_of_the_whole_image(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "p.png")
        got = PersonalizedBase(tmp_path, size=6).image(0)
        want = np.asarray(Image.fromarray(noise).resize((6, 6), Image.Resampling.BICUBIC))
        assert np.array_equal(got, (want / 127.5 - 1.0).astype(np.float32))

    def test_centre_crop_keeps_the_aspect(self, tmp_path):
        pixels = np.zeros((4, 12, 3), np.uint8)
        pixels[:, 4:8] = 255
        Image.fromarray(pixels).save(tmp_path / "p.png")
        assert (PersonalizedBase(tmp_path, size=4, center_crop=True).image(0) == 1).all()

    def test_flips_mirror(self, folder):
        dataset = PersonalizedBase(folder)
        assert dataset.image_ids() == [0, 1, 2, 3, 4, 5]
        assert np.array_equal(dataset.image(3), dataset.image(2)[:, ::-1])
        for sample in range(60):
            item = dataset[sample]
            left = item["image"][0, 0, 0] > -1
            assert left == (item["image_id"] % 2 == 0)

    def test_flip_probability_decides_which_images_there_are(self, folder):
        ids = {p: PersonalizedBase(folder, flip_p=p).image_ids() for p in (0, 1)}
        assert ids == {0: [0, 2, 4], 1: [1, 3, 5]}
        flips = [PersonalizedBase(folder, flip_p=0.25)[s]["image_id"] % 2 for s in range(2000)]
        assert np.mean(flips) == pytest.approx(0.25, abs=0.04)

    def test_may_be_left_out(self, folder):
        dataset = PersonalizedBase(folder)
        assert set(dataset.describe(0)) == {"caption", "image_id", "sample"}

    def test_beyond_the_cache_are_decoded_again(self, folder, monkeypatch):
        cached = PersonalizedBase(folder)
        monkeypatch.setattr(personalized, "CACHE_BYTES", 8 * 6 * 3)
        dataset = PersonalizedBase(folder)
        assert len(dataset._cache) == 1
        assert all(np.array_equal(dataset.image(i), cached.image(i)) for i in range(6))

    def test_without_a_size_must_agree(self, folder):
        paint(folder / "d.png", 5, width=20)
        with pytest.raises(UserError, match=r"differ in size.*set size"):
            PersonalizedBase(folder)
        assert len(PersonalizedBase(folder, size=4)) == 400

    def test_that_are_not_there(self, folder):
        with pytest.raises(ValueError, match="image_id must be below 6, got 6"):
            PersonalizedBase(folder).image(6)


class TestSamples:
    def test_depend_on_seed_and_sample_alone(self, folder):
        one, other = PersonalizedBase(folder, size=4), PersonalizedBase(folder, size=4)
        samples = [907, 3, 44, 3]
        for a, b in zip(
            [one[s] for s in samples], [other[s] for s in samples[::-1]][::-1], strict=True
        ):
            assert np.array_equal(a.pop("image"), b.pop("image"))
            assert a == b
        stranger = PersonalizedBase(folder, size=4, seed=24)
        assert [one[s]["caption"] for s in range(20)] != [stranger[s]["caption"] for s in range(20)]

    def test_do_not_depend_on_workers(self, folder):
        def batches(workers):
            dataset = Subset(PersonalizedBase(folder, size=4), range(100, 108))
            return list(DataLoader(dataset, batch_size=4, num_workers=workers))

        for alone, helped in zip(batches(0), batches(1), strict=True):
            torch.testing.assert_close(alone.pop("image"), helped.pop("image"), rtol=0, atol=0)
            assert alone["caption"] == helped["caption"]
            assert alone["image_id"].tolist() == helped["image_id"].tolist()

    def test_make_the_batches_that_the_model_reads(self, folder):
        batch = next(iter(DataLoader(PersonalizedBase(folder, size=4), batch_size=5)))
        assert batch["image"].shape == (5, 4, 4, 3)
        assert batch["image"].dtype == torch.float32
        assert batch["sample"].tolist() == [0, 1, 2, 3, 4]
        assert all("*" in caption for caption in batch["caption"])

    def test_each_pass_shows_every_image_once_in_its_own_order(self, folder):
        dataset = PersonalizedBase(folder)
        assert len(dataset) == 300
        passes = [[dataset[3 * k + j]["image_id"] // 2 for j in range(3)] for k in range(30)]
        assert all(sorted(p) == [0, 1, 2] for p in passes)
        assert len(set(map(tuple, passes))) == 6

    def test_of_validation_come_in_order_and_never_flip(self, folder):
        dataset = PersonalizedBase(folder, set="val", repeats=10, flip_p=1.0)
        assert len(dataset) == 3
        assert dataset.image_ids() == [0, 2, 4]
        assert [dataset[s]["image_id"] for s in range(7)] == [0, 2, 4, 0, 2, 4, 0]

    def test_can_be_walked_through(self, folder):
        assert [item["sample"] for item in PersonalizedBase(folder, repeats=2)] == list(range(6))
        with pytest.raises(IndexError):
            PersonalizedBase(folder)[-1]


class TestCaptions:
    def test_use_every_template_about_equally(self, folder):
        dataset = PersonalizedBase(folder)
        counts = Counter(dataset.caption(s, 0) for s in range(5400))
        assert (
            set(counts) == {t.replace("{}", "*") for t in OBJECT_TEMPLATES} == set(dataset.texts())
        )
        assert min(counts.values()) > 120
        assert max(counts.values()) < 290

    def test_of_styles(self, folder):
        dataset = personalized_style.PersonalizedBase(folder)
        captions = {dataset.caption(s, 0) for s in range(1000)}
        assert captions == {t.replace("{}", "*") for t in STYLE_TEMPLATES}

    def test_name_the_placeholder_and_the_coarse_class(self, folder):
        dataset = PersonalizedBase(folder, placeholder_token="@", coarse_class_text="cat")
        assert all(item["caption"].endswith("cat @") for item in dataset)

    def test_name_a_word_of_the_images_own_by_chance(self, folder):
        dataset = PersonalizedBase(folder, per_image_tokens=True)
        items = [dataset[s] for s in range(2000)]
        dual = [i for i in items if any(p in i["caption"] for p in PER_IMAGE_PLACEHOLDERS)]
        assert len(dual) / 2000 == pytest.approx(0.25, abs=0.04)
        for item in dual:
            own = PER_IMAGE_PLACEHOLDERS[item["image_id"] // 2]
            assert item["caption"].endswith(f"* with {own}")
        assert {i["caption"] for i in items} <= set(dataset.texts())
        assert len(dataset.texts()) == 27 + 3 * 27

    def test_own_words_end_at_22_images(self, tmp_path):
        for i in range(23):
            paint(tmp_path / f"{i}.png", i)
        with pytest.raises(UserError, match="words for 22 images, and there are 23"):
            PersonalizedBase(tmp_path, per_image_tokens=True)
        PersonalizedBase(tmp_path)

    def test_own_words_may_have_other_names(self, folder):
        dataset = PersonalizedBase(
            folder, per_image_tokens=True, mixing_prob=1.0, per_image_placeholders=["@", "#", "%"]
        )
        for item in (dataset[s] for s in range(30)):
            assert item["caption"].endswith(f"* with {'@#%'[item['image_id'] // 2]}")
        with pytest.raises(UserError, match="words for 1 images, and there are"):
            PersonalizedBase(folder, per_image_tokens=True, per_image_placeholders=["@"])

    def test_from_templates_of_ones_own(self, folder, tmp_path):
        path = tmp_path / "t.txt"
        path.write_text("{} at sea\n")
        assert PersonalizedBase(folder, templates=str(path))[0]["caption"] == "* at sea"
        assert PersonalizedBase(folder, templates=["see {}"])[0]["caption"] == "see *"

    def test_must_not_contain_the_placeholder_without_the_word(self, folder):
        with pytest.raises(UserError, match="placeholder 'photo' stands in the template"):
            PersonalizedBase(folder, placeholder_token="photo")
        with pytest.raises(UserError, match="stands in the template"):
            PersonalizedBase(folder, placeholder_token="with", per_image_tokens=True)
        with pytest.raises(UserError, match="one of per_image_tokens' words"):
            PersonalizedBase(folder, placeholder_token="א", per_image_tokens=True)


class TestCaptionsBesidePictures:
    def test_are_used_and_drawn_from_by_sample(self, folder, caplog):
        (folder / "a.txt").write_text("a cat on a mat\n\na cat asleep\n")
        (folder / "b.txt").write_text("{} in the sun")
        dataset = PersonalizedBase(folder, captions=True, first_word="cat")
        assert {dataset.caption(s, 0) for s in range(50)} == {"a * on a mat", "a * asleep"}
        assert {dataset.caption(s, 1) for s in range(5)} == {"* in the sun"}
        assert len({dataset.caption(s, 2) for s in range(500)}) == 27
        assert "no caption beside c.png" in caplog.text
        assert len(dataset.texts()) == 30

    def test_are_not_read_unless_wanted(self, folder):
        (folder / "a.txt").write_text("a cat on a mat")
        assert "mat" not in {
            w for item in PersonalizedBase(folder) for w in item["caption"].split()
        }

    @pytest.mark.parametrize(
        ("caption", "result"),
        [
            ("a {} here and {} there", "a cat * here and cat * there"),
            ("a * here", "a * here"),
            ("a Cat and a cat in a category", "a cat * and a cat in a category"),
            ("in the sun.", "in the sun, cat *"),
        ],
    )
    def test_come_to_name_the_word(self, caption, result):
        assert insert_placeholder(caption, "*", "cat", "cat *") == result

    def test_know_their_files(self, folder):
        (folder / "a.txt").write_text("a photo of *\nthe sun\n")
        files = PersonalizedBase(folder, captions=True).caption_files
        assert files == {t: str(folder / "a.txt") for t in ("a photo of *", "the sun, *")}

    def test_that_are_empty_or_huge_are_named(self, folder, caplog):
        (folder / "a.txt").write_text("a photo of *")
        (folder / "b.txt").write_text(" \n\n")
        PersonalizedBase(folder, captions=True)
        assert "caption b.txt is empty: using templates" in caplog.text
        assert "no caption beside c.png: using templates" in caplog.text
        (folder / "c.txt").write_text("sun " * 300_000)
        with pytest.raises(UserError, match=r"caption .*c.txt' has 1200000 bytes, more than"):
            PersonalizedBase(folder, captions=True)

    def test_are_read_from_regular_files_only(self, folder):
        (folder / "a.txt").write_text("a photo of *")
        os.mkfifo(folder / "b.txt")
        assert PersonalizedBase(folder, captions=True).captions[1] == ()

    def test_without_any_is_an_error(self, folder):
        with pytest.raises(UserError, match=r"write 'a.txt' beside 'a.png'"):
            PersonalizedBase(folder, captions=True)
        (folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(UserError, match=r"a.txt.*not UTF-8 text"):
            PersonalizedBase(folder, captions=True)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("size", 0, "size.*got 0"),
        ("repeats", 0, "repeats.*got 0"),
        ("interpolation", "cubic", "interpolation.*'cubic'"),
        ("set", "training", "set.*'training'"),
        ("flip_p", 1.5, "flip_p.*1.5"),
        ("mixing_prob", -1, "mixing_prob.*-1"),
    ],
)
def test_arguments_out_of_range(folder, argument, value, message):
    with pytest.raises(ValueError, match=message):
        PersonalizedBase(folder, **{argument: value})


def test_builds_from_the_originals_configuration(folder):
    dataset = instantiate_from_config(
        {
            "target": "ldm.data.personalized.PersonalizedBase",
            "params": {"size": 8, "set": "train", "per_image_tokens": False, "repeats": 100},
        },
        data_root=str(folder),
    )
    assert len(dataset) == 300
    with pytest.raises(TypeError, match="repeat"):
        PersonalizedBase(folder, repeat=3)
