"""The posterior of every image, encoded once a run.

The cache keeps the posterior's parameters as the first stage computed them. Each step samples from
the posterior, so training sees the same distribution as with encoding at every step (paper, section
3: the posterior is sampled).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
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

# The latents of sets at least this large are also kept on disk, for a resumed run.
IMAGES_WORTH_A_FILE = 1000
# Images hashed to tell one set from another.
PROBES = 8
# Seconds between two lines about progress.
REPORT_SECONDS = 15.0


class _Images(Dataset[Tensor]):
    """A set's distinct images, [3, h, w], in the order of `ids`."""

    def __init__(self, source: Any, ids: Sequence[int]) -> None:
        self.source, self.ids = source, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Tensor:
        return torch.from_numpy(self.source.image(self.ids[place])).permute(2, 0, 1).contiguous()


class LatentCache:
    """Posterior parameters by image id.

    Args:
        ids: distinct image ids, ascending.
        moments: mean and log-variance stacked along channels, [len(ids), 2c, h, w].

    Raises:
        ValueError: other numbers of ids and moments, or ids that do not ascend.
    """

    def __init__(self, ids: Sequence[int], moments: Tensor) -> None:
        if len(ids) != len(moments):
            raise ValueError(f"expected moments for {len(ids)} ids, got {tuple(moments.shape)}")
        self.ids = torch.as_tensor(list(ids), dtype=torch.int64)
        if bool((self.ids[1:] <= self.ids[:-1]).any()):
            raise ValueError("ids must ascend without repeats")
        self.moments = moments

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the moments of images [b]: [b, 2c, h, w], on the CPU.

        Raises ValueError for an image that was not encoded.
        """
        rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        if not torch.equal(self.ids[rows], ids):
            strangers = ids[self.ids[rows] != ids].tolist()
            raise ValueError(f"no latents of images {strangers}: image_ids() must list them")
        return self.moments[rows]

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the latents to `path`, whole or not at all."""
        tensors = {"ids": self.ids, "moments": self.moments}
        write_whole(path, lambda part: save_file(tensors, part, {"fingerprint": fingerprint}))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> LatentCache | None:
        """Read latents that `save` wrote; None if there are none, or those of something else."""
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return cls(file.get_tensor("ids").tolist(), file.get_tensor("moments"))


def fingerprint(first_stage: torch.nn.Module, dataset: Any) -> str:
    """Return a hash that tells whether stored latents are those of this first stage and set."""
    digest = hashlib.sha256()
    for name, weight in first_stage.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.double().sum().item():.12e}".encode())
    ids = dataset.image_ids()
    digest.update(f"{len(ids)} {ids[0]} {ids[-1]}".encode())
    for place in range(0, len(ids), max(1, len(ids) // PROBES)):
        digest.update(dataset.image(ids[place]).tobytes())
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
    """Encode every distinct image of a set.

    Args:
        encode: images [b, 3, h, w] in [−1, 1] → posterior with its `parameters`.
        dataset: has `image_ids()` and `image(id)`.
        device: where to encode.
        batch_size: images encoded at once.
        workers: processes that load images, of a large set.
        share: (rank, world): this process encodes every world-th batch.
        add_up: sums a tensor over all processes; needed where there are several.

    Returns:
        The latents, or None where the first stage gives no Gaussian posterior.
    """
    ids = sorted(dataset.image_ids())
    rank, world = share
    batches = [range(i, min(i + batch_size, len(ids))) for i in range(0, len(ids), batch_size)]
    loader: DataLoader[Tensor] = DataLoader(
        _Images(dataset, ids),
        batch_sampler=batches[rank::world],  # type: ignore[arg-type]
        num_workers=workers if len(ids) >= IMAGES_WORTH_A_FILE else 0,
    )
    moments: Tensor | None = None
    start = shown = time.monotonic()
    done = 0
    for places, images in zip(batches[rank::world], loader, strict=True):
        posterior = encode(images.to(device))
        if isinstance(posterior, Tensor):
            return None
        if moments is None:
            moments = _empty(posterior, len(ids))
        moments[list(places)] = posterior.parameters.to(moments)
        done += len(places)
        if (now := time.monotonic()) - shown > REPORT_SECONDS:
            shown, share_of = now, len(ids) / world
            left = (now - start) * (share_of - done) / done
            log.info(f"encoding images: {done} of {share_of:.0f}, about {left:.0f} s left")
    if world > 1 and add_up is not None:
        if moments is None:  # a rank without a share takes part in the sum, so it needs the shape
            first = torch.from_numpy(dataset.image(ids[0])).permute(2, 0, 1)[None]
            moments = _empty(encode(first.to(device)), len(ids))
        moments = add_up(moments)
    assert moments is not None, "a set has at least one image"
    return LatentCache(ids, moments)


def _empty(posterior: DiagonalGaussianDistribution, count: int) -> Tensor:
    """Return zeros for the parameters of `count` posteriors, on the CPU."""
    return torch.zeros(count, *posterior.parameters.shape[1:])


class CacheLatents(pl.Callback):
    """Encode the training and validation images before the first step, for the loaders.

    Applies if the model has a frozen first stage and the set can name its images (`image_ids`).
    The loaders then load no pixels.

    Args:
        folder: where large sets' latents are kept.
        batch_size: images encoded at once.
        enabled: false to encode at every step, as the original did.
    """

    def __init__(self, folder: Path, batch_size: int = 16, enabled: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"latent_cache.batch_size must be at least 1, got {batch_size}")
        self.folder, self.batch_size, self.enabled = Path(folder), batch_size, enabled

    def _cache(self, trainer: pl.Trainer, module: Any, name: str, dataset: Any) -> None:
        start = time.monotonic()
        count = len(dataset.image_ids())
        large = count >= IMAGES_WORTH_A_FILE
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
        log.info(f"{name}: latents of {count} images in {time.monotonic() - start:.1f} s")
        trainer.datamodule.latents[name] = cache  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode, once the model is on its device and before any loader starts."""
        first_stage = getattr(pl_module, "first_stage_model", None)
        if not self.enabled or first_stage is None:
            return
        if any(p.requires_grad for p in first_stage.parameters()):
            return
        for name in ("train", "validation"):
            dataset = trainer.datamodule.datasets.get(name)  # type: ignore[attr-defined]
            if dataset is not None and hasattr(dataset, "image_ids"):
                self._cache(trainer, pl_module, name, dataset)


def _sum(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """Sum over all processes, on the CPU again."""
    total = trainer.strategy.reduce(tensor.to(trainer.strategy.root_device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.cpu()
