"""The latent cache gives the model what encoding at every step would."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.personalized import PersonalizedBase
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.training.datamodule import Collate, Described
from ldm.training.latents import CacheLatents, LatentCache, encode_all, fingerprint
from ldm.util import instantiate_from_config
from tests.training.conftest import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(vocabulary: Path) -> Any:
    torch.manual_seed(1)
    return instantiate_from_config(tiny_config(vocabulary).model)


@pytest.fixture
def dataset(pictures: Path) -> PersonalizedBase:
    return PersonalizedBase(pictures, size=8)


class Counted:
    """An encoder that counts the images it sees."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, x: Tensor) -> DiagonalGaussianDistribution:
        self.images += len(x)
        mean = x.flatten(1).mean(1)[:, None, None, None].expand(-1, 1, 2, 2)
        return DiagonalGaussianDistribution(torch.cat([mean, mean], 1))


def test_latents_are_those_of_encoding(model: Any, dataset: PersonalizedBase) -> None:
    noise = model.batch_noise()
    encoded = Collate(noise)([dataset[i] for i in range(8)])
    cache = encode_all(model.encode_first_stage, dataset, CPU)
    cached = Collate(noise, cache)([Described(dataset)[i] for i in range(8)])
    assert "image" not in cached
    for name in ("timestep", "noise", "posterior_noise"):
        assert torch.equal(cached[name], encoded[name]), name
    torch.testing.assert_close(model.latents(cached), model.latents(encoded), atol=1e-5, rtol=1e-4)


def test_each_distinct_image_is_encoded_once(dataset: PersonalizedBase) -> None:
    encoder = Counted()
    cache = encode_all(encoder, dataset, CPU, batch_size=4)
    assert encoder.images == len(dataset.paths) * 2  # each, and its mirror image
    assert cache is not None
    assert len(cache) == encoder.images


def test_processes_share_the_work(dataset: PersonalizedBase) -> None:
    whole = encode_all(Counted(), dataset, CPU, batch_size=2)
    assert whole is not None
    parts: list[Tensor] = []
    for rank in range(5):  # more than there are batches
        encode_all(
            Counted(), dataset, CPU, 2, share=(rank, 5), add_up=lambda t: parts.append(t) or t
        )
    assert torch.equal(torch.stack(parts).sum(0), whole.moments)


def cached(model: Any, folder: Path, **datasets: PersonalizedBase) -> tuple[dict[str, Any], int]:
    """Run the callback as a trainer of one process does; return latents and images encoded."""
    data = SimpleNamespace(datasets=datasets, latents={})
    strategy = SimpleNamespace(
        broadcast=lambda value: value, reduce_boolean_decision=lambda value, all: value
    )
    trainer: Any = SimpleNamespace(
        datamodule=data, strategy=strategy, global_rank=0, world_size=1, is_global_zero=True
    )
    counts: list[int] = []
    encode = model.encode_first_stage
    model.encode_first_stage = lambda x: (counts.append(len(x)), encode(x))[1]
    try:
        CacheLatents(folder, batch_size=3).on_fit_start(trainer, model)
    finally:
        del model.encode_first_stage
    return data.latents, sum(counts)


def test_images_of_training_and_validation_are_encoded_once(
    model: Any, dataset: PersonalizedBase, tmp_path: Path
) -> None:
    same = PersonalizedBase(dataset.paths[0].parent, size=8, set="val")
    other = PersonalizedBase(dataset.paths[0].parent, size=16, set="val")
    latents, count = cached(model, tmp_path, train=dataset, validation=same)
    assert count == len(dataset.image_ids())
    ids = torch.tensor(same.image_ids())
    assert torch.equal(latents["validation"](ids), latents["train"](ids))
    _, count = cached(model, tmp_path, train=dataset, validation=other)
    assert count == len(dataset.image_ids()) + len(other.image_ids())
    assert not list(tmp_path.iterdir())


def test_latents_of_large_sets_are_read_again(
    model: Any, dataset: PersonalizedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.training.latents.IMAGES_WORTH_A_FILE", 2)
    first, count = cached(model, tmp_path, train=dataset)
    again, none = cached(model, tmp_path, train=dataset)
    assert (count, none) == (len(dataset.image_ids()), 0)
    assert torch.equal(first["train"].moments, again["train"].moments)


def test_large_sets_show_how_far_encoding_is(
    dataset: PersonalizedBase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_all(Counted(), dataset, CPU)
    assert "encoding images" not in capsys.readouterr().err
    monkeypatch.setattr("ldm.training.latents.IMAGES_WORTH_A_FILE", 2)
    encode_all(Counted(), dataset, CPU)
    total = len(dataset.image_ids())
    assert f"encoding images: 100%|##########| {total}/{total}" in capsys.readouterr().err.replace(
        "█", "#"
    )


def test_files_are_recognised(tmp_path: Path) -> None:
    cache = LatentCache([1, 5], torch.randn(2, 2, 2, 2))
    path = tmp_path / "latents.safetensors"
    assert LatentCache.load(path, "a") is None
    cache.save(path, "a")
    assert LatentCache.load(path, "b") is None
    again = LatentCache.load(path, "a")
    assert again is not None
    assert torch.equal(again.moments, cache.moments)
    assert torch.equal(again.ids, cache.ids)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_fingerprints_tell_models_and_images_apart(model: Any, dataset: PersonalizedBase) -> None:
    first = fingerprint(model.first_stage_model, dataset)
    assert first == fingerprint(model.first_stage_model, dataset)
    with torch.no_grad():
        model.first_stage_model.quant_conv.bias += 1
    assert first != fingerprint(model.first_stage_model, dataset)
    second = fingerprint(model.first_stage_model, dataset)
    dataset._cache[0] = np.zeros_like(dataset._cache[0])
    assert second != fingerprint(model.first_stage_model, dataset)


def test_strangers_and_nonsense_are_refused() -> None:
    cache = LatentCache([1, 5], torch.zeros(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"no latents of images \[2, 9\]"):
        cache(torch.tensor([1, 2, 9]))
    with pytest.raises(ValueError, match="ascend"):
        LatentCache([5, 1], torch.zeros(2, 2, 2, 2))
    with pytest.raises(ValueError, match="moments for 1 ids"):
        LatentCache([5], torch.zeros(2, 2, 2, 2))
    assert encode_all(lambda x: x, _One(), CPU) is None


class _One:
    """A dataset of one image."""

    def image_ids(self) -> list[int]:
        return [0]

    def image(self, image_id: int) -> Any:
        return np.zeros((4, 4, 3), np.float32)
