"""Two concepts at once: what each sample shows and says, how one is pasted, what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data.joint import JointConcepts
from ldm.data.personalized import PersonalizedBase
from ldm.data.templates import OBJECT_TEMPLATES
from ldm.util import UserError, instantiate_from_config

SIZE = 16


def paint(path: Path, colour: int, size: tuple[int, int] = (12, 12)) -> None:
    """A grey image whose leftmost quarter is darker: flips show."""
    pixels = np.full((*size, 3), colour, np.uint8)
    pixels[:, : size[1] // 4] = colour - 20
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Three dark images (40, 70, 100) and two bright ones (200, 240)."""
    root = tmp_path_factory.mktemp("joint")
    for i in range(3):
        paint(root / "dark" / f"{i}.png", 40 + 30 * i)
    for i in range(2):
        paint(root / "bright" / f"{i}.png", 200 + 40 * i)
    return root / "dark", root / "bright"


def make(roots, **options):
    settings = {"size": SIZE, "interpolation": "nearest", **options}
    return JointConcepts(roots[0], roots[1], **settings)


def kind(dataset, image_id):
    """Which concept's image an id is, or whether it is a pasting."""
    levels = dataset.levels(image_id)
    if levels.max() < 120:
        return "*"
    return "@" if levels.min() > 150 else "both"


def test_ids_cover_both_concepts_and_the_pastings(roots):
    dataset = make(roots, pastings=4)
    ids = dataset.image_ids()
    assert ids == list(range(6 + 4 + 4))
    assert [kind(dataset, i) for i in ids] == ["*"] * 6 + ["@"] * 4 + ["both"] * 4
    first, second = (PersonalizedBase(r, size=SIZE, interpolation="nearest") for r in roots)
    assert np.array_equal(dataset.image(3), first.image(3))
    assert np.array_equal(dataset.image(6 + 3), second.image(3))
    with pytest.raises(ValueError, match="below 14, got 14"):
        dataset.image(14)


def test_captions_name_what_the_image_shows(roots):
    dataset = make(roots)
    for sample in range(300):
        item = dataset[sample]
        shown = kind(dataset, item["image_id"])
        named = {word for word in "*@" if word in item["caption"]}
        assert named == ({"*", "@"} if shown == "both" else {shown})
        assert item["caption"] in dataset.texts()
        assert item["sample"] == sample
        assert np.array_equal(item["image"], dataset.image(item["image_id"]))


def test_a_tenth_are_pastings_and_the_rest_is_shared_evenly(roots):
    dataset = make(roots)
    kinds = {image_id: kind(dataset, image_id) for image_id in dataset.image_ids()}
    shares = Counter(kinds[dataset.describe(s)["image_id"]] for s in range(4000))
    assert shares["both"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert shares["*"] / 4000 == pytest.approx(0.45, abs=0.02)
    used = {dataset.describe(s)["image_id"] for s in range(30_000)}
    assert used == set(dataset.image_ids())


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"*", "@"}), (1.0, {"both"})])
def test_the_share_of_pastings_is_a_choice(roots, share, kinds):
    dataset = make(roots, joint_prob=share)
    assert {kind(dataset, dataset[s]["image_id"]) for s in range(60)} == kinds
    both = any("*" in text and "@" in text for text in dataset.texts())
    assert both == (share > 0)
    assert ("both" in {kind(dataset, i) for i in dataset.image_ids()}) == (share > 0)


def test_each_pass_over_a_concept_takes_every_image(roots):
    dataset = make(roots, joint_prob=0.0)
    places = [dataset[s]["image_id"] // 2 for s in range(24)]
    firsts, seconds = places[::2], places[1::2]
    for start in range(0, 12, 3):
        assert sorted(firsts[start : start + 3]) == [0, 1, 2]
    for start in range(0, 12, 2):
        assert sorted(seconds[start : start + 2]) == [3, 4]


def box_of(levels):
    """Where the bright concept was pasted: (top, left, height, width)."""
    rows, columns = np.nonzero(levels[..., 0] > 150)
    box = levels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0]
    assert (box > 150).all()
    return (rows.min(), columns.min(), *box.shape)


@given(st.integers(0, 255), st.sampled_from([8, 13, 16, 31]))
def test_a_pasting_is_a_box_of_the_second_on_the_first(roots, number, size):
    dataset = make(roots, size=size)
    levels = dataset.levels(10 + number)
    top, left, height, width = box_of(levels)
    assert size / 4 <= height <= size / 2
    assert size / 4 <= width <= size / 2
    around = levels.copy()
    around[top : top + height, left : left + width] = 0
    wholes = [dataset.levels(i) for i in range(6)]
    for whole in wholes:
        whole = whole.copy()
        whole[top : top + height, left : left + width] = 0
        if np.array_equal(whole, around):
            return
    raise AssertionError("outside the box it is no image of the first concept")


def test_pastings_differ_in_place_size_images_and_flips(roots):
    dataset = make(roots, size=32)
    boxes = [box_of(dataset.levels(10 + n)) for n in range(200)]
    for values in zip(*boxes, strict=True):
        assert len(set(values)) > 5
    assert {box[2] for box in boxes} == set(range(8, 17))
    corners = {(box[0] == 0, box[0] + box[2] == 32) for box in boxes}
    assert {(True, False), (False, True), (False, False)} <= corners


def test_what_a_sample_is_depends_on_seed_and_sample_alone(roots):
    one, other = make(roots), make(roots)
    order = [7, 3, 3, 12, 0]
    shuffled = {s: other[s] for s in order}
    for sample in order:
        assert one[sample]["caption"] == shuffled[sample]["caption"]
        assert np.array_equal(one[sample]["image"], shuffled[sample]["image"])
    seeded = make(roots, seed=24)
    assert any(one[s]["caption"] != seeded[s]["caption"] for s in range(20))
    assert not np.array_equal(one.levels(10), seeded.levels(10))


def test_workers_and_batches_change_nothing(roots):
    dataset = make(roots)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, sampler=range(12))
    batches = list(loader)
    assert [text for batch in batches for text in batch["caption"]] == [
        dataset[s]["caption"] for s in range(12)
    ]
    alone = torch.stack([torch.from_numpy(dataset[s]["image"]) for s in range(12)])
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), alone)


def test_validation_takes_each_image_and_flips_none(roots):
    dataset = make(roots, set="val", joint_prob=0.0)
    assert len(dataset) == 6
    assert [dataset[s]["image_id"] for s in range(6)] == [0, 6, 2, 8, 4, 6]
    pasted = make(roots, set="val", joint_prob=1.0, pastings=20)
    assert pasted.image_ids() == [0, 2, 4, 6, 8, *range(10, 30)]


def test_templates_of_each_and_of_both(roots, tmp_path):
    plain = make(roots)
    assert plain.joint_templates[0] == "a photo of a {} with a {}"
    assert len(plain.joint_templates) == len(OBJECT_TEMPLATES)
    assert "a photo of a * with a @" in plain.texts()
    file = tmp_path / "joint.txt"
    file.write_text("a {} beside a {}\n")
    own = make(
        roots,
        templates=["a {}"],
        second_templates=["in the style of {}"],
        joint_templates=file,
        coarse_class_text="cat",
    )
    assert own.texts() == ["a cat *", "in the style of @", "a cat * beside a @"]
    assert make(roots, templates=["my {}"]).texts() == ["my *", "my @", "my * with a @"]


def test_the_files_of_both_are_named(roots):
    assert [p.name for p in make(roots).files()] == ["0.png", "1.png", "2.png", "0.png", "1.png"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"second_root": None}, UserError, "need two folders: give the second's, --second_root"),
        ({"second_root": "nowhere"}, UserError, "'nowhere' is not a folder"),
        ({"second_placeholder": "*"}, UserError, r"both concepts are called '\*'"),
        ({"joint_prob": 1.5}, ValueError, r"joint_prob must lie in \[0, 1\], got 1.5"),
        ({"pastings": 0}, ValueError, "pastings must be at least 1"),
        ({"joint_templates": ["a {}"]}, UserError, r"need two {}.*got 'a {}'"),
        ({"joint_templates": ["@ {} {}"]}, UserError, "'@' stands in the template"),
        ({"second_templates": ["a @ {}"]}, UserError, "'@' stands in the template"),
        ({"per_image_tokens": True}, UserError, "switch per_image_tokens off"),
        ({"size": 3}, UserError, "3x3 are too small to paste into"),
    ],
)
def test_mistakes_are_named(roots, options, error, message):
    settings = {"data_root": roots[0], "second_root": roots[1], "size": SIZE, **options}
    with pytest.raises(error, match=message) as caught:
        JointConcepts(**settings)
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes_need_one(roots, tmp_path):
    paint(tmp_path / "wide" / "0.png", 200, (12, 20))
    with pytest.raises(UserError, match="are 12x12 and the second's 20x12: set size"):
        JointConcepts(roots[0], tmp_path / "wide")


def test_it_is_built_by_name(roots):
    params = {"data_root": str(roots[0]), "second_root": str(roots[1]), "size": SIZE}
    built = instantiate_from_config(
        {"target": "ldm.data.joint.JointConcepts", "params": {**params, "repeats": 10}}
    )
    assert len(built) == 2 * 30
