"""The published models' configurations have the published checkpoints' names, shapes and types.

tests/data/*.tsv.gz list the entries of the published checkpoint of each family.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import published_names
from ldm.checkpoint.loading import load_state, read_config
from ldm.checkpoint.names import SCHEDULE, canonical, describe, match_names
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "txt2img-1p4B": (
        "finetune.yaml",
        "finetune_style.yaml",
        "latent-diffusion/txt2img-1p4B-eval.yaml",
        "latent-diffusion/txt2img-1p4B-eval_with_tokens.yaml",
        "latent-diffusion/txt2img-1p4B-finetune.yaml",
        "latent-diffusion/txt2img-1p4B-finetune_style.yaml",
    ),
    "sd-v1": (
        "stable-diffusion/v1-inference.yaml",
        "stable-diffusion/v1-finetune.yaml",
        "stable-diffusion/v1-finetune_unfrozen.yaml",
    ),
}
CASES = [(listing, config) for listing, configs in CONFIGS.items() for config in configs]
# Only some versions of `transformers` store it.
POSITION_IDS = "cond_stage_model.transformer.embeddings.position_ids"


def published(listing: str) -> dict[str, torch.Tensor]:
    """The entries of a published checkpoint, as tensors without memory."""
    text = gzip.decompress((ROOT / "tests" / "data" / f"{listing}.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {
        name: torch.empty(
            [int(n) for n in shape.split(",") if n], dtype=getattr(torch, dtype), device="meta"
        )
        for name, shape, dtype in rows
    }


def build(config: str, vocabulary: Path) -> torch.nn.Module:
    """Build a configuration's networks on the meta device; any vocabulary will do."""
    settings = read_config(ROOT / "configs" / config)
    encoder = settings.model.params.cond_stage_config
    encoder.params = {**(encoder.get("params") or {}), "tokenizer": str(vocabulary)}
    settings.model.params.pop("personalization_config", None)
    with torch.device("meta"):
        return instantiate_from_config(settings.model)


def write_vocabulary(folder: Path, listing: str) -> Path:
    """Write the least that the tokenisers load."""
    if listing == "sd-v1":
        (folder / "vocab.json").write_text('{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}')
        (folder / "merges.txt").write_text("#version: 0.2\n")
    else:
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    return folder


@pytest.mark.parametrize(("listing", "config"), CASES, ids=[c for _, c in CASES])
def test_names_shapes_and_types_are_the_published_ones(listing, config, tmp_path):
    model = build(config, write_vocabulary(tmp_path, listing))
    ours = {canonical(n): (v.shape, v.dtype) for n, v in model.state_dict().items()}
    theirs = {canonical(n): (v.shape, v.dtype) for n, v in published(listing).items()}
    for entries in (ours, theirs):
        entries.pop(POSITION_IDS, None)
    # Averaged weights are for training from nothing; the published files come without them.
    ours = {name: entry for name, entry in ours.items() if not name.startswith("model_ema.")}
    assert ours == theirs


@pytest.mark.parametrize("listing", CONFIGS)
def test_a_published_file_loads_without_anything_missing(listing, tmp_path):
    model = build(CONFIGS[listing][0], write_vocabulary(tmp_path, listing))
    state = published(listing)
    state["model_ema.decay"] = state["model_ema.num_updates"] = torch.empty((), device="meta")
    report = load_state(model, state)
    assert [n for n in report.missing if not n.endswith("position_ids")] == []
    assert [n for n in report.unexpected if not n.endswith("position_ids")] == [
        "model_ema.decay",
        "model_ema.num_updates",
    ]


@pytest.mark.parametrize(
    ("listing", "text"),
    [
        (
            "txt2img-1p4B",
            "latent diffusion with a BERT text encoder, context 1280, U-Net width 320, "
            "4 latent channels",
        ),
        (
            "sd-v1",
            "Stable Diffusion v1 (CLIP text encoder), context 768, U-Net width 320, "
            "4 latent channels",
        ),
    ],
)
def test_published_files_are_recognised(listing, text):
    assert describe(published(listing)) == text


@pytest.mark.parametrize("listing", CONFIGS)
def test_old_and_new_names_of_clip_pair_up(listing):
    old = list(published(listing))
    new = [canonical(name) for name in old]
    assert match_names(new, old) == dict(zip(old, new, strict=True))
    assert match_names(old, new) == dict(zip(new, old, strict=True))


@pytest.mark.parametrize(
    ("listing", "config"),
    [
        ("sd-v2-1", "stable-diffusion/v2-inference.yaml"),
        ("sd-v2-1", "stable-diffusion/v2-v-finetune.yaml"),
        ("sdxl-base-1.0", "stable-diffusion/xl-inference.yaml"),
        ("sdxl-base-1.0", "stable-diffusion/xl-finetune.yaml"),
    ],
)
def test_names_and_shapes_of_later_families(listing, config, tmp_path):
    """Published in half precision, so types are not compared; SDXL's files have no schedule."""
    model = build(config, write_vocabulary(tmp_path, "sd-v1"))
    own, file = model.state_dict(), published(listing)
    missing = SCHEDULE if "betas" not in file else ()
    ours = {canonical(n): v.shape for n, v in own.items() if n not in missing}
    theirs = {canonical(n): v.shape for n, v in file.items() if not n.endswith("position_ids")}
    assert {n: s for n, s in ours.items() if not n.endswith("position_ids")} == theirs
    report = load_state(model, file)
    assert set(report.missing) <= {n for n in own if n in missing or n.endswith("position_ids")}


# Entries that only some versions of `transformers` have, and those that no generation uses.
UNUSED = ("position_ids", "logit_scale", "cond_stage_model.model.text_projection")
EVERY_CONFIG = {
    **CONFIGS,
    "sd-v2-1": tuple(
        f"stable-diffusion/{name}.yaml"
        for name in ("v2-inference", "v2-finetune", "v2-v-inference", "v2-v-finetune")
    ),
    "sdxl-base-1.0": ("stable-diffusion/xl-inference.yaml", "stable-diffusion/xl-finetune.yaml"),
}


@pytest.mark.parametrize(
    ("listing", "config"), [(n, c) for n, configs in EVERY_CONFIG.items() for c in configs]
)
def test_published_names_are_those_of_the_file(listing, config, tmp_path):
    """Other tools look for these names, so no spelling is accepted but the file's own."""
    vocabulary = write_vocabulary(tmp_path, listing if listing in CONFIGS else "sd-v1")
    file = published(listing)
    found = published_names(build(config, vocabulary))
    assert len(found) > 1000
    if "betas" not in file:  # SDXL's file has no schedule
        found = {name: value for name, value in found.items() if name not in SCHEDULE}
    ours, theirs = (
        {n: (*v.shape, v.is_floating_point()) for n, v in entries.items() if not n.endswith(UNUSED)}
        for entries in (found, file)
    )
    ours = {name: facts for name, facts in ours.items() if not name.startswith("model_ema.")}
    assert ours == theirs
