"""The learned words: their vectors, and how they get into a text.

The class keeps the original's name and parameters, and the state-dict name `string_to_param_dict`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.randomness import Purpose, generator
from ldm.util import UserError, at_least, one_of
from ldm.words.files import check_encoder, read_words, renamed, stored_step, write_words
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, PER_IMAGE_PLACEHOLDERS
from ldm.words.tokens import (
    INITIALIZER_MODES,
    TextEmbedder,
    check_prompts,
    initializer_ids,
    initializer_vectors,
    placeholder_id,
    vocabulary_norms,
)
from ldm.words.vectors import WordVectors, splice, stored_name

logger = logging.getLogger(__name__)

# Progressive words: one vector more after every 2000 optimizer steps (paper, section 5.1).
PROGRESSIVE_STEPS = 2000


def active_vectors(step: int, every: int = PROGRESSIVE_STEPS) -> int:
    """Return how many vectors of a progressive word are in use after `step` optimizer steps."""
    return 1 + step // every


class EmbeddingManager(nn.Module):
    """Holds the vectors of learned words and splices them into token vectors.

    An initializer word of several tokens starts the k vectors by `initializer_mode`:
    "mean": each vector is the mean of the word's token vectors. It works for every k. For k=1, the
    paper's setting, it is the only choice that uses the whole word.
    "sequence": vector i is token i; the last token is repeated. The encoder reads the word like its
    text, so training starts from its full meaning. It needs k >= tokens.
    For a word of one token both are the paper's: a copy in each vector.

    A manager whose encoder is on the meta device holds zeros. After the encoder has its weights,
    `initialize()` gives each word its first values. In any other manager they are there at once.

    Args:
        embedder: the text encoder; used, not owned, so its weights are no part of this module.
        placeholder_strings: the words to learn, ["*"] by default; [] if files bring them.
        initializer_words: the initializer word of each placeholder, in order; a missing or empty
            one starts from the original's U[0, 1) numbers.
        per_image_tokens: add one word for each training image.
        num_vectors_per_token: k, vectors of each word, at least 1.
        progressive_words: start with one vector and use one more after every `progressive_steps`.
        initializer_mode: "mean" or "sequence".
        seed: seed of the U[0, 1) numbers.
        progressive_steps: optimizer steps, at least 1; 2000 are the paper's.
        per_image_placeholders: the images' words; by default the 22 Hebrew letters.

    Raises:
        UserError: a placeholder or initializer word that the vocabulary cannot serve.
        ValueError: `num_vectors_per_token`, `initializer_mode` or `progressive_steps` out of range.
    """

    embedder: TextEmbedder
    optimizer_step: Tensor
    _token_ids: Tensor

    def __init__(
        self,
        embedder: TextEmbedder,
        placeholder_strings: Sequence[str] | None = None,
        initializer_words: Sequence[str] | None = None,
        per_image_tokens: bool = False,
        num_vectors_per_token: int = 1,
        progressive_words: bool = False,
        initializer_mode: str = "mean",
        seed: int = 23,
        progressive_steps: int = PROGRESSIVE_STEPS,
        per_image_placeholders: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        at_least(
            1, progressive_steps=progressive_steps, num_vectors_per_token=num_vectors_per_token
        )
        one_of(INITIALIZER_MODES, initializer_mode=initializer_mode)
        # Not registered as a module: the encoder would be saved and trained twice.
        self.__dict__["embedder"] = embedder
        self.progressive_words, self.progressive_steps = progressive_words, progressive_steps
        self.initializer_mode, self.seed = initializer_mode, seed
        self.num_vectors_per_token = num_vectors_per_token
        self.metadata: dict[str, str] = {}  # more facts for saved files, from the training run
        self.string_to_token_dict: dict[str, int] = {}
        self.string_to_param_dict = WordVectors()
        # What gave each word its vectors: "configuration", "file" or "checkpoint".
        self._source: dict[str, str] = {}
        self._vocabulary_norms: dict[str, float] | None = None
        self._warned: set[str] = set()  # prompts whose end is cut off
        self._step = 0
        # Devices are explicit: a model may be built under torch.device("meta"), but words are not.
        self.register_buffer("optimizer_step", torch.tensor(0, device="cpu"))
        self.register_buffer("_token_ids", torch.empty(0, device="cpu"), persistent=False)

        words = [DEFAULT_PLACEHOLDER] if placeholder_strings is None else list(placeholder_strings)
        first = list(initializer_words or [])
        if len(first) > len(words):
            raise UserError(f"{len(first)} initializer_words for {len(words)} placeholder_strings")
        of_images = per_image_placeholders or PER_IMAGE_PLACEHOLDERS
        self.per_image_placeholders = tuple(of_images) if per_image_tokens else ()
        self.initializer_words = {p: w for p, w in zip(words, first, strict=False) if w}
        for word in self.initializer_words.values():
            initializer_ids(embedder, word, num_vectors_per_token, initializer_mode)
        for placeholder in (*words, *self.per_image_placeholders):
            token_id = placeholder_id(embedder, placeholder, self.string_to_token_dict)
            zeros = torch.zeros(num_vectors_per_token, embedder.width, device=self._device())
            self._add(placeholder, token_id, zeros, "configuration")
        if embedder.device.type != "meta":
            self.initialize()

    @property
    def placeholders(self) -> list[str]:
        """The words held, in the order they came."""
        return list(self.string_to_token_dict)

    def token_id(self, placeholder: str) -> int:
        """Return the token id that stands for a word."""
        self._require(placeholder)
        return self.string_to_token_dict[placeholder]

    def word(self, placeholder: str) -> Tensor:
        """Return a word's vectors in use, [k, d]; of a progressive word the first ones only."""
        self._require(placeholder)
        vectors: Tensor = self.string_to_param_dict[placeholder]
        if not self.progressive_words:
            return vectors
        return vectors[: active_vectors(self._step, self.progressive_steps)]

    def forward(
        self, ids: Tensor, vectors: Tensor, instead: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Replace placeholders: ids [b, n] and their vectors [b, n, d] → [b, n, d].

        `instead` gives words other vectors [k, d] than their own.
        """
        if not self.string_to_token_dict:
            return vectors
        words = {p: self.word(p) for p in self.placeholders}
        words |= {p: other[: len(words[p])] for p, other in (instead or {}).items()}
        return splice(ids, vectors, self._token_ids, list(words.values()))

    def trying(self, placeholder: str, values: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a `forward` for s equal parts of a batch, each with a value of its own for a word.

        `values` [s, k, d] take the place of the word's vectors, in the order of the parts.
        """
        self._require(placeholder)

        def forward(ids: Tensor, vectors: Tensor) -> Tensor:
            parts = zip(values, ids.chunk(len(values)), vectors.chunk(len(values)), strict=True)
            return torch.cat([self(i, own, {placeholder: value}) for value, i, own in parts])

        return forward

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what training moves: each word's vectors."""
        return self.string_to_param_dict.parameters()

    def make_optimizer(self, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of the words, the first group, and of networks trained beside them.

        AdamW with torch's defaults (weight decay 0.01), as in the original.
        """
        without = [p for p in self.configured() if p not in self.initializer_words]
        if without:
            logger.warning(
                "no initializer word for %s: starting from U[0, 1), far outside the scale of the "
                "vocabulary (norm about %.0f against %.2f); give a common word instead",
                " ".join(without),
                (self.embedder.width / 3) ** 0.5,
                self._vocabulary()["vocabulary/mean"],
            )
        return torch.optim.AdamW(groups, lr=rate)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set each word that was not loaded to its initializer word, by the encoder's weights."""
        self._vocabulary_norms = None
        for index, placeholder in enumerate(self.placeholders):
            if self._source[placeholder] != "configuration":
                continue
            parameter = self.string_to_param_dict[placeholder]
            if placeholder in self.initializer_words:
                parameter.copy_(self._initializer_vectors(placeholder))
            else:
                rng = generator(self.seed, index, Purpose.INITIAL_WORD)
                parameter.copy_(torch.from_numpy(rng.random(tuple(parameter.shape), "float32")))

    def set_step(self, optimizer_step: int) -> None:
        """Set the number of optimizer steps done, which decides how many vectors are in use."""
        self._step = int(optimizer_step)
        self.optimizer_step.fill_(self._step)

    def distance_to_initializers(self) -> Tensor:
        """Sum ‖v - v_initial‖² over words with an initializer word (paper, section 5.1)."""
        words = [p for p in self.placeholders if p in self.initializer_words]
        if not words:
            raise UserError(
                "regularization to the initializer word needs one: give initializer_words"
            )
        changes = (self.string_to_param_dict[p] - self._initializer_vectors(p) for p in words)
        return torch.stack([change.square().sum() for change in changes]).sum()

    embedding_to_coarse_loss = distance_to_initializers

    @torch.no_grad()
    def norms(self) -> dict[str, float]:
        """Return the words' norms against the vocabulary's.

        Keys: `vocabulary/{mean,p05,p50,p95}`, and for each lasting word `norm/WORD` (mean over its
        vectors in use) and `norm_ratio/WORD` (over the vocabulary's mean).
        """
        report = dict(self._vocabulary())
        for placeholder in self._lasting():
            norm = self.word(placeholder).float().norm(dim=-1).mean().item()
            report[f"norm/{placeholder}"] = norm
            report[f"norm_ratio/{placeholder}"] = norm / report["vocabulary/mean"]
        return report

    def named(self, text: str) -> list[str]:
        """Return the words that have an effect in a text, by its tokens."""
        ids = set(self.embedder.word_ids(text))
        return [p for p, token in self.string_to_token_dict.items() if token in ids]

    def origins(self) -> list[str]:
        """Return a sentence for each lasting word: where its vectors start from."""
        return [f"word {p!r}: {self._origin(p)}" for p in self._lasting()]

    def _origin(self, placeholder: str) -> str:
        k = len(self.string_to_param_dict[placeholder])
        count = f"{k} vector{'s' if k > 1 else ''} of width {self.embedder.width}"
        if self._source[placeholder] != "configuration":
            return f"{count}, from a file"
        if placeholder not in self.initializer_words:
            return f"{count}, from random numbers"
        word = self.initializer_words[placeholder]
        tokens, of_mean = len(self.embedder.word_ids(word)), self.initializer_mode == "mean"
        how = "each vector starts from their mean" if of_mean else "a vector starts from each"
        start = f", which is {tokens} tokens: {how}" if tokens > 1 else ""
        return f"{count}, from the initializer word {word!r}{start}"

    def check_prompts(self, prompts: Sequence[str], files: Mapping[str, str] | None = None) -> None:
        """Warn once of each prompt whose end is cut off; UserError for one that would lose a word.

        `files` names the file of each prompt that comes from one; see
        `ldm.words.tokens.check_prompts`.
        """
        # All vectors of a progressive word count, because training will use them.
        words = {p: (self.token_id(p), len(v)) for p, v in self.string_to_param_dict.items()}
        lost = check_prompts(self.embedder, prompts, words, files)
        for message in (text for prompt, text in lost.items() if prompt not in self._warned):
            logger.warning(message)
        self._warned |= set(lost)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the words, `.pt` or `.safetensors`, in place of a file that exists.

        Per-image words serve only training and are left out. `metadata` are facts beside the
        manager's own and `self.metadata`.
        """
        kept = self._lasting()
        facts = {
            "placeholders": json.dumps(kept, ensure_ascii=False),
            "first_words": json.dumps(self.initializer_words, ensure_ascii=False),
            "encoder_family": self.embedder.family,
            "encoder_width": str(self.embedder.width),
            "step": str(self._step),
            "seed": str(self.seed),
            "progressive_words": str(self.progressive_words).lower(),
            "progressive_steps": str(self.progressive_steps),
        }
        words = {p: self.string_to_param_dict[p] for p in kept}
        ids = {p: self.token_id(p) for p in kept}
        facts |= {**self.metadata, **(metadata or {})}
        widths = self.embedder.widths or (self.embedder.width,)
        parts = {p: vectors.split(widths, dim=1) for p, vectors in words.items()}
        first, *second = ({p: both[i] for p, both in parts.items()} for i in range(len(widths)))
        write_words(path, first, ids, facts, *second)

    def load(self, path: str | Path, rename: Mapping[str, str] | None = None) -> list[str]:
        """Take words from a file; several calls gather the words of several files.

        The first call replaces the words of the configuration, as the original did. Otherwise the
        placeholder of a word that no file holds would act as its initializer word. The file decides
        the number of vectors. A progressive word continues from the file's step.

        `read_words` reads the file; `rename` maps stored placeholders to those to use. Returns the
        placeholders it brought. Raises UserError for an unreadable file, vectors for another text
        encoder, or a placeholder that cannot be one or is taken already.
        """
        file = read_words(path)
        if self.embedder.widths is not None and file.second:
            both = {p: torch.cat([v, file.second[p]], dim=1) for p, v in file.words.items()}
            file = replace(file, words=both)
        check_encoder(file, self.embedder.family, self.embedder.width, path)
        words = renamed(file, rename or {}, path).words
        step = stored_step(file)
        if file.metadata.get("progressive_words") == "true" and not self.progressive_words:
            # Vectors that were not in use yet would add copies of the initializer word.
            said = file.metadata.get("progressive_steps", "")
            every = int(said) if said.isdecimal() else 0
            active = active_vectors(step, every or PROGRESSIVE_STEPS)
            words = {p: vectors[:active] for p, vectors in words.items()}
        if loaded := [p for p in words if self._source.get(p) == "file"]:
            raise UserError(
                f"{str(path)!r}: word {loaded[0]!r} is loaded already: rename one of the two"
            )
        configured = self.configured()
        leaving = [p for p in self.placeholders if p in configured or p in words]
        ids = {p: i for p, i in self.string_to_token_dict.items() if p not in leaving}
        staying = (*ids, *words)
        for placeholder in words:
            ids[placeholder] = placeholder_id(self.embedder, placeholder, ids)
        self._remove(*leaving)
        self.initializer_words = {p: w for p, w in self.initializer_words.items() if p in staying}
        for placeholder, vectors in words.items():
            self._add(placeholder, ids[placeholder], vectors.to(self._device()), "file")
        if self.progressive_words:
            self.set_step(step)
        return list(words)

    def clear(self) -> None:
        """Forget every word, so that the next `load` starts afresh."""
        self._remove(*self.placeholders)
        self.initializer_words = {}

    def _lasting(self) -> list[str]:
        return [p for p in self.placeholders if p not in self.per_image_placeholders]

    def configured(self) -> list[str]:
        """Return the lasting words that no file or checkpoint brought."""
        return [p for p in self._lasting() if self._source[p] == "configuration"]

    def _add(self, placeholder: str, token_id: int, vectors: Tensor, source: str) -> None:
        self.string_to_param_dict[placeholder] = nn.Parameter(vectors)
        self.string_to_token_dict[placeholder], self._source[placeholder] = token_id, source
        self._refresh()

    def _remove(self, *placeholders: str) -> None:
        for placeholder in placeholders:
            del self.string_to_param_dict[placeholder]
            del self.string_to_token_dict[placeholder]
            del self._source[placeholder]
        self._refresh()

    def _refresh(self) -> None:
        ids = list(self.string_to_token_dict.values())
        self._token_ids = torch.tensor(ids, dtype=torch.long, device=self._device())
        self.embedder.placeholders = dict(self.string_to_token_dict)

    def _device(self) -> torch.device:
        device = self.embedder.device
        return torch.device("cpu") if device.type == "meta" else device

    def _require(self, placeholder: str) -> None:
        if placeholder not in self.string_to_token_dict:
            raise UserError(f"no word {placeholder!r} is loaded; there are {self.placeholders}")

    def _initializer_vectors(self, placeholder: str) -> Tensor:
        """Return the first values [k, d] of a word with an initializer word; no gradient."""
        parameter: Tensor = self.string_to_param_dict[placeholder]
        word, k = self.initializer_words[placeholder], len(parameter)
        return initializer_vectors(self.embedder, word, k, self.initializer_mode).to(parameter)

    def _vocabulary(self) -> dict[str, float]:
        if self._vocabulary_norms is None:
            self._vocabulary_norms = vocabulary_norms(self.embedder.vocab_table)
        return self._vocabulary_norms

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        start = f"{prefix}string_to_param_dict."
        held = [p for p in self.placeholders if start + stored_name(p) in state_dict]
        self._source |= dict.fromkeys(held, "checkpoint")
        if f"{prefix}optimizer_step" in state_dict:
            self._step = int(state_dict[f"{prefix}optimizer_step"])
