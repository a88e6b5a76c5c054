"""Scene and medium accuracy: what prompts ask for, shares by hand, and the shipped scorer."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from ldm.evaluation.bootstrap import Estimate
from ldm.miniature.clip import MiniatureClip
from ldm.miniature.editability import asked, edit_accuracy
from ldm.miniature.world import render, sample_spec

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "miniature"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("A photo of a * on the beach", {"scene": "beach", "medium": "photo"}),
        ("Pixel art of a * at sunset", {"scene": "sunset", "medium": "pixel"}),
        ("A sketch of a *", {"medium": "sketch"}),
        ("a sepia photo of a *", {"medium": "sepia"}),
        ("a red star on the moon in the style of *", {"scene": "moon"}),
        ("a photo of a * in the style of neon", {"medium": "neon"}),
        ("a *", {}),
    ],
)
def test_a_prompt_asks_for_a_scene_and_a_medium(prompt: str, wanted: dict[str, str]) -> None:
    assert asked(prompt) == wanted


class Sees:
    """Says what an image shows by its features: [scene, medium], numbers of a list each."""

    answers = MappingProxyType({"scene": ["beach", "moon"], "medium": ["photo", "sketch"]})

    def classify(self, features: torch.Tensor, question: str) -> list[str]:
        column = list(self.answers).index(question)
        return [self.answers[question][i] for i in features[:, column].int().tolist()]


def test_shares_are_means_over_the_prompts_that_ask() -> None:
    scorer: Any = Sees()
    features = {
        # scene right in 3 of 4, medium in 2 of 4, both in 1
        "A photo of a * on the beach": torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0]]),
        "A sketch of a *": torch.tensor([[0, 1], [1, 1]]),
        "a *": torch.tensor([[1, 1]]),
    }
    found = edit_accuracy(scorer, features)
    assert found["scene_accuracy"].value == pytest.approx(3 / 4)
    assert found["medium_accuracy"].value == pytest.approx((1 / 2 + 1) / 2)
    assert found["edit_accuracy"].value == pytest.approx((1 / 4 + 1) / 2)
    assert found["scene_accuracy"].low < 3 / 4 < found["scene_accuracy"].high
    assert edit_accuracy(scorer, {"a *": torch.zeros(2, 2)}) == {}
    alone = edit_accuracy(scorer, {"A sketch of a *": features["A sketch of a *"]})
    assert alone["medium_accuracy"] == alone["edit_accuracy"] == Estimate(1, 1, 1)
    assert "scene_accuracy" not in alone


def test_the_concept_does_not_lower_the_shipped_scorers_answer() -> None:
    """The right scene and medium score well whatever thing is there; a wrong prompt does not."""
    scorer = MiniatureClip.load(MODELS / "scorer")
    specs = (sample_spec(123, 2**41 + i) for i in range(3000))
    beach = [spec for spec in specs if (spec.scene, spec.medium) == ("beach", "photo")]
    assert len({spec.shape for spec in beach}) >= 8
    pixels = torch.from_numpy(np.stack([render(s, 64) for s in beach])).permute(0, 3, 1, 2)
    features = scorer.image_features(pixels)
    right = edit_accuracy(scorer, {"A photo of a * on the beach": features})
    wrong = edit_accuracy(scorer, {"A photo of a * on the moon": features})
    assert right["scene_accuracy"].value >= 0.95
    assert right["edit_accuracy"].value >= 0.6
    assert wrong["scene_accuracy"].value <= 0.2
    assert wrong["medium_accuracy"] == right["medium_accuracy"]
