"""The protocol's scores over doubles: against the plain definitions, and closed forms."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.evaluation.evaluate import evaluate, write_csv
from ldm.evaluation.prompts import check_prompts
from ldm.evaluation.similarity import (
    own_similarity,
    pairwise_similarity,
    prompt_similarity,
    without_placeholders,
)
from ldm.util import UserError


class ColourExtractor:
    """An image's features are the colour of its first pixel; a text's, its length and letters."""

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[float(v) for v in image.getpixel((0, 0))] for image in images])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(len(t)), float(t.count("a")), 1.0] for t in texts])


class Painter:
    """Generates flat images in colours that depend on the prompt and the image's place."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []

    def __call__(self, prompts: Sequence[str], each: int) -> list[Image.Image]:
        self.calls.append((list(prompts), each))
        colours = [(50 + 10 * i, 9 * len(p) % 200, 99) for p in prompts for i in range(each)]
        return [Image.new("RGB", (4, 4), colour) for colour in colours]


TRAINING = [Image.new("RGB", (4, 4), colour) for colour in ("teal", "orange", "navy")]
PROMPTS = ("A photo of * on the moon", "An oil painting of *")


def test_scores_are_those_of_the_definitions() -> None:
    source, extractor = Painter(), ColourExtractor()
    found = evaluate(source, extractor, TRAINING, PROMPTS, images=5)
    own = Painter()(["A photo of *"], 5)
    features, training = extractor.image_features(own), extractor.image_features(TRAINING)
    alike = pairwise_similarity(features, training)
    assert found.image.value == pytest.approx(alike, abs=1e-6)
    assert found.training == pytest.approx(own_similarity(training))
    expected = [
        prompt_similarity(
            extractor.image_features(Painter()([prompt], 5)),
            extractor.text_features([without_placeholders(prompt, ["*"])]),
        )
        for prompt in PROMPTS
    ]
    for score, prompt, text in zip(found.prompts, PROMPTS, expected, strict=True):
        assert (score.prompt, score.images) == (prompt, 5)
        assert score.mean.value == pytest.approx(text[0], abs=1e-6)
        assert score.of_average.value == pytest.approx(text[1], abs=1e-6)
    assert found.text.value == pytest.approx(sum(t[0] for t in expected) / 2, abs=1e-6)
    assert found.text_of_average.value == pytest.approx(sum(t[1] for t in expected) / 2, abs=1e-6)
    assert found.prompts[0].text == "A photo of on the moon"
    assert found.image.low < found.image.value < found.image.high
    assert found.text.low < found.text.value < found.text.high


def test_every_prompt_is_generated_once_and_in_one_call() -> None:
    source = Painter()
    evaluate(source, ColourExtractor(), TRAINING, ["A photo of *", "Felt *", "Felt *"], images=2)
    assert source.calls == [(["A photo of *", "Felt *"], 2)]


def test_identical_images_are_alike_for_certain() -> None:
    same = [Image.new("RGB", (4, 4), "teal")] * 3
    found = evaluate(
        lambda prompts, each: same[:1] * (len(prompts) * each),
        ColourExtractor(), same, PROMPTS, images=4,
    )  # fmt: skip
    ends = [found.image.value, found.image.low, found.image.high]
    assert ends == pytest.approx([1, 1, 1], abs=1e-12)
    assert found.training == pytest.approx(1)
    assert found.text.low == found.text.value == found.text.high
    assert found.text.value == pytest.approx(found.text_of_average.value)


def test_a_second_extractor_scores_the_image_prompts_images() -> None:
    class Dino:
        def image_features(self, images: Sequence[Image.Image]) -> Tensor:
            return ColourExtractor().image_features(images).roll(1, -1) ** 2

    found = evaluate(Painter(), ColourExtractor(), TRAINING, PROMPTS, images=5, second=Dino())
    own = Painter()(["A photo of *"], 5)
    expected = pairwise_similarity(Dino().image_features(own), Dino().image_features(TRAINING))
    assert found.dino is not None
    assert found.dino.value == pytest.approx(expected, abs=1e-6)
    plain = evaluate(Painter(), ColourExtractor(), TRAINING, PROMPTS, images=5)
    assert plain.dino is None
    assert plain.text == found.text


def test_seeds_move_the_intervals_and_nothing_else() -> None:
    one, same, other = (
        evaluate(Painter(), ColourExtractor(), TRAINING, PROMPTS, images=5, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one.image.value == other.image.value
    assert one.text != other.text


def test_a_single_training_image_has_no_pairs_of_its_own() -> None:
    found = evaluate(Painter(), ColourExtractor(), TRAINING[:1], PROMPTS, images=2)
    assert found.training is None
    assert json.loads(json.dumps(found.to_json()))["training"] is None


def test_json_and_csv_hold_everything(tmp_path: Path) -> None:
    found = evaluate(
        Painter(), ColourExtractor(), TRAINING, PROMPTS, images=5, second=ColourExtractor()
    ).with_settings(steps=50)
    assert found.settings["steps"] == 50
    assert found.settings["pictures"] == 5
    plain = json.loads(json.dumps(found.to_json()))
    assert plain == {**asdict(found), "prompts": [asdict(score) for score in found.prompts]}
    assert plain["image"]["low"] == found.image.low
    write_csv(tmp_path / "scores.csv", {"teal-star": found})
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"teal-star"}
    assert [(row["score"], row["prompt"], row["pictures"]) for row in rows] == [
        ("image", "A photo of *", "5"),
        ("dino", "A photo of *", "5"),
        ("text", "", "10"),
        ("text_of_average", "", "10"),
        ("text", PROMPTS[0], "5"),
        ("text_of_average", PROMPTS[0], "5"),
        ("text", PROMPTS[1], "5"),
        ("text_of_average", PROMPTS[1], "5"),
    ]
    assert float(rows[0]["low"]) == pytest.approx(found.image.low, abs=1e-6)


def test_prompts_must_name_a_learned_word() -> None:
    check_prompts(["a photo of @", "Elmo holding a *"], ("*", "@"))
    with pytest.raises(UserError, match="prompt 'a photo of a cat' names no learned word"):
        check_prompts(["a photo of *", "a photo of a cat"], ("*",))
    with pytest.raises(UserError, match="no prompts"):
        evaluate(Painter(), ColourExtractor(), TRAINING, [])
    source = Painter()
    with pytest.raises(UserError, match="put '@' where the word belongs"):
        evaluate(source, ColourExtractor(), TRAINING, ["a photo of @"], placeholders=("@",))
    assert not source.calls


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="training must hold at least one image"):
        evaluate(Painter(), ColourExtractor(), [], PROMPTS)
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        evaluate(Painter(), ColourExtractor(), TRAINING, PROMPTS, images=0)
    with pytest.raises(ValueError, match="source gave 1 images for 3 prompts of 4 each"):
        evaluate(lambda *_: TRAINING[:1], ColourExtractor(), TRAINING, PROMPTS, images=4)
