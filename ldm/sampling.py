"""The sampling settings: one checked set for every command, edit and evaluation.

It imports nothing heavy, so that command lines check it before they load a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldm.util import UserError

__all__ = ("PRECISIONS", "SAMPLERS", "Sampling")

SAMPLERS = ("ddim", "plms", "dpmpp_2m", "euler", "euler_a")
PRECISIONS = ("full", "autocast")
# Samplers that take `eta`, the share of DDPM's noise.
STOCHASTIC = ("ddim",)
# Samplers that can space their noise levels as Karras et al. (arXiv 2206.00364) do.
SPACED = ("dpmpp_2m", "euler", "euler_a")


@dataclass(frozen=True)
class Sampling:
    """Settings that turn a prompt into an image. The defaults are the paper's.

    Attributes:
        sampler: one of `SAMPLERS`.
        steps: number of sampling steps, 1..1000.
        scale: classifier-free guidance scale, at least 0; 1 is no guidance.
        eta: 0 is deterministic, 1 adds as much noise as DDPM; DDIM only.
        height: image height in pixels; None is the model's own.
        width: image width in pixels; None is the model's own.
        seed: seed of the first image, 0..2^62; image i has seed + i.
        negative_prompt: the text that guidance leads away from.
        precision: "full", or "autocast" to half precision (bfloat16 on a CPU).
        weighted_prompts: read brackets as weights and texts of any length in chunks, as
            AUTOMATIC1111 does (`ldm.words.prompts`).
        clip_skip: the layer of a CLIP text encoder that conditions, counted from the model's own,
            which is 1, as AUTOMATIC1111 counts.
        karras: space the noise levels as Karras et al. do; `SPACED` samplers only.
        batch_size: images at a time; it does not change them. 0 takes as many as the device holds.

    Raises:
        UserError: a value out of range. The message begins with the attribute's name.
    """

    sampler: str = "ddim"
    steps: int = 50
    scale: float = 5.0
    eta: float = 0.0
    height: int | None = None
    width: int | None = None
    seed: int = 42
    negative_prompt: str = ""
    precision: str = "full"
    batch_size: int = 4
    karras: bool = False
    weighted_prompts: bool = False
    clip_skip: int = 1

    def __post_init__(self) -> None:
        for name, names in (("sampler", SAMPLERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in names:
                known = ", ".join(names)
                raise UserError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        needs_ddim = f"eta must be 0 with {self.sampler}, got {self.eta}; use ddim for eta > 0"
        for is_right, message in (
            (1 <= self.steps <= 1000, f"steps must lie in 1..1000, got {self.steps}"),
            (0 <= self.scale < math.inf, f"scale must be at least 0, got {self.scale}"),
            (0 <= self.eta <= 1, f"eta must lie in 0..1, got {self.eta}"),
            (not self.eta or self.sampler in STOCHASTIC, needs_ddim),
            (
                not self.karras or self.sampler in SPACED,
                f"karras needs one of {', '.join(SPACED)}, got {self.sampler}",
            ),
            (0 <= self.seed < 2**62, f"seed must lie in 0..2^62, got {self.seed}"),
            (self.clip_skip >= 1, f"clip_skip must be at least 1, got {self.clip_skip}"),
            (self.batch_size >= 0, f"batch_size must be at least 0, got {self.batch_size}"),
        ):
            if not is_right:
                raise UserError(message)
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and (side < 1 or side % 8):
                raise UserError(f"{name} must be a multiple of 8, got {side}")

    def metadata(self) -> dict[str, str | int | float]:
        """Return the settings that decide an image, as plain values for JSON; not the batch size.

        Settings of the prompts' reading are left out if they have their defaults.
        """
        values = asdict(self)
        del values["batch_size"]
        for name in ("weighted_prompts", "clip_skip"):
            if values[name] == getattr(type(self), name):
                del values[name]
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Sampling:
        """Read settings that `metadata` made, or that an earlier version wrote into an image.

        Values may be texts. Keys that are no sampling settings are ignored.

        Raises:
            UserError: a value that is malformed or out of range.
        """
        given = dict(metadata)
        for old, new in (("ddim_steps", "steps"), ("ddim_eta", "eta"), ("sampler_steps", "steps")):
            if old in given:
                given.setdefault(new, given[old])
        found: dict[str, Any] = {}
        for name, default in asdict(cls()).items():
            value = given.get(name)
            if value is None or name == "batch_size":
                continue
            kind = int if default is None else type(default)
            try:
                found[name] = str(value) == "True" if kind is bool else kind(value)
            except (TypeError, ValueError):
                raise UserError(f"{name} must be {kind.__name__}, got {value!r}") from None
        return cls(**found)
