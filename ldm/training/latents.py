"""Latents of every picture, encoded once a run: the frozen first stage never works twice.

What is kept is the posterior's mean and standard deviation, and each step samples from it: training
sees the same distribution as with encoding at every step (the paper samples the posterior too).
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import write_whole

log = logging.getLogger(__name__)

# Beyond this many bytes in float32, latents are kept in half precision.
FULL_PRECISION_BYTES = 2**28
# Sets at least this large are kept on disk too, so that a resumed run need not encode again.
PICTURES_WORTH_A_FILE = 1000
# Pictures hashed to tell one set from another.
PROBES = 8
# Seconds between two lines about progress.
REPORT_SECONDS = 15.0


class _Pictures(Dataset[Tensor]):
    """A set's distinct pictures, [3, h, w], in the order of `ids`."""

    def __init__(self, source: Any, ids: Sequence[int]) -> None:
        self.source, self.ids = source, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Tensor:
        return torch.from_numpy(self.source.picture(self.ids[place])).permute(2, 0, 1).contiguous()


class LatentCache:
    """Posteriors by picture id; called with a batch, gives the posteriors of its pictures.

    Args:
        ids: distinct picture ids, ascending.
        mean, std: [len(ids), c, h, w], float32 or float16.
    """

    def __init__(self, ids: Sequence[int], mean: Tensor, std: Tensor) -> None:
        if len(ids) != len(mean) or mean.shape != std.shape:
            raise ValueError(
                f"expected one mean and std for each of {len(ids)} ids, "
                f"got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        self.ids = torch.as_tensor(list(ids), dtype=torch.int64)
        if bool((self.ids[1:] <= self.ids[:-1]).any()):
            raise ValueError("ids must ascend without repeats")
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.ids)

    def __call__(self, batch: Mapping[str, Any]) -> DiagonalGaussianDistribution:
        """Return the posteriors of `batch["picture"]` [b], on that tensor's device.

        Raises ValueError for a picture that was not encoded.
        """
        pictures: Tensor = batch["picture"]
        wanted = pictures.cpu()
        rows = torch.searchsorted(self.ids, wanted).clamp(max=len(self.ids) - 1)
        if not torch.equal(self.ids[rows], wanted):
            strangers = wanted[self.ids[rows] != wanted].tolist()
            raise ValueError(f"no latents of pictures {strangers}: picture_ids() must list them")
        mean, std = (t[rows].to(pictures.device).float() for t in (self.mean, self.std))
        return DiagonalGaussianDistribution.from_moments(mean, std)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the latents to `path`, whole or not at all."""
        tensors = {"ids": self.ids, "mean": self.mean.cpu(), "std": self.std.cpu()}
        write_whole(path, lambda part: save_file(tensors, part, {"fingerprint": fingerprint}))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> LatentCache | None:
        """Read latents written by `save`; None where there are none, or those of something else."""
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return cls(
                file.get_tensor("ids").tolist(), file.get_tensor("mean"), file.get_tensor("std")
            )


def fingerprint(first_stage: torch.nn.Module, dataset: Any) -> str:
    """Return a hash that tells whether stored latents are those of this first stage and set."""
    digest = hashlib.sha256()
    for name, weight in first_stage.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.double().sum().item():.12e}".encode())
    ids = dataset.picture_ids()
    digest.update(f"{len(ids)} {ids[0]} {ids[-1]}".encode())
    for place in range(0, len(ids), max(1, len(ids) // PROBES)):
        digest.update(dataset.picture(ids[place]).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encode_all(
    encode: Callable[[Tensor], Any],
    dataset: Any,
    device: torch.device,
    batch_size: int = 16,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> LatentCache | None:
    """Encode every distinct picture of a set.

    Args:
        encode: pictures [b, 3, h, w] in [−1, 1] → posterior with `mean` and `std`.
        dataset: has `picture_ids()` and `picture(id)`.
        device: where to encode.
        batch_size: pictures encoded at once.
        workers: processes that load pictures, of a large set.
        share: (rank, world): this process encodes every world-th batch.
        add_up: sums a tensor over all processes; needed where there are several.

    Returns:
        The latents, or None where the first stage gives no Gaussian posterior.
    """
    ids = sorted(dataset.picture_ids())
    rank, world = share
    batches = [range(i, min(i + batch_size, len(ids))) for i in range(0, len(ids), batch_size)]
    loader: DataLoader[Tensor] = DataLoader(
        _Pictures(dataset, ids),
        batch_sampler=batches[rank::world],  # type: ignore[arg-type]
        num_workers=workers if len(ids) >= PICTURES_WORTH_A_FILE else 0,
    )
    moments: list[Tensor] = []
    shown = time.monotonic()
    # A rank without a share still takes part in the sum, so it must learn the shape.
    for places, pictures in zip(batches[rank::world] or batches[:1], loader, strict=False):
        posterior = encode(pictures.to(device))
        if isinstance(posterior, Tensor):
            return None
        if not moments:
            moments = _empty(posterior.mean, len(ids))
        moments[0][list(places)] = posterior.mean.to(moments[0])
        moments[1][list(places)] = posterior.std.to(moments[1])
        if time.monotonic() - shown > REPORT_SECONDS:
            shown = time.monotonic()
            log.info(f"encoding pictures: {places[-1] + 1} of {len(ids)}")
    if world > 1 and add_up is not None:
        if not moments:
            first = torch.from_numpy(dataset.picture(ids[0])).permute(2, 0, 1)[None]
            moments = _empty(encode(first.to(device)).mean, len(ids))
        moments = [add_up(m) for m in moments]
    return LatentCache(ids, *moments)


def _empty(mean: Tensor, count: int) -> list[Tensor]:
    """Return zeros for `count` means and deviations like `mean` [b, c, h, w], on the CPU."""
    shape = (count, *mean.shape[1:])
    full = 2 * 4 * math.prod(shape) <= FULL_PRECISION_BYTES
    dtype = torch.float32 if full else torch.float16
    return [torch.zeros(shape, dtype=dtype) for _ in range(2)]


class CacheLatents(pl.Callback):
    """Encode the training and validation pictures before the first step, and feed the model.

    Applies where the model can take latents (`posterior_source`), its first stage is frozen, and
    the set can name its pictures (`picture_ids`). The set then loads no pictures any more.

    Args:
        folder: where large sets' latents are kept.
        batch_size: pictures encoded at once.
        enabled: false to encode at every step, as the original did.
    """

    def __init__(self, folder: Path, batch_size: int = 16, enabled: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"latent_cache.batch_size must be at least 1, got {batch_size}")
        self.folder, self.batch_size, self.enabled = Path(folder), batch_size, enabled
        self.caches: dict[int, LatentCache] = {}

    def _cache(self, trainer: pl.Trainer, module: Any, name: str, dataset: Any) -> None:
        start = time.monotonic()
        count = len(dataset.picture_ids())
        large = count >= PICTURES_WORTH_A_FILE
        mark = fingerprint(module.first_stage_model, dataset) if large else ""
        folder = Path(trainer.strategy.broadcast(self.folder))
        path = folder / f"latents-{name}-{mark[:12]}.safetensors"
        cache = LatentCache.load(path, mark) if large else None
        # All processes or none: encoding is shared work.
        if not trainer.strategy.reduce_boolean_decision(cache is not None, all=True):
            cache = encode_all(
                module.encode_first_stage,
                dataset,
                module.device,
                self.batch_size,
                workers=2,
                share=(trainer.global_rank, trainer.world_size),
                add_up=lambda t: _sum(trainer, t),
            )
            if cache is None:
                log.info(f"{name}: the first stage has no posterior to keep: encoding at each step")
                return
            if large and trainer.is_global_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
                cache.save(path, mark)
        assert cache is not None
        log.info(f"{name}: latents of {count} pictures in {time.monotonic() - start:.1f} s")
        dataset.with_pictures = False
        self.caches[id(dataset)] = cache

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode, once the model is on its device and before any loader starts."""
        first_stage = getattr(pl_module, "first_stage_model", None)
        able = self.enabled and first_stage is not None and hasattr(pl_module, "posterior_source")
        if not able or any(p.requires_grad for p in first_stage.parameters()):  # type: ignore[union-attr]
            return
        for name in ("train", "validation"):
            dataset = trainer.datamodule.datasets.get(name)  # type: ignore[attr-defined]
            if dataset is not None and hasattr(dataset, "picture_ids"):
                self._cache(trainer, pl_module, name, dataset)

    def _feed_from(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        if hasattr(pl_module, "posterior_source"):
            dataset = trainer.datamodule.datasets.get(name)  # type: ignore[attr-defined]
            pl_module.posterior_source = self.caches.get(id(dataset))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Feed from the training pictures."""
        self._feed_from(trainer, pl_module, "train")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Feed from the validation pictures."""
        self._feed_from(trainer, pl_module, "validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Feed from the training pictures again."""
        self._feed_from(trainer, pl_module, "train")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Feed from the test pictures, or the validation pictures where there are no others."""
        names = trainer.datamodule.datasets  # type: ignore[attr-defined]
        self._feed_from(trainer, pl_module, "test" if "test" in names else "validation")


def _sum(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """Sum over all processes, on the CPU again."""
    total = trainer.strategy.reduce(tensor.to(trainer.strategy.root_device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.cpu()
