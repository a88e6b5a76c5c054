"""Words give the same text conditioning here and in diffusers, in both directions."""

import json
from copy import deepcopy

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPTokenizer

from ldm.inference import load_model
from ldm.modules.encoders.modules import BERTEmbedder, FrozenCLIPEmbedder
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager
from ldm.words.prompts import count_chunks, encode_weighted
from tests.checkpoint.pipelines import PIPELINES
from tests.checkpoint.test_folders import text_states
from tests.modules.vocabularies import write_bert, write_clip

# "{}" is the word: first, middle, last, twice, glued to signs.
PROMPTS = (
    "{} on the moon",
    "a photo of {} on the moon",
    "a photo of {}",
    "{} and {}",
    "a photo of {}, cat",
    "{},",
    ",{}, cat",
    "({})",
    "{}'s cat",
    "{}-themed cat",
)


class Pipeline(TextualInversionLoaderMixin):
    """What diffusers needs of a pipeline in order to load a word."""

    hf_device_map = None

    def __init__(self, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.components = {"tokenizer": tokenizer, "text_encoder": text_encoder}

    @torch.no_grad()
    def encode(self, prompt):
        ids = self.tokenizer(
            self.maybe_convert_prompt(prompt, self.tokenizer),
            padding="max_length",
            truncation=True,
            max_length=77,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids).last_hidden_state


@pytest.fixture
def folder(tmp_path):
    """The folder of a vocabulary that joins the signs of "*,", as CLIP's does."""
    path = tmp_path / "clip"
    write_clip(path)
    pieces = json.loads((path / "vocab.json").read_text())
    special = [pieces.pop(name) for name in ("<|startoftext|>", "<|endoftext|>")]
    for name in ("*,</w>", ",*", "<|startoftext|>", "<|endoftext|>"):
        pieces[name] = len(pieces)
    assert special == [len(pieces) - 4, len(pieces) - 3]
    (path / "vocab.json").write_text(json.dumps(pieces))
    with (path / "merges.txt").open("a") as merges:
        merges.write("* ,</w>\n, *\n")
    return str(path)


@pytest.fixture
def clip(folder):
    torch.manual_seed(0)
    return FrozenCLIPEmbedder(width=24, tokenizer=folder)


def pipeline(clip, folder):
    """The same weights as diffusers sees them; loading a word there changes a copy only."""
    return Pipeline(CLIPTokenizer.from_pretrained(folder), deepcopy(clip.transformer))


@pytest.mark.parametrize("vectors", [1, 4])
def test_a_word_of_ours_in_diffusers(clip, folder, tmp_path, vectors):
    manager = EmbeddingManager(clip, ["*"], ["cat"], num_vectors_per_token=vectors)
    with torch.no_grad():
        manager.string_to_param_dict["*"].normal_()
    manager.save(tmp_path / "word.safetensors")
    theirs = pipeline(clip, folder)
    theirs.load_textual_inversion(str(tmp_path / "word.safetensors"), token="<word>")
    for prompt in PROMPTS:
        ours = clip.encode(prompt.format(*"**"), embedding_manager=manager)
        assert_close(ours, theirs.encode(prompt.format("<word>", "<word>")), msg=prompt)


@pytest.mark.parametrize("vectors", [1, 4])
def test_a_word_of_diffusers_here(clip, folder, tmp_path, vectors):
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<word>": torch.randn(vectors, 24)}, path, {"format": "pt"})
    theirs = pipeline(clip, folder)
    theirs.load_textual_inversion(str(path))
    manager = EmbeddingManager(clip, [])
    manager.load(path, rename={"<word>": "*"})
    for prompt in PROMPTS:
        ours = clip.encode(prompt.format(*"**"), embedding_manager=manager)
        assert_close(ours, theirs.encode(prompt.format("<word>", "<word>")), msg=prompt)


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def base(request, tmp_path_factory):
    """A family, its pipeline and the same base here."""
    folder = tmp_path_factory.mktemp(request.param)
    made = PIPELINES[request.param](folder)
    made.save_pretrained(folder / "base")
    return request.param, made, load_model(folder / "base")


def assert_equal_conditioning(family, theirs, model, manager):
    """Compare the text's vectors, and of SDXL the pooled text too, at every place of the word."""
    model.embedding_manager = manager
    for prompt in PROMPTS:
        spelled = prompt.format("<word>", "<word>")
        if family != "sdxl":  # its pipeline spells the word itself
            spelled = theirs.maybe_convert_prompt(spelled, theirs.tokenizer)
        states, added = text_states(theirs, family, spelled)
        condition = model.get_learned_conditioning([prompt.format(*"**")])
        ours = model.model.conditions(condition)
        assert_close(ours["c_crossattn"][0], states, msg=prompt)
        if added is not None:
            pooled = added["text_embeds"]
            assert_close(ours["c_adm"][:, : pooled.shape[1]], pooled, msg=prompt)


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 4])
def test_a_word_of_later_families_in_diffusers(base, tmp_path, vectors):
    family, pipe, model = base
    theirs = deepcopy(pipe)
    manager = EmbeddingManager(
        model.cond_stage_model, ["*"], ["cat"], num_vectors_per_token=vectors
    )
    manager.word("*").normal_()
    manager.save(tmp_path / "word.safetensors")
    load_into(theirs, family, tmp_path / "word.safetensors")
    assert_equal_conditioning(family, theirs, model, manager)


def load_into(pipe, family, path):
    """Load a file of ours into a pipeline, as `<word>`."""
    if family != "sdxl":
        pipe.load_textual_inversion(str(path), token="<word>")
        return
    both = load_file(path)  # as diffusers documents it for a file of both encoders
    for key, which in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            both[key],
            token="<word>",
            text_encoder=getattr(pipe, f"text_encoder{which}"),
            tokenizer=getattr(pipe, f"tokenizer{which}"),
        )


WEIGHTED = f"(cat:1.4) {'cat ' * 79}a photo of (cat:1.3), [the moon], ((*)) on (the (cat:0.5):1.2)"
# Its texts and weights by the rules of AUTOMATIC1111.
PARTS = (
    *(("cat", 1.4), *79 * [("cat", 1.0)], ("a photo of", 1.0), ("cat", 1.3), (",", 1.0)),
    *(("the moon", 1 / 1.1), (",", 1.0), ("<word> <word>_1", 1.1 * 1.1), ("on", 1.0)),
    *(("the", 1.2), ("cat", 0.5 * 1.2)),
)


def weighted_states(tokenizer, encoder, xl):
    """Encode two chunks of 75 tokens of `PARTS` by the definition; return texts and pooled text."""
    tokens = [
        (token, weight)
        for text, weight in PARTS
        for token in tokenizer(text, add_special_tokens=False).input_ids
    ]
    assert len(tokens) > 90
    texts, pooled = [], []
    for chunk in (tokens[:75], tokens[75:]):
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
        weights = [1.0, *(weight for _, weight in chunk)]
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        factors = torch.tensor(weights + [1.0] * (77 - len(weights)))[None, :, None]
        found = encoder(torch.tensor([ids]), output_hidden_states=True)
        plain = found.hidden_states[-2] if xl else found[0]
        texts.append(plain * factors * plain.mean() / (plain * factors).mean())
        pooled.append(found[0])
    return torch.cat(texts, dim=1), pooled[0]


@torch.no_grad()
def test_weights_and_chunks_of_later_families(base, tmp_path):
    """A weighted prompt of two chunks, each encoder on its own; the pooled text is the first's."""
    family, pipe, model = base
    theirs = deepcopy(pipe)
    manager = EmbeddingManager(model.cond_stage_model, ["*"], ["cat"], num_vectors_per_token=2)
    manager.word("*").normal_()
    manager.save(tmp_path / "word.safetensors")
    load_into(theirs, family, tmp_path / "word.safetensors")
    model.embedding_manager = manager
    count = count_chunks(model, [WEIGHTED])
    assert count == 2
    ours = model.model.conditions(encode_weighted(model, ["cat", WEIGHTED], count))
    (text,) = ours["c_crossattn"]
    wanted, pooled = weighted_states(theirs.tokenizer, theirs.text_encoder, family == "sdxl")
    if family == "sdxl":
        second, pooled = weighted_states(theirs.tokenizer_2, theirs.text_encoder_2, True)
        wanted = torch.cat([wanted, second], dim=-1)
        assert_close(ours["c_adm"][1:, : pooled.shape[1]], pooled)
    assert_close(text[1:], wanted)


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 4])
def test_a_word_of_diffusers_in_later_families(base, tmp_path, vectors):
    """The files that diffusers' training scripts write: of SDXL two."""
    family, pipe, model = base
    theirs = deepcopy(pipe)
    for which in ("", "_2") if family == "sdxl" else ("",):
        encoder = getattr(theirs, f"text_encoder{which}")
        word = {"<word>": torch.randn(vectors, encoder.config.hidden_size)}
        save_file(word, tmp_path / f"learned_embeds{which}.safetensors", {"format": "pt"})
        tokenizer = getattr(theirs, f"tokenizer{which}")
        theirs.load_textual_inversion(word, text_encoder=encoder, tokenizer=tokenizer)
    manager = EmbeddingManager(model.cond_stage_model, [])
    manager.load(tmp_path / "learned_embeds.safetensors", rename={"<word>": "*"})
    assert_equal_conditioning(family, theirs, model, manager)


@pytest.mark.parametrize("prompt", ["a photo of *, cat", "*,", ",*,"])
def test_a_word_beside_signs_is_found(clip, prompt):
    star = clip.word_ids("*")[0]
    assert star not in clip.word_ids(prompt), "the vocabulary should join these signs"
    manager = EmbeddingManager(clip, ["*"], ["cat"])
    manager.check_prompts([prompt])
    assert clip.word_ids(prompt).count(star) == 1
    assert clip.tokenize(prompt)[0].tolist().count(star) == 1
    assert clip.count_tokens(prompt) == len(clip.word_ids(prompt)) + 2


@pytest.mark.parametrize(
    ("names", "prompt", "counts"),
    [
        (("toy", "cat-toy"), "a cat-toy, toy", (1, 1)),
        (("cat", "<cat>"), "a <cat> (cat) <cat>", (1, 2)),
        (("*", "**"), "* ** ***", (2, 2)),
    ],
)
def test_a_word_whose_name_is_a_part_of_anothers(clip, names, prompt, counts):
    manager = EmbeddingManager(clip, list(names), ["cat", "cat"])
    manager.check_prompts([prompt])
    ids = clip.word_ids(prompt)
    assert tuple(ids.count(manager.token_id(name)) for name in names) == counts


@pytest.mark.parametrize("name", ["[PAD]", "[SEP]", "[CLS]", "[MASK]"])
def test_special_tokens_of_bert_are_no_placeholders(tmp_path, name):
    bert = BERTEmbedder(24, 1, 20, 9, tokenizer=write_bert(tmp_path / "bert"), heads=3, dim_head=4)
    with pytest.raises(UserError, match="is a special token"):
        EmbeddingManager(bert, [name])


@pytest.mark.parametrize("name", ["<|startoftext|>", "<|endoftext|>"])
def test_special_tokens_of_clip_are_no_placeholders(clip, name):
    with pytest.raises(UserError, match="is a special token"):
        EmbeddingManager(clip, [name])
