"""The miniature's evaluation over doubles whose right answers are known."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.image_io import to_pil
from ldm.miniature import measure as miniature
from ldm.miniature.clip import PROMPTS, MiniatureClip
from ldm.miniature.grammar import full_caption
from ldm.miniature.measure import (
    Concept,
    autoencoder_psnr,
    caption_agreement,
    clip_accuracy,
    load_concepts,
    named,
    render_specs,
    rendered_share,
    score_concept,
    truth,
    unseen_specs,
    vocabulary_features,
)
from ldm.miniature.render import Spec
from ldm.miniature.table import BEGIN, insert, table
from ldm.miniature.world import sample_spec
from ldm.util import UserError

CONCEPTS = Path(__file__).parents[2] / "examples" / "concepts"
MODEL = Path(__file__).parents[2] / "models" / "miniature"
WORDS = sorted({word for asked in PROMPTS.values() for answer in asked for word in answer.split()})


class OracleScorer:
    """Knows what the images of `draw_words` show: their first pixels carry the words' indices."""

    def image_features(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        rows = []
        for image in images:
            pixels = np.asarray(image).reshape(-1, 3)[:32, 0]
            rows.append(sum(F.one_hot(torch.tensor(int(p)), 256).float() for p in pixels if p))
        return F.normalize(torch.stack(rows), dim=-1)

    def classify(self, features: Tensor, attribute: str) -> list[str]:
        answers = list(PROMPTS[attribute])
        columns = features[:, [WORDS.index(answer) + 1 for answer in answers]]
        return [answers[i] for i in columns.argmax(-1).tolist()]


def draw_words(prompts: Sequence[str], each: int) -> list[Image.Image]:
    """Generate images that show exactly the words of their prompt."""
    images = []
    for prompt in prompts:
        pixels = np.zeros((8, 8, 3), np.uint8)
        indices = [WORDS.index(word) + 1 for word in prompt.split() if word in WORDS]
        pixels.reshape(-1, 3)[: len(indices), 0] = indices
        images += [Image.fromarray(pixels)] * each
    return images


def concept(**changes: Any) -> Concept:
    star = {"shape": "star", "colour": "teal", "texture": "plain", "second": ""}
    given = {
        **{"name": "teal-star", "kind": "object", "placeholder": "*", "initializer_word": "star"},
        **{"words": "a teal star", "caption": "a photo of a teal star", "attributes": star},
        **{"shown_scenes": ["city"], "prompt_scenes": ["beach", "snow"]},
        "images": draw_words(["photo teal star"], 3),
    }
    return Concept(**(given | changes))


def test_psnr_is_that_of_the_error_put_in() -> None:
    class Model:
        device, scale_factor = torch.device("cpu"), 0.5

        def encode_first_stage(self, x: Tensor) -> Tensor:
            return x * 0.8

        def get_first_stage_encoding(self, z: Tensor) -> Tensor:
            return self.scale_factor * z

        def decode_first_stage(self, z: Tensor) -> Tensor:
            return z / self.scale_factor

    psnr, shown = autoencoder_psnr(Model(), 40, 16)
    error = ((render_specs(unseen_specs(40), 16) * 0.2) ** 2).mean()
    assert psnr == pytest.approx(10 * math.log10(4 / error), abs=1e-4)
    assert len(shown) == 32
    original = to_pil(render_specs(unseen_specs(1), 16)[0])
    np.testing.assert_array_equal(np.asarray(shown[0]), np.asarray(original))


def test_unseen_images_are_not_training_images() -> None:
    assert not set(unseen_specs(50)) & {sample_spec(0, i) for i in range(500)}


def test_truth_names_the_detail_as_the_scorer_does() -> None:
    specs = [Spec("star", "red"), Spec("star", "red", "dots", "blue")]
    assert truth(specs, "detail") == ["plain", "blue dots"]
    assert truth(specs, "shape") == ["star", "star"]
    assert all(answer in PROMPTS["detail"] for answer in truth(unseen_specs(50), "detail"))


def test_named_counts_what_a_caption_fixes() -> None:
    spec = Spec("star", "teal", "dots", "yellow", "beach", "photo")
    assert named(spec, full_caption(spec)) == {"shape", "colour", "scene", "medium"}
    assert named(spec, "a photo of the beach") == {"medium"}
    assert named(spec, "a teal star") == {"shape"}  # of no medium: it may be a sketch
    sketch = Spec("star", "teal", medium="sketch")
    assert named(sketch, "a sketch of a teal star") == {"shape", "medium"}
    second = Spec("star", "teal", "dots", "yellow", "beach", "photo")
    assert "colour" not in named(second, "a photo of a star with yellow dots")


def test_a_perfect_generator_and_scorer_agree_on_everything() -> None:
    agreement, images, texts = caption_agreement(
        lambda prompts, each: draw_words([p.replace("sign", "") for p in prompts], each),
        OracleScorer(),  # type: ignore[arg-type]
        60,
        full=True,
    )
    assert agreement.share["scene"] == agreement.share["medium"] == agreement.share["shape"] == 1
    assert agreement.asked["shape"] == len(images) == len(texts) == 60
    assert 0 < agreement.asked["colour"] < 60


def test_a_generator_that_ignores_captions_is_found_out() -> None:
    agreement, _, _ = caption_agreement(
        lambda prompts, each: draw_words(["red star beach photo"] * len(prompts), each),
        OracleScorer(),  # type: ignore[arg-type]
        100,
    )
    assert agreement.share["shape"] < 0.3
    assert agreement.share["scene"] < 0.3


def test_clip_accuracy_of_a_scorer_that_always_says_the_same() -> None:
    class Stubborn:
        def image_features(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 2)

        def classify(self, features: Tensor, attribute: str) -> list[str]:
            return [next(iter(PROMPTS[attribute]))] * len(features)

    accuracy = clip_accuracy(Stubborn(), 80)  # type: ignore[arg-type]
    specs = unseen_specs(80)
    assert accuracy["shape"] == np.mean([spec.shape == "circle" for spec in specs])
    colourful = [spec for spec in specs if spec.medium in ("photo", "painting")]
    assert accuracy["colour"] == np.mean([spec.colour == "red" for spec in colourful])


def test_a_perfect_word_scores_as_its_caption_and_beats_the_vocabulary() -> None:
    def generate(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return draw_words([p.replace("*", "teal star") for p in prompts], each)

    scorer: Any = OracleScorer()
    star = concept()
    words = ["star", "teal", "mug"]
    score, shown = score_concept(
        generate,
        scorer,
        star,
        vocabulary_features(generate, scorer, words, star.prompt, 2),
        images=8,
    )
    assert score.image_similarity == pytest.approx(score.training) == pytest.approx(1)
    assert score.caption == pytest.approx(1)
    assert score.best_word_is in ("star", "teal")
    assert score.best_word == pytest.approx(score.initializer_word)
    assert score.best_word < 0.9
    assert (score.scene, score.concept, score.both) == (1, 1, 1)
    assert len(shown) == 5 + 2 * 2


def test_a_word_that_forgets_the_scene_is_found_out() -> None:
    def generate(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return draw_words(["photo teal star beach" for _ in prompts], each)

    scorer: Any = OracleScorer()
    score, _ = score_concept(generate, scorer, concept(), {"star": torch.ones(1, 256)}, images=8)
    assert (score.scene, score.concept, score.both) == (0.5, 1, 0.5)


def test_styles_are_asked_for_and_scored_as_styles() -> None:
    sepia = concept(kind="style", attributes={"medium": "sepia"})
    assert sepia.prompt("*") == "a painting in the style of *"
    assert sepia.scene_prompt("*", "sunset") == "a red star at sunset in the style of *"
    features = OracleScorer().image_features(draw_words(["sepia", "photo"], 1))
    scorer: Any = OracleScorer()
    assert miniature.see_concept(scorer, features, sepia) == [True, False]


def test_the_scorers_own_errors_are_measured_on_rendered_images() -> None:
    scorer = MiniatureClip.load(MODEL / "scorer")
    star, flower = load_concepts(CONCEPTS, ["teal-star", "blue-flower"])
    assert rendered_share(scorer, star, 4) > 0.9
    assert 0 < rendered_share(scorer, flower, 4) < 0.8  # its orange border passes for its colour
    assert rendered_share(scorer, load_concepts(CONCEPTS, ["sepia"])[0], 4) > 0.9


@pytest.mark.slow
def test_the_command_measures_each_part_and_writes_the_card(tmp_path: Path) -> None:
    """`make miniature-eval`, with few images."""
    command = [sys.executable, str(MODEL.parents[1] / "scripts/miniature/evaluate.py")]
    command += ["--parts", "autoencoder", "scorer", "samples", "concepts", "table"]
    command += ["--concepts", "teal-star", "--samples", "4", "--each", "2", "--steps", "1"]
    command += ["--metrics", str(tmp_path / "metrics.json"), "--images", str(tmp_path / "images")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in (tmp_path / "images").rglob("*.png")) == [
        "reconstructions.png",
        "samples.png",
        "teal-star.png",
    ]
    card = (tmp_path / "README.md").read_text()
    assert "| Autoencoder, PSNR" in card
    assert "| teal-star |" in card


def test_the_shipped_concepts_are_read_with_their_images() -> None:
    concepts = load_concepts(CONCEPTS)
    assert len(concepts) >= 8
    assert sum(not c.is_style for c in concepts) >= 6
    for one in concepts:
        assert 4 <= len(one.images) <= 5
        assert not set(one.shown_scenes) & set(one.prompt_scenes)
        assert one.placeholder not in one.caption
    assert [c.name for c in load_concepts(CONCEPTS, ["red-mug"])] == ["red-mug"]
    with pytest.raises(UserError, match="no concept 'cat'"):
        load_concepts(CONCEPTS, ["cat"])
    with pytest.raises(UserError, match=r"make_concepts\.py"):
        load_concepts(CONCEPTS / "red-mug")


def metrics() -> dict[str, Any]:
    shares = ("scene", "concept", "both", "rendered")
    score = dict.fromkeys(("initializer_word", "best_word", "caption", *shares), 0.5)
    score |= {"image_similarity": 0.72, "training": 0.8, "best_word_is": "star"}
    return {
        "autoencoder": {"psnr": 26.123},
        "samples": {"share": {"shape": 0.91}, "asked": {"shape": 200}},
        "words": {"teal-star": {"seconds": 61.4}},
        "concepts": {"teal-star": score},
    }


def test_the_table_shows_what_is_measured_and_nothing_else() -> None:
    text = table(metrics())
    assert "26.12 dB | ≥ 25 dB" in text
    assert "91.0% | ≥ 90%" in text
    assert "| teal-star | 61 s | 0.720 | 0.800 | 0.90 | 0.500 (star) |" in text
    assert "Scorer" not in text
    assert table({}).count("\n") == 2


def test_the_table_replaces_the_old_one_and_leaves_the_rest(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Card\n\nbefore\n")
    insert("one\n", card)
    card.write_text(card.read_text() + "\nafter\n")
    insert("two\n", card)
    text = card.read_text()
    assert text.count(BEGIN) == 1
    assert "one" not in text
    assert text.index("before") < text.index("two") < text.index("after")
