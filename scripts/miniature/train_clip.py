"""Train one of the miniature's two CLIPs on images and captions of the world.

    python scripts/miniature/train_clip.py scorer            # resumes from its last saved state
    python scripts/miniature/train_clip.py selector
    python scripts/miniature/train_clip.py scorer --measure  # accuracies on unseen images

The selector chooses settings, checkpoints and words; the scorer reports results. They share no
training image and no seed (`ldm.miniature.clip.TRAINING`), so that a choice cannot fit the errors
of the CLIP that reports it.

The loss is CLIP's over the batch's captions plus two terms that make it learn faster. One is a
cross entropy for each attribute over its text prompts. The other is a cross entropy of the object's
silhouette. Linear layers, which are not kept, predict the silhouette from each patch, and at a
quarter of the resolution from the pooled vector. Unlike the diffusion model, a CLIP sees the shapes
and media held out as well: it has to recognise them. Images are flipped, blurred and made noisy at
random, since the images that it scores come from a decoder.

The state goes to logs/miniature-NAME/last.pt every few minutes; at the end half-precision weights,
configuration and tokenizer go to models/miniature/NAME/.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizer, CLIPConfig, CLIPModel

from ldm.evaluation.clip import encode_texts
from ldm.miniature.clip import (
    PROMPTS,
    TRAINING,
    MiniatureClip,
    TrainingImages,
    preprocess,
)
from ldm.miniature.grammar import caption, full_caption
from ldm.miniature.measure import clip_accuracy, render_specs, truth
from ldm.miniature.render import EXTRA_MEDIA, Spec, silhouette
from ldm.miniature.shapes import EXTRA_SHAPES
from ldm.miniature.world import MiniatureWorld, style_name
from ldm.randomness import Purpose, generator

# Media that do not show an object's colours.
COLOURLESS = ("sketch", "sepia", "blueprint", "stamp", "riso")
# How much each attribute counts in the loss.
WEIGHTS = {"shape": 2.0, "colour": 1.0, "scene": 0.7, "medium": 0.5, "texture": 0.5, "detail": 0.4}
OUTLINE_WEIGHT = 4.0
LOG = logging.getLogger("clip")


class Stream:
    """The training images of one CLIP, held-out shapes and media included, and their captions."""

    def __init__(self, images: TrainingImages) -> None:
        self.seed, self.first_index = images.seed, images.first_index
        # A CLIP has fewer steps than the diffusion model, so half of the captions describe.
        self.world = MiniatureWorld(seed=images.seed, first_index=images.first_index, name_rate=0.5)

    def spec(self, number: int) -> Spec:
        """Return what an image shows; `number` counts from 0 within this CLIP's images."""
        spec = self.world.spec(number)
        rng = generator(self.seed, self.first_index + number, Purpose.ORDER)
        if rng.random() < 0.12:
            spec = replace(spec, shape=list(EXTRA_SHAPES)[int(rng.integers(len(EXTRA_SHAPES)))])
        if rng.random() < 0.1:
            medium = EXTRA_MEDIA[int(rng.integers(len(EXTRA_MEDIA)))]
            spec = replace(spec, medium=medium, tone="")
        return spec

    def caption(self, number: int, spec: Spec) -> str:
        """Return the caption of an image, a full one seven times in ten."""
        rng = generator(self.seed, self.first_index + number, Purpose.CAPTION)
        name, style = self.world.name(number, spec), style_name(spec)
        if rng.random() < 0.7:
            return full_caption(spec, name, style)
        return caption(spec, rng, name, style)


def labels(specs: list[Spec], attribute: str) -> Tensor:
    """Return each image's answer as an index into `PROMPTS[attribute]`; -100 where unseen.

    An image in two inks shows no colours of the object, and no medium but its own named style.
    """
    answers = list(PROMPTS[attribute])
    of_colour = attribute in ("colour", "detail")
    hidden = [
        (of_colour and spec.medium in COLOURLESS)
        or (bool(spec.tone) and (of_colour or attribute == "medium"))
        for spec in specs
    ]
    right = [answers.index(answer) for answer in truth(specs, attribute)]
    return torch.tensor([-100 if h else answer for h, answer in zip(hidden, right, strict=True)])


def flip(images: Tensor, seed: int) -> Tensor:
    """Flip half of the images [n, c, h, w]."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def roughen(images: Tensor, seed: int) -> Tensor:
    """Blur, shift in brightness and add noise by random amounts."""
    rng = torch.Generator().manual_seed(seed)

    def amount(high: float) -> Tensor:
        return torch.rand(len(images), 1, 1, 1, generator=rng) * high

    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + amount(1) * (soft - images)
    images = images * (0.9 + amount(0.2)) + (amount(0.1) - 0.05)
    noise = torch.randn(images.shape, generator=rng)
    return images + amount(1) ** 2 * 0.15 * noise


def build(tokenizer: BertTokenizer, seed: int) -> CLIPModel:
    """Return the untrained model, 1.1 M parameters."""
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 192},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32},
        **{"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
    }
    vision = {
        **{"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "image_size": 64, "patch_size": 8},
    }
    torch.manual_seed(seed)
    config = CLIPConfig(projection_dim=128, text_config=text, vision_config=vision)
    # The backward pass of torch's fused attention is slow in bfloat16 on the CPU.
    config._attn_implementation = "eager"
    return CLIPModel(config)


class Student(torch.nn.Module):
    """A CLIP, and the layers that read the silhouette off its patches and its pooled vector."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        vision = model.config.vision_config
        self.clip = model
        self.patch = vision.patch_size
        self.outline = torch.nn.Linear(vision.hidden_size, self.patch**2)
        self.layout = torch.nn.Linear(vision.hidden_size, (vision.image_size // 4) ** 2)

    def embed(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors [n, d], and the two readings' cross entropy of masks [n, 1, h, w]."""
        seen = self.clip.vision_model(pixel_values=preprocess(images, images.shape[-1]))
        features = F.normalize(self.clip.visual_projection(seen.pooler_output), dim=-1)
        guess = self.outline(seen.last_hidden_state[:, 1:]).transpose(1, 2)
        wanted = F.unfold(masks, self.patch, stride=self.patch)
        loss = F.binary_cross_entropy_with_logits(guess, wanted)
        small = F.avg_pool2d(masks, 4).flatten(1)
        layout = self.layout(seen.pooler_output)
        return features, loss + F.binary_cross_entropy_with_logits(layout, small)


def loss_of(
    student: Student, tokenizer: BertTokenizer, stream: Stream, step: int, batch: int
) -> Tensor:
    """Return one step's loss."""
    model = student.clip
    indices = range(step * batch, (step + 1) * batch)
    specs = [stream.spec(i) for i in indices]
    texts = [stream.caption(i, spec) for i, spec in zip(indices, specs, strict=True)]
    prompts = [prompt for name in WEIGHTS for prompt in PROMPTS[name].values()]
    scale = model.logit_scale.exp().clamp(max=60)
    masks = torch.from_numpy(np.stack([silhouette(spec) for spec in specs]))[:, None]
    both = flip(torch.cat([render_specs(specs), masks], dim=1), step)
    # The networks compute in bfloat16, which is twice as fast; similarities need float32.
    with torch.autocast("cpu", torch.bfloat16):
        images, outline = student.embed(roughen(both[:, :3], step), both[:, 3:])
        described = encode_texts(model, tokenizer, texts)
        answers = encode_texts(model, tokenizer, prompts)  # apart, as they are much shorter
    images, described, answers = images.float(), described.float(), answers.float()
    pairs = scale * images @ described.T
    target = torch.arange(batch)
    loss = (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2
    loss = loss + OUTLINE_WEIGHT * outline
    asked = (scale * images @ answers.T).split([len(PROMPTS[name]) for name in WEIGHTS], dim=1)
    for name, logits in zip(WEIGHTS, asked, strict=True):
        loss = loss + WEIGHTS[name] * F.cross_entropy(logits, labels(specs, name))
    return loss


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Rise linearly, then fall along a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def train(options: argparse.Namespace, tokenizer: BertTokenizer) -> CLIPModel:
    """Train from the last saved state, or from nothing."""
    images = TRAINING[options.name]
    stream = Stream(images)
    model = build(tokenizer, images.seed)
    student = Student(model).train()
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=options.rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    state_file, first = options.logdir / "last.pt", 0
    if state_file.is_file():
        state: dict[str, Any] = torch.load(state_file, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        LOG.info("resuming at step %d of %s", first, state_file)
    options.logdir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate_factor(step, options.steps, options.warmup)
        loss = loss_of(student, tokenizer, stream, step, options.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % options.every == 0 or done == options.steps:
            seconds = (time.monotonic() - started) / (done - first)
            LOG.info("step %d: loss %.3f, %.2f s a step", done, loss.item(), seconds)
            model.eval()
            LOG.info("  %s", clip_accuracy(MiniatureClip(model, tokenizer), 256))
            model.requires_grad_(True).train()
            states = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**states, "step": done}, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
    return model


def save(model: CLIPModel, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write what `CLIPModel.from_pretrained` reads, weights in half precision."""
    model.eval().half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    preprocessor = {
        **{"image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_rescale": True},
        **{"do_normalize": True, "do_center_crop": False, "do_convert_rgb": True, "resample": 3},
        "size": {"height": 64, "width": 64},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    text = json.dumps(preprocessor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Train and save, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=tuple(TRAINING), help="which CLIP")
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--every", type=int, default=125, help="steps between saved states")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/miniature/tokenizer"))
    parser.add_argument("--out", type=Path, help="folder (models/miniature/NAME)")
    parser.add_argument("--logdir", type=Path, help="folder of the state (logs/miniature-NAME)")
    parser.add_argument("--measure", action="store_true", help="only measure the saved CLIP")
    options = parser.parse_args()
    options.out = options.out or Path("models/miniature") / options.name
    options.logdir = options.logdir or Path(f"logs/miniature-{options.name}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.measure:
        tokenizer = BertTokenizer.from_pretrained(options.tokenizer)
        save(train(options, tokenizer), tokenizer, options.out)
    print(json.dumps(clip_accuracy(MiniatureClip.load(options.out), 2048)))


if __name__ == "__main__":
    main()
