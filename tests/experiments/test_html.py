"""Pages open offline, ask nothing of the network, and break on no text."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from ldm.experiments.demo.page import DemoResult, page
from ldm.experiments.demo.scores import ScoredPrompt
from ldm.experiments.html import data_url, render
from ldm.miniature.measure import load_concepts

ROOT = Path(__file__).parents[2]
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects text and addresses, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture
def html() -> str:
    (concept,) = load_concepts(ROOT / "examples/concepts", ["teal-star"])
    image = Image.fromarray(np.full((4, 6, 3), 7, np.uint8))
    scored = ScoredPrompt("scene", "a photo of * & <b>", [image, image], 0.8, 0.3, 0.35)
    curves = {"train/loss": ([1, 2], [3.0, 4.0]), "word/norm/*": ([1, 2], [0.5, 0.6])}
    result = DemoResult(
        concept, ("@", "chalk"), [(0, [image]), (9, [image])], scored, [scored], scored, [scored],
        0.9, 0.1, curves, 100, {"learn": 50.0}, "python main.py",
    )  # fmt: skip
    return page(result)


def test_a_page_asks_nothing_of_the_network(html: str) -> None:
    reader = read(html)
    assert len(reader.addresses) >= 4
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in reader.addresses)
    assert "url(http" not in html
    assert "@import" not in html
    assert "<script" not in html


def test_a_page_says_what_it_was_given_whatever_the_characters(html: str) -> None:
    reader = read(html)
    for text in ("a photo of * & <b>", "text 0.300", "step 9", "0.800", "python main.py"):
        assert text in reader.text
    assert html.count("<svg") == 2


def test_images_are_kept_exactly() -> None:
    original = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    payload = data_url(original).removeprefix("data:image/png;base64,")
    again = Image.open(io.BytesIO(base64.b64decode(payload)))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(original))


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("questionnaire.html", task="t", content={})
