"""Sampling settings: what is refused, and the way through an image's metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ldm.sampling import Sampling
from ldm.util import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"^steps must lie in 1\.\.1000, got 0"),
        ({"steps": 1001}, r"^steps must lie in 1\.\.1000, got 1001"),
        ({"eta": 1.5}, "^eta must lie"),
        ({"eta": float("nan")}, "^eta must lie"),
        ({"eta": 0.5, "sampler": "plms"}, "^eta must be 0 with plms"),
        ({"sampler": "heun"}, r"^sampler must be one of ddim, plms.*, got 'heun'"),
        ({"seed": -1}, "^seed must lie"),
        ({"scale": float("nan")}, "^scale must be"),
        ({"scale": -1.0}, "^scale must be"),
        ({"batch_size": -1}, "^batch_size must be at least 0, got -1"),
        ({"precision": "fp8"}, "^precision must be one of full, autocast"),
        ({"sampler": "ddim", "karras": True}, "^karras needs one of dpmpp_2m, euler, euler_a, got"),
        ({"height": 20}, "^height must be a multiple of 8, got 20"),
        ({"width": 0}, "^width must be a multiple of 8, got 0"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling("plms", 20, 7.5, 0.0, 512, 256, 3, "blurry", "autocast"),
        Sampling("euler_a", karras=True),
    ],
)
def test_metadata_gives_the_same_settings_back(sampling: Sampling) -> None:
    metadata = replace(sampling, batch_size=9).metadata()
    assert Sampling.from_metadata(metadata) == sampling
    assert Sampling.from_metadata({name: str(v) for name, v in metadata.items()}) == sampling


def test_metadata_of_earlier_versions_is_read() -> None:
    old = {
        "prompt": "a painting of *", "seed": 43, "negative_prompt": "", "steps": 3, "scale": 5.0,
        "eta": 0.0, "sampler": "ddim", "height": 16, "width": 16, "precision": "full",
        "checkpoint": "model.ckpt", "pictures": 4,
    }  # fmt: skip
    assert Sampling.from_metadata(old) == Sampling(steps=3, seed=43, height=16, width=16)
    assert Sampling.from_metadata({"ddim_steps": 7, "ddim_eta": 1}) == Sampling(steps=7, eta=1.0)


def test_malformed_metadata_is_named() -> None:
    with pytest.raises(UserError, match="steps must be int, got 'many'"):
        Sampling.from_metadata({"steps": "many"})
