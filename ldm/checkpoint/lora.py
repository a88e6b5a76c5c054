"""Export a weight delta: as a whole model, or as a LoRA that other tools read.

A LoRA stores, for each matrix of the delta, the nearest matrix of a given rank. A LoRA cannot hold
biases, norms and vocabularies. The stated error counts both losses. The names are those of kohya's
scripts; a word travels in the same file as `bundle_emb.NAME…`, which AUTOMATIC1111, Forge and
ComfyUI read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoint.convert import give, open_base, read_entries, write
from ldm.checkpoint.tables import FAMILIES
from ldm.checkpoint.weight_delta import check_weight_delta, read_changes
from ldm.util import UserError, write_whole
from ldm.words.files import WordFile, check_name

logger = logging.getLogger(__name__)

# Component of a diffusers folder → prefix of kohya's names. SDXL's first encoder has its own.
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def export_delta(
    delta: str | Path,
    source: str | Path,
    target: str | Path,
    config: str | Path | None = None,
    rank: int | None = None,
    words: WordFile | None = None,
) -> float:
    """Write the base and its weight delta as one model, or the delta as a LoRA.

    Args:
        delta: `weight_delta.safetensors` of a run.
        source: the base that tuning started from, as `convert` takes it.
        target: as `convert` takes it; of a LoRA a `.safetensors` file.
        config: the base's configuration; by default as the loader finds it.
        rank: of the LoRA, at least 1; None writes the whole model.
        words: learned words to bundle with a LoRA.

    Returns the relative error of the LoRA; 0 for a whole model. Raises UserError if the delta does
    not belong to the base, the base has no LoRA, or the target exists or cannot be written.
    """
    if words is not None and rank is None:
        raise UserError("words are bundled with a LoRA only: give its rank")
    base, target = open_base(source, target, config)
    check_weight_delta(delta, base.path)
    entries = read_entries(base)
    moved = {name: change.float() for name, change in read_changes(delta, entries)}
    if rank is None:
        tuned = entries | {n: (entries[n].float() + v).to(entries[n]) for n, v in moved.items()}
        write(base, tuned, target)
        return 0.0
    if target.suffix != ".safetensors":
        raise UserError(f"a LoRA must end in .safetensors, got {target}")
    tensors, error, left_out = low_rank(moved, base.family, entries, rank)
    facts = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_v2": str(base.family.startswith("sd2")),
        "relative_error": f"{error:.4g}",
    }
    held = tensors | (bundled(words) if words is not None else {})
    write_whole(target, lambda part: save_file(held, part, metadata=facts))
    logger.info(
        f"{target}: rank {rank}, relative error {error:.3g} of the weight delta"
        + (f"; {left_out} biases, norms or tables are not in a LoRA" * bool(left_out))
    )
    return error


@torch.no_grad()
def low_rank(
    delta: Mapping[str, Tensor], family: str, names: Iterable[str], rank: int
) -> tuple[dict[str, Tensor], float, int]:
    """Return the LoRA of a delta (published name → trained − base, float32).

    `names` are all published names of the base, `rank` that of each matrix; a smaller matrix gets
    its full rank. Returns tensors by kohya's names; ‖delta − LoRA‖ / ‖delta‖ over all weights of
    the delta (Frobenius norm); how many weights of the delta have no place in a LoRA. Raises
    UserError where the family has no LoRA, or `rank` is below 1.
    """
    if family == "ldm":
        raise UserError(f"no tool reads a LoRA of {FAMILIES[family].title}: write a whole model")
    if rank < 1:
        raise UserError(f"the rank of a LoRA must be at least 1, got {rank}")
    places, tensors = FAMILIES[family].entries(names), dict[str, Tensor]()
    missed = total = 0.0
    left_out = 0
    for published, change in delta.items():
        size = change.double().square().sum().item()
        total += size
        entry = places.get(published)
        parts = {} if entry is None or entry.component not in PREFIXES else give(entry, change)
        if entry is None or not parts or not all(map(_is_matrix, parts, parts.values())):
            missed += size
            left_out += 1
            continue
        first_of_two = family == "sdxl" and entry.component == "text_encoder"
        prefix = "lora_te1" if first_of_two else PREFIXES[entry.component]
        for name, part in parts.items():
            stem = f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}"
            up, down = (factor.half() for factor in factors(part, rank))
            rows = up.flatten(1).double() @ down.flatten(1).double()
            missed += (part.flatten(1).double() - rows).square().sum().item()
            tensors[f"{stem}.lora_up.weight"] = up.contiguous()
            tensors[f"{stem}.lora_down.weight"] = down.contiguous()
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(down)))
    if not tensors:
        raise UserError("the weight delta moves no matrix: a LoRA of it would be empty")
    return tensors, (missed / total) ** 0.5 if total else 0.0, left_out


def _is_matrix(name: str, part: Tensor) -> bool:
    return name.endswith(".weight") and part.ndim in (2, 4) and "embeddings." not in name


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up and down, whose product is the nearest matrix of a rank (Eckart and Young, 1936).

    Args:
        matrix: [o, i] of a linear layer or [o, i, h, w] of a convolution.
        rank: r, at least 1; the matrix's own where that is smaller.

    Returns:
        up [o, r] and down [r, i]; of a convolution up [o, r, 1, 1] and down [r, i, h, w].
    """
    flat = matrix.flatten(1).double()
    wide = flat.shape[0] <= flat.shape[1]
    # Eigenvectors of the smaller Gram matrix: a U-Net's largest convolution has 1280 x 23040.
    values, vectors = torch.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    keep = vectors[:, -min(rank, vectors.shape[1]) :].flip(1)
    # Each factor gets the root of the singular value, which loses least in half precision.
    strength = values.flip(0)[: keep.shape[1]].clamp(min=1e-24).sqrt().sqrt()
    if wide:
        up, down = keep * strength, keep.T @ flat / strength[:, None]
    else:
        up, down = flat @ keep / strength, keep.T * strength[:, None]
    if matrix.ndim == 2:
        return up.float(), down.float()
    return up.float()[:, :, None, None], down.float().reshape(-1, *matrix.shape[1:])


def bundled(words: WordFile) -> dict[str, Tensor]:
    """Return words under the names that a LoRA carries them by; SDXL's have two tensors each.

    Raises UserError for a name that cannot stand there.
    """
    for name in words.words:
        check_name(name)
        if "." in name:
            raise UserError(
                f"the readers of a LoRA end a word's name at a dot, got {name!r}: give another "
                "name with WORD=FILE"
            )
    first, second = ("clip_l", "clip_g") if words.second else ("string_to_param.*", "")
    return {
        f"bundle_emb.{name}.{key}": vectors
        for key, part in ((first, words.words), (second, words.second))
        for name, vectors in part.items()
    }
