"""The names of a base's weights: published file (CompVis) ↔ folder of diffusers.

Each family has one table. A table maps a published name to the component of the folder and the
name in it. It is read in this direction only: the published names of a model are known, so the
other direction is the inverse over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

INDEX = "model_index.json"
UNET_PREFIX, AUTOENCODER_PREFIX = "model.diffusion_model.", "first_stage_model."
# File names of a component's weights, the preferred one first: of diffusers, of transformers.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")

# A table entry's rule: name without prefix, blocks of a level (U-Net) or levels (autoencoder).
Rule = Callable[[str, int], tuple[str, ...]]


class Part(NamedTuple):
    """A component of a diffusers folder."""

    component: str
    prefix: str  # of the published names
    # Maps a published name without prefix to the names in the folder. Three names are the rows of
    # one matrix, in this order. No name means that the folder has no such entry.
    rule: Rule


class Entry(NamedTuple):
    """Where a diffusers folder has one published entry."""

    component: str
    names: tuple[str, ...]  # in the component's weights; several are joined along dimension 0
    transposed: bool = False  # whether the folder has the transposed matrix


class Family(NamedTuple):
    """A family of bases."""

    title: str  # what users call it
    inference: str  # a configuration, as the next
    finetune: str
    parts: tuple[Part, ...]  # components with weights: U-Net, autoencoder, text encoders
    tokenizers: tuple[str, ...]  # components with vocabularies
    pipeline: str  # the class of diffusers that opens it

    def entries(self, names: Iterable[str]) -> dict[str, Entry]:
        """Return where a folder has the entries of a model, by published name.

        `names` are all published names of the model: the numbers of the U-Net's and the
        autoencoder's levels follow from them. Names that the folder has not are left out.
        """
        names, found = list(names), {}
        outputs = _count(rf"{UNET_PREFIX}output_blocks\.(\d+)\.", names)
        halvings = _count(rf"{UNET_PREFIX}input_blocks\.(\d+)\.0\.op\.", names)
        levels = _count(rf"{AUTOENCODER_PREFIX}decoder\.up\.(\d+)\.", names)
        sizes: dict[Rule, int] = {unet: outputs // (halvings + 1) - 1, autoencoder: levels}
        for name in names:
            part = next((part for part in self.parts if name.startswith(part.prefix)), None)
            if part is None:
                continue
            own = part.rule(name.removeprefix(part.prefix), sizes.get(part.rule, 0))
            projects = name.endswith(".text_projection")  # only SDXL's folder has it
            if own and not (projects and part.component == "text_encoder"):
                found[name] = Entry(part.component, own, projects)
        return found


def _count(pattern: str, names: Iterable[str]) -> int:
    return len({found[1] for found in (re.match(pattern, name) for name in names) if found})


RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(?:(\d+)\.)?(\d+)\.(.+)")


def unet(name: str, blocks: int) -> tuple[str, ...]:
    """Map a name of `UNetModel` to `UNet2DConditionModel`."""
    module, _, kind = name.rpartition(".")
    if module in UNET_ENDS:
        return (f"{UNET_ENDS[module]}.{kind}",)
    found = UNET_BLOCK.fullmatch(module)
    if found is None:
        return ()
    side, block, layer, rest = found.groups()
    if side == "middle_block":
        place, j = "mid_block", layer == "2"
    else:
        first = side == "input_blocks"  # its block 0 is the first convolution
        level, j = divmod(int(block) - first, blocks + 1)
        place = f"{'down' if first else 'up'}_blocks.{level}"
    resize = {"op": "downsamplers.0.conv", "conv": "upsamplers.0.conv"}.get(rest)
    inner = f"resnets.{j:d}.{RESNET[rest]}" if rest in RESNET else f"attentions.{j:d}.{rest}"
    return (f"{place}.{resize or inner}.{kind}",)


AUTOENCODER = (
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"(up|down)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"(up|down)\.(\d+)\.(up|down)sample\.", r"\1_blocks.\2.\3samplers.0."),
)
# The names of the autoencoder's attention before diffusers 0.17, as in many folders on the Hub.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def autoencoder(name: str, levels: int) -> tuple[str, ...]:
    """Map a name of `AutoencoderKL` to the class of that name in diffusers."""
    if name.startswith("loss."):
        return ()
    for ours, theirs in AUTOENCODER:
        name = re.sub(ours, theirs, name)
    # The decoder's levels count from the finest here, and from the coarsest there.
    return (re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name),)


BERT_ENDS = {
    "token_emb.weight": "model.embed_tokens.weight",
    "pos_emb.emb.weight": "model.embed_positions.weight",
    "norm.weight": "model.layer_norm.weight",
    "norm.bias": "model.layer_norm.bias",
    "to_logits.weight": "to_logits.weight",
    "to_logits.bias": "to_logits.bias",
}
# By place in the list of layers (attention 0, perceptron 1), then by name in it.
BERT_LAYER = {
    (0, "0"): "self_attn_layer_norm",
    (0, "1.to_q"): "self_attn.q_proj",
    (0, "1.to_k"): "self_attn.k_proj",
    (0, "1.to_v"): "self_attn.v_proj",
    (0, "1.to_out"): "self_attn.out_proj",
    (1, "0"): "final_layer_norm",
    (1, "1.net.0.0"): "fc1",
    (1, "1.net.2"): "fc2",
}


def bert(name: str, _: int) -> tuple[str, ...]:
    """Map a name of the 1.4B model's text transformer to `LDMBertModel`."""
    if name in BERT_ENDS:
        return (BERT_ENDS[name],)
    found = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        return ()
    layer, place = divmod(int(found[1]), 2)
    inner = BERT_LAYER.get((place, found[2]))
    return (f"model.layers.{layer}.{inner}.{found[3]}",) if inner else ()


def clip(name: str, _: int) -> tuple[str, ...]:
    """Map a name of CLIP's text encoder to `CLIPTextModel`: they are the same."""
    return () if name.endswith("position_ids") else (name,)


OPEN_CLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def open_clip(name: str, _: int) -> tuple[str, ...]:
    """Map a name of OpenCLIP's text encoder to `CLIPTextModel` (with projection)."""
    if name in OPEN_CLIP:
        return (OPEN_CLIP[name],)
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
    if found is None:
        return ()
    place = f"text_model.encoder.layers.{found[1]}"
    if found[2] == "attn.in_proj":
        return tuple(f"{place}.self_attn.{x}_proj.{found[3]}" for x in "qkv")
    inner = OPEN_CLIP_LAYER.get(found[2])
    return (f"{place}.{inner}.{found[3]}",) if inner else ()


_UNET = Part("unet", UNET_PREFIX, unet)
_VAE = Part("vae", AUTOENCODER_PREFIX, autoencoder)


def _stable_diffusion(title: str, stem: str, *encoders: tuple[str, Rule]) -> Family:
    start, several = f"configs/stable-diffusion/{stem}", len(encoders) > 1
    names = ("text_encoder", "text_encoder_2") if several else ("text_encoder",)
    texts = (Part(name, *encoder) for name, encoder in zip(names, encoders, strict=True))
    return Family(
        title,
        f"{start}-inference.yaml",
        f"{start}-finetune.yaml",
        (_UNET, _VAE, *texts),
        ("tokenizer", "tokenizer_2") if several else ("tokenizer",),
        "StableDiffusionXLPipeline" if several else "StableDiffusionPipeline",
    )


_CLIP, _OPEN_CLIP = ("cond_stage_model.transformer.", clip), ("cond_stage_model.model.", open_clip)
_XL = ("conditioner.embedders.0.transformer.", clip), ("conditioner.embedders.1.model.", open_clip)
FAMILIES = {
    "ldm": Family(
        "the 1.4B latent diffusion model",
        "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
        "configs/finetune.yaml",
        (_UNET, _VAE._replace(component="vqvae"), Part("bert", _CLIP[0], bert)),
        ("tokenizer",),
        "LDMTextToImagePipeline",
    ),
    "sd1": _stable_diffusion("Stable Diffusion 1", "v1", _CLIP),
    "sd2": _stable_diffusion("Stable Diffusion 2", "v2", _OPEN_CLIP),
    "sd2-v": _stable_diffusion("Stable Diffusion 2 with v-prediction", "v2-v", _OPEN_CLIP),
    "sdxl": _stable_diffusion("Stable Diffusion XL", "xl", *_XL),
}
# The beginning of a name that identifies a text encoder, its family (a key of `FAMILIES`; "" for
# others) and what it is called. The first that fits decides.
TEXT_ENCODERS = (
    ("conditioner.embedders.1.", "sdxl", "Stable Diffusion XL (two text encoders)"),
    ("conditioner.embedders.", "", "the refiner of Stable Diffusion XL"),
    *(
        (f"{_CLIP[0]}{part}.", "ldm", "latent diffusion with a BERT text encoder")
        for part in ("attn_layers", "token_emb")
    ),
    (_OPEN_CLIP[0], "sd2", "Stable Diffusion v2 (OpenCLIP text encoder)"),
    (_CLIP[0], "sd1", "Stable Diffusion v1 (CLIP text encoder)"),
    ("cond_stage_model.embedding.", "", "class-conditional latent diffusion"),
)


def text_encoder(names: Iterable[str]) -> tuple[str, str]:
    """Return the family (a key of `FAMILIES`, or "") of published names, and what it is called."""
    names = tuple(names)
    for start, family, what in TEXT_ENCODERS:
        if any(name.startswith(start) for name in names):
            return family, what
    return "", "a diffusion model without text encoder"


def choose_weights(names: Iterable[str]) -> list[str]:
    """Return which file names of a component hold its weights; [] if there are none.

    Of several forms one is chosen: safetensors before `.bin`, full before half precision. A form in
    several files is returned with its index last.
    """
    there = set(names)
    for ending in ENDINGS:
        for stem in STEMS:
            if stem + ending in there:
                return [stem + ending]
            kind = ending.rpartition(".")[2]
            index = f"{stem}.{kind}.index{ending.removesuffix(f'.{kind}')}.json"
            if index in there:
                parts = [n for n in there if n.startswith(f"{stem}") and n.endswith(f".{kind}")]
                return [*sorted(n for n in parts if "-of-" in n), index]
    return []
