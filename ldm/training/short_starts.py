"""Start each word where a short training reaches the lowest loss.

The loss has local minima: from some initializer words the vector never reaches the concept. So
other tokens of the vocabulary are tried too. All are compared on the same batches, and the best few
are trained for some steps each. The run continues from the best result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.randomness import Purpose, generator
from ldm.training.memory import LARGE
from ldm.training.words import manager_of
from ldm.util import at_least
from ldm.words.manager import EmbeddingManager
from ldm.words.tokens import TextEmbedder

log = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Batches = Sequence[Batch]
# Values of a word that share a batch: a small model computes one large batch faster.
AT_ONCE = 4


class ShortStarts(Callback):
    """Choose the first value of each word before step 1.

    1. The candidates are tokens of the vocabulary, chosen at random by the run's seed. The loss
       compares them on the samples of fixed batches: those that would follow the last step. The
       first round has one sample. The better half stays for the next round, which has twice as many
       samples (successive halving, Karnin et al. 2013), until the samples end.
    2. The initializer word and the best of the others are trained on the run's first batches, at
       the run's learning rate.
    3. The word starts from the result with the lowest loss on the fixed batches.

    The run has the same steps as without this callback. A resumed run continues from its
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        self, model: LatentDiffusion, placeholder: str, shown: Batches, compared: Batches
    ) -> None:
        """Set a word to the best result of the short trainings on the batches `shown`."""
        manager = model.embedding_manager
        assert manager is not None
        parameter = manager.string_to_param_dict[placeholder]
        initial = parameter.detach().clone()
        tokens = candidate_tokens(manager.embedder, self.candidates, model.seed)
        found = manager.embedder.token_vectors(tokens).detach().to(initial)
        vectors = found[:, None].expand(-1, *initial.shape)
        left, sums = torch.arange(len(tokens)), torch.zeros(len(tokens))
        for samples in _rounds(compared):
            count = len(samples[model.cond_stage_key])
            sums[left] += count * _losses(model, placeholder, vectors[left], [samples])
            stay = max(self.count - 1, len(left) // 2)
            left = left[sums[left].argsort(stable=True)[:stay]]
        others = left[: self.count - 1].tolist()
        texts = (manager.embedder.tokenizer.decode([tokens[i]]) for i in others)
        names = ["its initializer word", *map(repr, texts)]
        learned = _trained(model, placeholder, torch.stack([initial, *vectors[others]]), shown)
        losses = _losses(model, placeholder, learned, compared)
        best = int(losses.argmin())
        with torch.no_grad():
            parameter.copy_(learned[best])
        log.info(
            f"word {placeholder!r}: of {len(names)} short starts the one from {names[best]} is "
            f"best, with loss {losses[best]:.4f}; {losses[0]:.4f} from its initializer word"
        )


def candidate_tokens(embedder: TextEmbedder, count: int, seed: int) -> list[int]:
    """Return up to `count` distinct ids of an encoder's vocabulary, without special tokens."""
    order = generator(seed, 0, Purpose.CANDIDATES).permutation(embedder.vocab_size)
    special = set(embedder.special_ids)
    return [int(token) for token in order if int(token) not in special][:count]


def _pick(batch: Batch, rows: Iterable[int]) -> Batch:
    """Return rows of a batch, without images of the word's class."""
    rows = list(rows)
    return {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in batch.items()
        if name != "prior"
    }


def _rows_with(model: LatentDiffusion, placeholder: str, batch: Batch) -> Batch:
    """Return the rows of a batch whose caption has the word."""
    assert model.embedding_manager is not None
    named = model.embedding_manager.named
    captions = batch[model.cond_stage_key]
    return _pick(batch, (i for i, text in enumerate(captions) if placeholder in named(text)))


def _rounds(batches: Batches) -> Iterator[Batch]:
    """Yield the first sample of some batches, then the next 2, 4, 8, …, as long as they last."""
    joined: dict[str, Any] = {
        name: torch.cat([batch[name] for batch in batches])
        if isinstance(value, Tensor)
        else [item for batch in batches for item in batch[name]]
        for name, value in batches[0].items()
    }
    start, count = 0, 1
    while start + count <= len(next(iter(joined.values()))):
        yield _pick(joined, range(start, start + count))
        start, count = start + count, 2 * count


def _at_once(model: LatentDiffusion) -> int:
    """Return how many values of a word share a batch: a large model fills memory with one."""
    return AT_ONCE if sum(p.numel() for p in model.parameters()) < LARGE else 1


def _batch_losses(model: LatentDiffusion, placeholder: str, values: Tensor, batch: Batch) -> Tensor:
    """Return a batch's loss and regularization with each of the values [s, k, d] of a word: [s]."""
    manager, times = model.embedding_manager, len(values)
    assert manager is not None
    repeated = _pick(batch, [*range(len(batch[model.cond_stage_key]))] * times)
    losses = model.sample_losses(repeated, manager.trying(placeholder, values))
    of_values = losses.reshape(times, -1).mean(1)
    if model.embedding_reg_weight > 0:
        away = values - manager.string_to_param_dict[placeholder].detach()
        of_values = of_values + model.embedding_reg_weight * away.square().flatten(1).sum(1)
    return of_values


@torch.no_grad()
def _losses(model: LatentDiffusion, placeholder: str, values: Tensor, batches: Batches) -> Tensor:
    """Return the mean loss over batches with each of the values [s, k, d] of a word: [s]."""
    found = [
        torch.stack([_batch_losses(model, placeholder, part, batch) for batch in batches]).mean(0)
        for part in torch.split(values, _at_once(model))
    ]
    return torch.cat(found).cpu()


def _trained(model: LatentDiffusion, placeholder: str, starts: Tensor, batches: Batches) -> Tensor:
    """Return a word's values after a step on each batch, from each of the `starts` [s, k, d]."""
    assert model.embedding_manager is not None
    learned = []
    for part in torch.split(starts, _at_once(model)):
        values = nn.Parameter(part.clone())
        group: list[dict[str, Any]] = [{"params": [values]}]
        optimizer = model.embedding_manager.make_optimizer(group, model.learning_rate)
        for batch in batches:
            with torch.enable_grad():
                loss = _batch_losses(model, placeholder, values, batch).sum()
                (values.grad,) = torch.autograd.grad(loss, [values])
            optimizer.step()
        learned.append(values.detach())
    return torch.cat(learned)
