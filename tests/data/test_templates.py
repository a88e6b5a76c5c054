"""The template lists against the paper's facts, and files of one's own."""

from collections import Counter

import pytest

from ldm.data.templates import (
    OBJECT_TEMPLATES,
    RELEASED_OBJECT_TEMPLATES,
    STYLE_TEMPLATES,
    TEMPLATE_SETS,
    check_placeholder,
    fill,
    find_templates,
    load_templates,
    with_second,
)
from ldm.util import UserError


def test_counts_of_the_paper_and_the_released_code():
    lists = (OBJECT_TEMPLATES, RELEASED_OBJECT_TEMPLATES, STYLE_TEMPLATES)
    assert [(len(t), len(set(t))) for t in lists] == [(27, 27), (81, 57), (19, 17)]
    both = [with_second(t) for t in (OBJECT_TEMPLATES, STYLE_TEMPLATES)]
    assert [len(set(t)) for t in both] == [27, 17]


def test_the_27_are_the_papers():
    assert set(OBJECT_TEMPLATES) == {
        *("a photo of a {}", "a photo of the {}", "a photo of my {}", "a photo of one {}"),
        "the photo of a {}",
        *("a cropped photo of a {}", "a cropped photo of the {}", "a close-up photo of a {}"),
        *("a close-up photo of the {}", "a good photo of a {}", "a good photo of the {}"),
        *("a dark photo of the {}", "a bright photo of the {}", "a rendering of a {}"),
        *("a rendition of a {}", "a rendition of the {}", "a photo of a clean {}"),
        *("a photo of the clean {}", "a photo of a nice {}", "a photo of the nice {}"),
        *("a photo of a cool {}", "a photo of the cool {}", "a photo of a small {}"),
        *("a photo of the small {}", "a photo of a dirty {}", "a photo of the weird {}"),
        "a photo of the large {}",
    }


def test_repeats_are_weights():
    released, style = Counter(RELEASED_OBJECT_TEMPLATES), Counter(STYLE_TEMPLATES)
    assert released["a rendering of a {}"] == 3
    assert released["an illustration of my {}"] == released["a photo of my {}"] == 1
    assert [t for t, n in style.items() if n == 2] == [
        "a cropped painting in the style of {}",
        "a close-up painting in the style of {}",
    ]


def test_every_template_has_its_places():
    for templates in TEMPLATE_SETS.values():
        assert all(t.count("{}") == 1 for t in templates)
        assert all(t.endswith("{} with {}") for t in with_second(templates))


def test_filling():
    assert fill("a {} next to a {}", "*") == "a * next to a *"
    assert fill("a {} next to a {} with {}", "*", "@") == "a * next to a * with @"
    assert fill("a {braced} {}", "*") == "a {braced} *"


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("\ufeffa sketch of {}\n\n# notes\n  a   {} at night \n", "utf-8")
    assert load_templates(path) == ("a sketch of {}", "a {} at night")
    assert find_templates(str(path)) == load_templates(path)


def test_templates_by_name_or_list():
    assert find_templates("object-released") == RELEASED_OBJECT_TEMPLATES
    assert find_templates(["one {}", "one {}"]) == ("one {}", "one {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a photo of {}\na photo of it\n", r"line 2: 'a photo of it' has no \{\}"),
        (b"\n# nothing\n", "holds no templates"),
        (b"\xff\xfe\xfa{}", "not UTF-8"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_templates(path)
    assert "\n" not in str(caught.value)


def test_bad_choices():
    with pytest.raises(UserError, match="neither a file nor one of object,"):
        find_templates("no-such-thing")
    with pytest.raises(UserError, match="need a"):
        find_templates(["a photo"])
    with pytest.raises(UserError, match="need a"):
        find_templates([])
    with pytest.raises(UserError, match="No such file"):
        load_templates("no-such-file")


def test_a_placeholder_in_the_templates_themselves():
    check_placeholder(OBJECT_TEMPLATES, "*")
    check_placeholder(OBJECT_TEMPLATES, "phot")
    for placeholder in ("photo", "Photo", "close-up"):
        with pytest.raises(UserError, match="stands in the template"):
            check_placeholder(OBJECT_TEMPLATES, placeholder)
