"""The latent cache gives the model what encoding at every step would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ldm.data.personalized import PersonalizedBase
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.training import latents
from ldm.training.latents import LatentCache, encode_all, fingerprint
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
    """An encoder that counts the pictures it sees."""

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, x: Tensor) -> DiagonalGaussianDistribution:
        self.pictures += len(x)
        mean = x.flatten(1).mean(1)[:, None, None, None].expand(-1, 1, 2, 2)
        return DiagonalGaussianDistribution(torch.cat([mean, mean], 1))


def test_latents_are_those_of_encoding(model: Any, dataset: PersonalizedBase) -> None:
    batch = default_collate([dataset[i] for i in range(8)])
    encoded = model.latents(batch)
    model.posterior_source = encode_all(model.encode_first_stage, dataset, CPU)
    dataset.with_pictures = False
    light = default_collate([dataset[i] for i in range(8)])
    assert "image" not in light
    try:
        cached = model.latents(light)
    finally:
        model.posterior_source = None
    torch.testing.assert_close(cached, encoded, atol=1e-5, rtol=1e-4)


def test_samples_have_the_posteriors_moments() -> None:
    mean, std = torch.randn(1, 2, 3, 3), torch.rand(1, 2, 3, 3) + 0.1
    cache = LatentCache([4], mean, std)
    torch.manual_seed(0)
    drawn = cache({"picture": torch.full((20_000,), 4)}).sample()
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.04, rtol=0)
    torch.testing.assert_close(drawn.std(0), std[0], atol=0.04, rtol=0)


def test_each_distinct_picture_is_encoded_once(dataset: PersonalizedBase) -> None:
    encoder = Counted()
    cache = encode_all(encoder, dataset, CPU, batch_size=4)
    assert encoder.pictures == len(dataset.paths) * 2  # each, and its mirror image
    assert cache is not None
    assert len(cache) == encoder.pictures


def test_processes_share_the_work(dataset: PersonalizedBase) -> None:
    whole = encode_all(Counted(), dataset, CPU, batch_size=2)
    assert whole is not None
    parts: list[list[Tensor]] = []
    for rank in range(5):  # more than there are batches
        seen: list[Tensor] = []
        encode_all(
            Counted(), dataset, CPU, 2, share=(rank, 5), add_up=lambda t, s=seen: s.append(t) or t
        )
        parts.append(seen)
    assert torch.equal(sum(p[0] for p in parts), whole.mean)
    assert torch.equal(sum(p[1] for p in parts), whole.std)


def test_large_sets_are_kept_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, dataset: PersonalizedBase
) -> None:
    monkeypatch.setattr(latents, "FULL_PRECISION_BYTES", 10)
    cache = encode_all(Counted(), dataset, CPU)
    assert cache is not None
    assert cache.mean.dtype == torch.float16
    assert cache({"picture": torch.tensor([1])}).mean.dtype == torch.float32


def test_files_are_recognised(tmp_path: Path) -> None:
    cache = LatentCache([1, 5], torch.randn(2, 1, 2, 2), torch.rand(2, 1, 2, 2))
    path = tmp_path / "latents.safetensors"
    assert LatentCache.load(path, "a") is None
    cache.save(path, "a")
    assert LatentCache.load(path, "b") is None
    again = LatentCache.load(path, "a")
    assert again is not None
    assert torch.equal(again.mean, cache.mean)
    assert torch.equal(again.ids, cache.ids)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_fingerprints_tell_models_and_pictures_apart(model: Any, dataset: PersonalizedBase) -> None:
    first = fingerprint(model.first_stage_model, dataset)
    assert first == fingerprint(model.first_stage_model, dataset)
    with torch.no_grad():
        model.first_stage_model.quant_conv.bias += 1
    assert first != fingerprint(model.first_stage_model, dataset)
    second = fingerprint(model.first_stage_model, dataset)
    dataset._cache[0] = np.zeros_like(dataset._cache[0])
    assert second != fingerprint(model.first_stage_model, dataset)


def test_strangers_and_nonsense_are_refused() -> None:
    cache = LatentCache([1, 5], torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"no latents of pictures \[2, 9\]"):
        cache({"picture": torch.tensor([1, 2, 9])})
    with pytest.raises(ValueError, match="ascend"):
        LatentCache([5, 1], torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    with pytest.raises(ValueError, match="one mean and std for each of 1 ids"):
        LatentCache([5], torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    assert encode_all(lambda x: x, _One(), CPU) is None


class _One:
    """A set of one picture."""

    def picture_ids(self) -> list[int]:
        return [0]

    def picture(self, picture_id: int) -> Any:
        return np.zeros((4, 4, 3), np.float32)
