"""Directional Textual Inversion: a word keeps the vocabulary's norm and learns its direction.

Kim et al., arXiv 2512.13672 ("DTI"). Free optimization makes the norm of a word's vector much
larger than the vocabulary's norms, so that it outweighs position and context. Here e = m·u: m is
fixed, the vocabulary's mean norm, and u moves on the unit sphere. Each of k vectors has its own
sphere.

The signs: the loss contains the prior's negative logarithm. A von Mises–Fisher density
∝ exp(κ⟨μ, u⟩) around the initializer word's direction μ adds −κ⟨μ, u⟩ with gradient −κμ. With
∂L/∂u = m·∂L/∂e:

    g = m·∂L/∂e − κμ                 the whole gradient in u
    g ← g − ⟨g, u⟩u                  what of it lies along the sphere
    u ← (u − rate·g/‖g‖) / ‖…‖       a step of constant length against it, and back onto the sphere

Each step turns u by the angle atan(rate), whatever the loss's scale: downhill, and with the prior's
share towards μ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.util import UserError, at_least
from ldm.words.manager import EmbeddingManager
from ldm.words.sphere import directions, tangent
from ldm.words.tokens import TextEmbedder

# Norms of the vocabulary that a word may keep, and their names in `vocabulary_norms`.
NORMS = {"mean": "vocabulary/mean", "median": "vocabulary/p50"}
# Relative size below which a float32 remainder of a subtraction is rounding, not a direction.
ROUNDING = 1e-6
# Why the networks' weights cannot be trained beside such words.
ALONE = "directional words are learned alone, with the model frozen: set unfreeze_model to false"


def spherical_step(
    vectors: Tensor, gradient: Tensor, mean: Tensor, radius: float, kappa: float, rate: float
) -> Tensor:
    """Take one step of directional textual inversion; the equations stand above.

    A vector whose gradient is exactly zero was in none of the step's captions, so it stays: the
    step has a constant length, and the prior alone would move it towards μ as fast as images do. A
    vector also stays if its gradient has no part along the sphere, or is not finite.

    Args:
        vectors: e, [k, d]; only their directions count.
        gradient: gradient of the loss with respect to e, [k, d].
        mean: μ, unit vectors [k, d].
        radius: m, above 0, the norm of the result where a vector moved.
        kappa: κ, at least 0.
        rate: tangent of the angle turned.
    """
    u = F.normalize(vectors.float(), dim=-1)
    whole = radius * gradient.to(u) - kappa * mean
    along = tangent(whole, u)
    length = along.norm(dim=-1, keepdim=True)
    moves = gradient.any(-1, keepdim=True) & (length > ROUNDING * whole.norm(dim=-1, keepdim=True))
    stepped = F.normalize(u - rate * along / torch.where(moves, length, 1.0), dim=-1)
    return torch.where(moves, (radius * stepped).to(vectors), vectors)


class DirectionalDescent(Optimizer):
    """Moves words over their spheres by `spherical_step`; no weight decay, no momentum.

    The words are parameters [k, d]; the prior means μ of each, unit vectors [k, d], are the only
    state, so a resumed run continues bit for bit. A schedule may change the rate `lr`, which is
    above 0; `radius` (m) is above 0 too, `kappa` (κ) at least 0.
    """

    def __init__(
        self,
        words: Iterable[nn.Parameter],
        means: Iterable[Tensor],
        *,
        lr: float,
        radius: float,
        kappa: float,
    ) -> None:
        for name, value in (("lr", lr), ("radius", radius)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        at_least(0, kappa=kappa)
        words = list(words)
        super().__init__(words, {"lr": lr, "radius": radius, "kappa": kappa})
        for word, mean in zip(words, means, strict=True):
            self.state[word]["mean"] = mean.detach().to(word).clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move each word that has a gradient; `closure`, where given, computes it and the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            numbers = group["radius"], group["kappa"], group["lr"]
            for word in group["params"]:
                if word.grad is not None:
                    mean = self.state[word]["mean"]
                    word.copy_(spherical_step(word, word.grad, mean, *numbers))
        return loss


class DirectionalEmbeddingManager(EmbeddingManager):
    """Words on a sphere of one norm, the vocabulary's; learned, saved and used like any other.

    What is held and written are the plain vectors e = m·u, which every tool reads.

    Args:
        embedder: the text encoder.
        kappa: κ of the prior around the initializer word, at least 0; the paper's 1e-4.
        norm: m, the norm that words keep: the vocabulary's "mean", as in the paper; its "median",
            on which the short rows of unused tokens have less influence; or a number.
        options: of `EmbeddingManager`. Each word needs an initializer word, so
            `per_image_tokens`, whose words have none, is refused.

    Raises:
        UserError: a word without an initializer word.
        ValueError: `kappa` or `norm` out of range.
    """

    norm: str | float

    def __init__(
        self,
        embedder: TextEmbedder,
        *,
        kappa: float = 1e-4,
        norm: str | float = "mean",
        **options: Any,
    ) -> None:
        at_least(0, kappa=kappa)
        if norm not in NORMS if isinstance(norm, str) else not 0 < norm < math.inf:
            raise ValueError(f"norm must be 'mean', 'median' or a number above 0, got {norm!r}")
        # Before the parent's, which takes the initializer words' vectors.
        self.__dict__["norm"] = norm
        super().__init__(embedder, **options)
        self.kappa = kappa
        if self.per_image_placeholders:
            raise UserError(
                "directional words start from an initializer word, and those of per_image_tokens "
                "have none: set per_image_tokens to false"
            )
        self._check_initializer_words()

    @property
    def radius(self) -> float:
        """The norm m that every word keeps."""
        return self._vocabulary()[NORMS[self.norm]] if isinstance(self.norm, str) else self.norm

    @torch.no_grad()
    def make_optimizer(self, groups: list[dict[str, Any]], rate: float) -> Optimizer:
        """Return what moves the words over their spheres, onto which loaded words are put first.

        Raises UserError for a word without an initializer word, or networks trained beside words.
        """
        if len(groups) > 1:
            raise UserError(ALONE)
        self._check_initializer_words()
        words = [self.string_to_param_dict[p] for p in self.placeholders]
        for word in words:
            placed = (self.radius * directions(word)).to(word)
            # Words that have this norm already keep every bit: a resumed run must not differ.
            there = torch.isclose(word.norm(dim=-1), placed.norm(dim=-1), rtol=1e-5, atol=0)
            word.copy_(torch.where(there[:, None], word, placed))
        means = [directions(self._initializer_vectors(p)) for p in self.placeholders]
        return DirectionalDescent(words, means, lr=rate, radius=self.radius, kappa=self.kappa)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the words as `EmbeddingManager.save`, saying how they were learned."""
        facts = {
            "parameterization": "directional",
            "kappa": f"{self.kappa:g}",
            "norm": f"{self.radius:.6g}",
        }
        super().save(path, {**facts, **(metadata or {})})

    def _initializer_vectors(self, placeholder: str) -> Tensor:
        """Return the initializer word's directions at the norm that words keep, [k, d]."""
        vectors = super()._initializer_vectors(placeholder)
        try:
            return (self.radius * directions(vectors)).to(vectors)
        except ValueError as error:
            raise UserError(
                f"initializer word {self.initializer_words[placeholder]!r} has a vector of zeros, "
                "without direction: choose another"
            ) from error

    def _check_initializer_words(self) -> None:
        without = [p for p in self._lasting() if p not in self.initializer_words]
        if without:
            raise UserError(
                "a directional word starts from an initializer word's direction, and "
                f"{without[0]!r} has none: give it in initializer_words (--init_word)"
            )
