"""A score of editability that does not depend on the concept: are the scene and the medium right?

The paper's text similarity falls as soon as an image shows the concept, because the text that it is
compared with does not name the concept. Here the miniature's CLIP is asked two questions instead:
which scene and which medium an image shows. An answer counts as right where it is what the prompt
asks for, whatever else the image shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from torch import Tensor

from ldm.evaluation.bootstrap import Estimate, mean_of, resample, weighted_mean
from ldm.evaluation.clip import ClipExtractor
from ldm.evaluation.evaluate import Extra
from ldm.evaluation.similarity import FeatureExtractor
from ldm.miniature.clip import PROMPTS, MiniatureClip
from ldm.miniature.grammar import MEDIUM_PHRASES, SCENE_PHRASES, STYLE_PHRASES

_STYLE = "in the style of "


def asked(prompt: str) -> dict[str, str]:
    """Return what a prompt asks for: "scene" and "medium", each where the prompt names one.

    A style after "in the style of" decides the medium. If it is a learned word, no medium is asked.
    """
    text = " ".join(prompt.lower().split())
    found: dict[str, str] = {}
    for scene, phrase in SCENE_PHRASES.items():
        if f" {phrase} " in f"{text} ":
            found["scene"] = scene
    start, phrases = text, MEDIUM_PHRASES
    if _STYLE in text:
        start, phrases = text.split(_STYLE)[1], STYLE_PHRASES
    for medium, phrase in phrases.items():
        if start.startswith(phrase):
            found["medium"] = medium
    return found


def edit_accuracy(
    scorer: MiniatureClip, features: Mapping[str, Tensor], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return the shares of images that show what their prompts ask for, with 95% intervals.

    `features` has the scorer's features of each prompt's images, [n, d]. Prompts that ask for
    neither a scene nor a medium are left out. The images are resampled within each prompt. Returns
    "scene_accuracy", "medium_accuracy" and "edit_accuracy" (all that a prompt asks is right), each
    the mean over the prompts that ask for it; a question that no prompt asks is left out.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"scene": [], "medium": [], "edit": []}
    for prompt, own in features.items():
        wanted = asked(prompt)
        right = {
            question: np.array([a == answer for a in scorer.classify(own, question)], np.float64)
            for question, answer in wanted.items()
        }
        for question, shares in right.items():
            parts[question].append(shares)
        if right:
            parts["edit"].append(np.min(list(right.values()), axis=0))
    return {
        f"{question}_accuracy": mean_of(
            [resample(weighted_mean(one), len(one), resamples, rng) for one in found]
        ).estimate
        for question, found in parts.items()
        if found
    }


def edit_scores(extractor: FeatureExtractor, *, resamples: int = 1000) -> Extra | None:
    """Return the `extra` scores of `ldm.evaluation.evaluate.evaluate`: those of `edit_accuracy`.

    Only the miniature's CLIP knows the world's scenes. For another extractor the result is None.
    """
    if not isinstance(extractor, ClipExtractor):
        return None
    scorer = MiniatureClip(extractor.model, extractor.tokenizer, extractor.prepare)
    if scorer.answers["scene"] != PROMPTS["scene"]:
        return None
    return partial(edit_accuracy, scorer, resamples=resamples)
