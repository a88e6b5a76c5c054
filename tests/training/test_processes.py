"""Several processes share the class images; unused weights are searched for only if needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.training import class_images
from ldm.training.config import load
from ldm.training.run import set_up


def test_each_process_generates_its_share_on_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shares: list[list[range]] = []
    monkeypatch.setattr(class_images, "class_images_of", lambda _: ("a cat", 21))
    monkeypatch.setattr(class_images, "gather", lambda _: None)
    monkeypatch.setattr(class_images, "_generate", lambda c, p, batches, f: shares.append(batches))
    config: Any = SimpleNamespace(
        sections=None, run=SimpleNamespace(seed=5), with_entry=lambda *entry: entry
    )
    for rank in (0, 1):
        monkeypatch.setattr(class_images, "together", lambda rank=rank: (rank, 2))
        entry = class_images.with_class_images(config, tmp_path)
        assert entry == (class_images.ROOT_ENTRY, str(tmp_path))
    assert shares == [[range(5, 13), range(21, 26)], [range(13, 21)]]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config.trainer = {"accelerator": "gpu", "devices": [2, 3]}
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert class_images.device_of(config) == "cuda:3"
    monkeypatch.delenv("LOCAL_RANK")
    assert class_images.device_of(config) == "cuda:2"


@pytest.mark.parametrize("several", [False, True])
def test_unused_weights_are_searched_for_only_with_several_words(
    arguments: list[str], several: bool
) -> None:
    more = ["--devices", "2", "--strategy", "ddp"]
    if several:
        more += [
            "model.params.personalization_config.params.placeholder_strings=['*','@']",
            *("--init_word", "dog", "cat"),
            "data.params.train.params.templates=['a photo of a {} in the style of @']",
        ]
    strategy: Any = set_up(load([*arguments, *more])).trainer.strategy
    assert strategy._ddp_kwargs["find_unused_parameters"] == several
