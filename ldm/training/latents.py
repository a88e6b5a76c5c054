"""The posterior of every image, encoded once a run.

The cache keeps the parameters of the posterior as the first stage computed them. Each step samples
from the posterior (paper, section 3), so the distribution is the same as with encoding at every
step.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ldm.data.protocol import DescribedImages
from ldm.models.diffusion.ddpm import LatentDiffusion, Posterior
from ldm.util import at_least, write_whole

log = logging.getLogger(__name__)

# The latents of datasets of at least this size are also kept on disk, for a resumed run.
IMAGES_WORTH_A_FILE = 1000
# Processes that load the images of a large dataset.
WORKERS = 2
# Number of images that identify a large dataset.
PROBES = 8
# Seconds between two states of the progress bar in a log file.
REPORT_SECONDS = 15.0


def _images(source: DescribedImages, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """Return the images with the ids in some places, [b, 3, h, w]."""
    pixels = torch.stack([torch.from_numpy(source.image(ids[place])) for place in places])
    return pixels.permute(0, 3, 1, 2).contiguous()


class LatentCache:
    """Posterior parameters by image id.

    Args:
        ids: distinct image ids, ascending; ValueError otherwise.
        moments: mean and log-variance stacked along channels, [len(ids), 2c, h, w].
    """

    def __init__(self, ids: Sequence[int], moments: Tensor) -> None:
        if len(ids) != len(moments):
            raise ValueError(f"expected moments for {len(ids)} ids, got {tuple(moments.shape)}")
        self.ids = torch.as_tensor(list(ids), dtype=torch.int64)
        if bool((self.ids[1:] <= self.ids[:-1]).any()):
            raise ValueError("ids must ascend without repeats")
        self.moments = moments

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the moments of images [b], which were encoded: [b, 2c, h, w], on the CPU."""
        rows = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        if not torch.equal(self.ids[rows], ids):
            strangers = ids[self.ids[rows] != ids].tolist()
            raise ValueError(f"no latents of images {strangers}: image_ids() must list them")
        return self.moments[rows]

    def save(self, path: Path, fingerprint: str) -> None:
        tensors = {"ids": self.ids, "moments": self.moments}
        write_whole(path, lambda part: save_file(tensors, part, {"fingerprint": fingerprint}))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> LatentCache | None:
        """Read the latents that `save` wrote; None if the file is missing or has other latents."""
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return cls(file.get_tensor("ids").tolist(), file.get_tensor("moments"))


def fingerprint(first_stage: torch.nn.Module, dataset: DescribedImages) -> str:
    """Return a hash that tells whether stored latents are those of this first stage and dataset."""
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
    encode: Callable[[Tensor], Posterior],
    dataset: DescribedImages,
    device: torch.device,
    batch_size: int = 16,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[Tensor], Tensor] | None = None,
    ids: Sequence[int] | None = None,
) -> LatentCache | None:
    """Encode images of a dataset, by default all, each once; None without a Gaussian posterior.

    `encode` takes images [b, 3, h, w] in [−1, 1] to a posterior with its `parameters`. `share` is
    (rank, world): this process encodes every world-th batch; `add_up` sums a tensor over all.
    """
    ids = sorted(dataset.image_ids() if ids is None else ids)
    rank, world = share
    large = len(ids) >= IMAGES_WORTH_A_FILE
    batches = [range(i, min(i + batch_size, len(ids))) for i in range(0, len(ids), batch_size)]
    own = batches[rank::world]  # a process without a batch learns the shape from the first one
    shown, read = own or batches[:1], functools.partial(_images, dataset, ids)
    workers = WORKERS if large else 0
    loader: DataLoader[Tensor] = DataLoader(shown, None, collate_fn=read, num_workers=workers)  # type: ignore[arg-type]
    moments: Tensor | None = None
    every = 0.5 if sys.stderr.isatty() else REPORT_SECONDS
    looks = {"desc": "encoding images", "unit": "image", "disable": not (large and rank == 0)}
    with tqdm(total=len(ids), mininterval=every, **looks) as bar:
        for places, images in zip(shown, loader, strict=True):
            posterior = encode(images.to(device))
            if isinstance(posterior, Tensor):
                return None
            if moments is None:
                moments = torch.zeros(len(ids), *posterior.parameters.shape[1:])
            if own:
                moments[list(places)] = posterior.parameters.to(moments)
            bar.update(world * len(places))
    assert moments is not None, "a dataset has at least one image"
    return LatentCache(ids, moments if add_up is None else add_up(moments))


class CacheLatents(Callback):
    """Encode the training and validation images before the first step.

    This applies if the model has a frozen first stage and the dataset is `DescribedImages`. Then
    batches hold moments and no pixels. An image that both datasets have is encoded once.

    Args:
        folder: folder for the latents of large datasets.
        batch_size: images encoded at once, at least 1.
        enabled: false to encode at every step, like the original.
    """

    def __init__(self, folder: Path, batch_size: int = 16, enabled: bool = True) -> None:
        at_least(1, **{"latent_cache.batch_size": batch_size})
        self.folder, self.batch_size, self.enabled = Path(folder), batch_size, enabled
        self._known: dict[bytes, Tensor] = {}  # hash of an image → its moments

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode, when the model is on its device and no loader has started."""
        if not self.enabled or not isinstance(pl_module, LatentDiffusion):
            return
        if any(p.requires_grad for p in pl_module.first_stage_model.parameters()):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for name in ("train", "validation"):
            dataset = data.datasets.get(name)
            if not isinstance(dataset, DescribedImages):
                continue
            start, count = time.monotonic(), len(dataset.image_ids())
            find = self._read_or_encode if count >= IMAGES_WORTH_A_FILE else self._encode_new
            cache = find(trainer, pl_module, dataset)
            if cache is None:
                log.info(f"{name}: the first stage has no Gaussian posterior: encoding each step")
                continue
            log.info(f"{name}: latents of {count} images in {time.monotonic() - start:.1f} s")
            data.latents[name] = cache
        self._known.clear()

    def _read_or_encode(
        self, trainer: Trainer, model: LatentDiffusion, dataset: DescribedImages
    ) -> LatentCache | None:
        """Return the latents of a large dataset, from its file if there is one."""
        mark = fingerprint(model.first_stage_model, dataset)
        path = Path(trainer.strategy.broadcast(self.folder)) / f"latents-{mark[:12]}.safetensors"
        cache = LatentCache.load(path, mark)
        # All processes read the file, or none, because they share the encoding.
        if not trainer.strategy.reduce_boolean_decision(cache is not None, all=True):
            cache = self._encode(trainer, model, dataset)
            if cache is not None and trainer.is_global_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
                cache.save(path, mark)
        return cache

    def _encode_new(
        self, trainer: Trainer, model: LatentDiffusion, dataset: DescribedImages
    ) -> LatentCache | None:
        """Return the latents of a small dataset; encode only images that are not yet known."""
        ids = sorted(dataset.image_ids())
        marks = {i: hashlib.sha256(dataset.image(i).tobytes()).digest() for i in ids}
        if new := [i for i in ids if marks[i] not in self._known]:
            cache = self._encode(trainer, model, dataset, new)
            if cache is None:
                return None
            self._known |= {marks[i]: m for i, m in zip(new, cache.moments, strict=True)}
        return LatentCache(ids, torch.stack([self._known[marks[i]] for i in ids]))

    def _encode(
        self,
        trainer: Trainer,
        model: LatentDiffusion,
        dataset: DescribedImages,
        ids: Sequence[int] | None = None,
    ) -> LatentCache | None:
        def add_up(tensor: Tensor) -> Tensor:
            place = trainer.strategy.root_device
            return trainer.strategy.reduce(tensor.to(place), reduce_op="sum").cpu()

        return encode_all(
            model.encode_first_stage,
            dataset,
            model.device,
            self.batch_size,
            share=(trainer.global_rank, trainer.world_size),
            add_up=add_up if trainer.world_size > 1 else None,
            ids=ids,
        )
