"""Embeddings of images and texts by any CLIP of `transformers`: OpenAI's ViT-B/32 or a small one.

The folder decides everything: its tokenizer (byte pairs or word pieces) reads the texts, and its
`preprocessor_config.json` says how an image becomes pixels. Images are prepared by the processor
of `transformers` on the CPU. That takes 3 ms for an image, far less than to generate it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.util import UserError, first_line, quote

if TYPE_CHECKING:
    from transformers import CLIPModel

log = logging.getLogger(__name__)

# The folder beside a model's weights with the small CLIP that scores its images.
SCORER = "scorer"
# Images embedded at a time.
BATCH = {"cpu": 16, "cuda": 256, "mps": 64}

T = TypeVar("T")
Model = TypeVar("Model", bound=nn.Module)


def image_size(model: CLIPModel) -> int:
    """Return the side of the images that a model reads, in pixels."""
    size: int = getattr(model.config.vision_config, "image_size")  # noqa: B009 - mypy sees a dict
    return size


def batches(items: Sequence[T], device: torch.device) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces that a device embeds at a time."""
    size = BATCH.get(device.type, BATCH["cpu"])
    return (items[start : start + size] for start in range(0, len(items), size))


def load_pretrained(kind: Any, name: str | Path, device: str, **options: Any) -> Any:
    """Load a `transformers` model of a class in float32, frozen, in evaluation mode.

    `name` is a folder, or a model's name on the Hugging Face hub.

    Raises:
        OSError: as `transformers` does, where the files are missing and cannot be fetched.
        UserError: the weights are damaged, or lack some that the model needs.
    """
    from safetensors import SafetensorError

    try:
        model, found = kind.from_pretrained(
            str(name), dtype=torch.float32, output_loading_info=True, **options
        )
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"the weights of {name} cannot be read: {first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would score with random numbers in their place
        raise UserError(f"the weights of {name} lack {len(missing)} entries, {missing[0]} first")
    return frozen(model.to(device))


def frozen(model: Model) -> Model:
    """Return a model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def processor(side: int, crop: int, **options: Any) -> Any:
    """Return a processor that prepares images as OpenAI's CLIP does, for another size.

    The shorter side gets `side` pixels; a square of `crop` pixels is cut out of the middle. The
    options are those of `transformers`' CLIPImageProcessor, such as `image_mean`.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size, square = {"shortest_edge": side}, {"height": crop, "width": crop}
    return CLIPImageProcessorPil(size=size, crop_size=square, **options)


class ImageEmbedder:
    """Embeds images by a model of `transformers`.

    Attributes:
        model_type: what `config.json` calls its kind of model.
        published: the one to use, on the Hugging Face Hub.
        described: the kind in words.
        otherwise: what to do without it.
        model, prepare: the model and its image processor.
    """

    model_type: ClassVar[str]
    published: ClassVar[str]
    described: ClassVar[str]
    otherwise: ClassVar[str]
    model: nn.Module
    prepare: Any

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = False) -> Self:
        """Load from a folder or by a name on the Hub.

        Arguments and errors as `load_pretrained`'s; `local` keeps to what is on this machine.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        weight: Tensor = next(self.model.parameters())
        return weight.device

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images of any size: unit vectors [n, d] on the CPU."""
        return torch.cat([self.embed(self.pixels(part)) for part in batches(images, self.device)])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize, crop and normalise images: float32 [n, 3, side, side] on the CPU."""
        rgb = [image.convert("RGB") for image in images]
        prepared: Tensor = self.prepare(images=rgb, return_tensors="pt")["pixel_values"]
        return prepared

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels [n, 3, side, side]: unit vectors [n, d] on the CPU."""
        raise NotImplementedError


class ClipExtractor(ImageEmbedder):
    """Embeds images and texts by any CLIP of `transformers`; build it with `ClipExtractor.load`.

    `prepare` is an image processor of `transformers`; by default OpenAI's at the model's size.
    Raises UserError for a tokenizer that is not the model's: `transformers` makes an empty one
    where its files are missing.
    """

    model_type = "clip"
    published = "openai/clip-vit-base-patch32"  # the paper's
    described = "a CLIP"
    otherwise = f"in the miniature score with --extractor models/miniature/{SCORER}"
    model: CLIPModel

    def __init__(self, model: CLIPModel, tokenizer: Any, prepare: Any = None) -> None:
        wanted = getattr(model.config.text_config, "vocab_size")  # noqa: B009 - mypy sees a dict
        if len(tokenizer) != wanted:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} knows {len(tokenizer)} tokens and the "
                f"model {wanted}: put the model's own tokenizer files beside its weights"
            )
        self.model = frozen(model)
        self.tokenizer = tokenizer
        self._warned: set[str] = set()
        self.prepare = prepare or processor(image_size(model), image_size(model))

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = False) -> Self:
        from transformers import AutoTokenizer, CLIPModel

        model = load_pretrained(CLIPModel, name, device, local_files_only=local)
        tokenizer: Any = AutoTokenizer
        return cls(
            model,
            tokenizer.from_pretrained(str(name), local_files_only=local),
            _find_processor(name, local),
        )

    def embed(self, pixels: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1).cpu()

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: unit vectors [n, d] on the CPU.

        A text is cut at the model's length (77 tokens); a warning says what is lost.
        """
        self._warn_of_cut_texts(texts)
        parts = batches(texts, self.device)
        found = [encode_texts(self.model, self.tokenizer, part).cpu() for part in parts]
        return torch.cat(found)

    def _warn_of_cut_texts(self, texts: Sequence[str]) -> None:
        """Warn once of each text whose end the model does not read."""
        longest = text_length(self.model)
        for text in dict.fromkeys(texts):
            ids = self.tokenizer(text, verbose=False)["input_ids"]
            if len(ids) <= longest or text in self._warned:
                continue
            self._warned.add(text)
            end = self.tokenizer.decode(ids[longest - 1 : -1])  # the last id is the end's
            log.warning(
                f"prompt {quote(text)} has {len(ids)} tokens and CLIP reads {longest}: its end "
                f"does not count in the score: {quote(end, 300)}"
            )


def text_length(model: CLIPModel) -> int:
    """Return the number of tokens that a model reads, special ones included."""
    length: int = getattr(model.config.text_config, "max_position_embeddings")  # noqa: B009
    return length


def encode_texts(model: CLIPModel, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Embed texts, cut at the model's length: unit vectors [n, d], differentiable."""
    tokens = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=text_length(model),
        return_tensors="pt",
    ).to(model.text_projection.weight.device)
    pooled = model.text_model(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    ).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def _find_processor(name: str | Path, local: bool) -> Any:
    """Return a model's own image processor; None where it has none."""
    from transformers.utils.hub import cached_file

    file = "preprocessor_config.json"
    found = cached_file(
        str(name), file, local_files_only=local, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if found is None:
        return None
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    kind: Any = CLIPImageProcessorPil
    return kind.from_pretrained(str(Path(found).parent), local_files_only=True)
