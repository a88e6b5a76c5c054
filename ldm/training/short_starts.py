"""Start each word where a short training reaches the lowest loss.

The loss has local minima: from some initializer words the vector never reaches the concept. So the
vocabulary proposes other starts. All are compared on the same batches, and the best few are trained
for some steps each. The run continues from the best of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.randomness import Purpose, generator
from ldm.training.words import manager_of
from ldm.util import at_least
from ldm.words.manager import EmbeddingManager
from ldm.words.tokens import TextEmbedder

log = logging.getLogger(__name__)

Batch = Mapping[str, Any]


class ShortStarts(pl.Callback):
    """Choose the first value of each word before step 1.

    1. The candidates are tokens of the vocabulary, chosen at random by the run's seed. The loss
       compares them on fixed batches: those that would follow the last step. After each batch the
       better half stays.
    2. The initializer word and the best of the others are trained on the run's first batches, at
       the run's learning rate.
    3. The word starts from the result with the lowest loss on the fixed batches.

    The steps of the run are those without this callback. A resumed run continues from its
    checkpoint. Words on a sphere (`DirectionalEmbeddingManager`) start at their initializer words.

    Args:
        count: short trainings, at least 1. The first is that of the initializer word.
        steps: optimizer steps of each, at least 1.
        candidates: tokens to compare, at least `count` - 1.
        batches: fixed batches, at least 1.
    """

    def __init__(
        self, count: int = 4, steps: int = 25, candidates: int = 128, batches: int = 4
    ) -> None:
        at_least(1, count=count, steps=steps, batches=batches)
        at_least(count - 1, candidates=candidates)
        self.count, self.steps, self.candidates, self.batches = count, steps, candidates, batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose, on the first process only, unless the run is resumed or learns no plain word."""
        manager = manager_of(pl_module)
        if trainer.global_step or not isinstance(pl_module, LatentDiffusion):
            return
        if type(manager) is not EmbeddingManager:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        first, fixed = [], []
        if trainer.is_global_zero:
            first = data.batches("train", 0, self.steps)
            fixed = data.batches("train", trainer.max_steps, self.batches)
        for placeholder in manager.configured():
            parameter = manager.string_to_param_dict[placeholder]
            if trainer.is_global_zero:
                shown = [_rows_with(pl_module, placeholder, batch) for batch in first]
                compared = [_rows_with(pl_module, placeholder, batch) for batch in fixed]
                with trainer.precision_plugin.forward_context():
                    self._choose(pl_module, placeholder, shown, compared)
            parameter.data.copy_(trainer.strategy.broadcast(parameter.detach()))

    def _choose(
        self,
        model: LatentDiffusion,
        placeholder: str,
        shown: Sequence[Batch],
        compared: Sequence[Batch],
    ) -> None:
        """Set a word to the best result of the short trainings on the batches `shown`."""
        manager = model.embedding_manager
        assert manager is not None
        parameter = manager.string_to_param_dict[placeholder]
        initial = parameter.detach().clone()
        tokens = candidate_tokens(manager.embedder, self.candidates, model.seed)
        vectors = manager.embedder.token_vectors(tokens).detach().to(initial)
        starts = dict(zip(tokens, (vector.expand_as(initial) for vector in vectors), strict=True))
        losses = dict.fromkeys(tokens, 0.0)
        for batch in compared:
            losses = {k: v + _loss(model, parameter, starts[k], [batch]) for k, v in losses.items()}
            stay = max(self.count - 1, len(losses) // 2)
            losses = dict(sorted(losses.items(), key=lambda item: item[1])[:stay])
        tried = [("its initializer word", initial)]
        tried += [(_text(manager.embedder, k), starts[k]) for k in list(losses)[: self.count - 1]]
        results: list[tuple[float, Tensor, str]] = []
        for name, start in tried:
            learned = _trained(model, parameter, start, shown)
            results.append((_loss(model, parameter, learned, compared), learned, name))
        loss, best, name = min(results, key=lambda result: result[0])
        with torch.no_grad():
            parameter.copy_(best)
        log.info(
            f"word {placeholder!r}: of {len(results)} short starts the one from {name} is best, "
            f"with loss {loss:.4f}; {results[0][0]:.4f} from its initializer word"
        )


def candidate_tokens(embedder: TextEmbedder, count: int, seed: int) -> list[int]:
    """Return up to `count` distinct ids of an encoder's vocabulary, without special tokens."""
    order = generator(seed, 0, Purpose.CANDIDATES).permutation(embedder.vocab_size)
    special = set(embedder.special_ids)
    return [int(token) for token in order if int(token) not in special][:count]


def _text(embedder: TextEmbedder, token: int) -> str:
    return repr(embedder.tokenizer.decode([token]))


def _rows_with(model: LatentDiffusion, placeholder: str, batch: Batch) -> Batch:
    """Return the rows of a batch whose caption has the word, without images of its class."""
    assert model.embedding_manager is not None
    named = model.embedding_manager.named
    captions = batch[model.cond_stage_key]
    rows = [i for i, caption in enumerate(captions) if placeholder in named(caption)]
    return {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in batch.items()
        if name != "prior"
    }


@torch.no_grad()
def _loss(
    model: LatentDiffusion, parameter: Tensor, vectors: Tensor, batches: Sequence[Batch]
) -> float:
    """Return the mean loss over batches with the word's vectors [k, d] set to `vectors`."""
    parameter.copy_(vectors)
    return float(torch.stack([model.shared_step(batch).loss for batch in batches]).mean())


def _trained(
    model: LatentDiffusion, parameter: Tensor, start: Tensor, batches: Sequence[Batch]
) -> Tensor:
    """Return the word's vectors after a step on each batch, from `start` [k, d]."""
    assert model.embedding_manager is not None
    with torch.no_grad():
        parameter.copy_(start)
    optimizer = model.embedding_manager.make_optimizer(
        [{"params": [parameter]}], model.learning_rate
    )
    for batch in batches:
        with torch.enable_grad():
            model.shared_step(batch).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.zero_grad(set_to_none=True)
    return parameter.detach().clone()
