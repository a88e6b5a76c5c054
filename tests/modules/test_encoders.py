"""Text encoders against diffusers and transformers; vocabularies found, cut, and missed clearly."""

import errno
import time

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ldm.modules.encoders.modules import (
    BERTEmbedder,
    ClassEmbedder,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
    SpatialRescaler,
)
from ldm.modules.encoders.vocabulary import load_tokenizer
from ldm.util import UserError
from tests.modules.vocabularies import BERT_WORDS, write_bert, write_clip

PROMPTS = ["a photo of the cat", ""]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    folder = write_bert(tmp_path_factory.mktemp("bert"))
    return BERTEmbedder(
        24, 2, vocab_size=20, max_seq_len=9, tokenizer=folder, heads=3, dim_head=4
    ).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    return FrozenCLIPEmbedder(width=24, tokenizer=write_clip(tmp_path_factory.mktemp("clip")))


def to_diffusers_bert(state):
    """Map `TransformerWrapper`'s names to `LDMBertModel`'s."""
    names = {
        "token_emb.": "model.embed_tokens.",
        "pos_emb.emb.": "model.embed_positions.",
        "norm.": "model.layer_norm.",
        "to_logits.": "to_logits.",
    }
    attention = {
        "0.": "self_attn_layer_norm.",
        "1.to_q.": "self_attn.q_proj.",
        "1.to_k.": "self_attn.k_proj.",
        "1.to_v.": "self_attn.v_proj.",
        "1.to_out.": "self_attn.out_proj.",
    }
    perceptron = {"0.": "final_layer_norm.", "1.net.0.0.": "fc1.", "1.net.2.": "fc2."}
    for layer in range(2 * 50):
        for ours, theirs in (perceptron if layer % 2 else attention).items():
            names[f"attn_layers.layers.{layer}.{ours}"] = f"model.layers.{layer // 2}.{theirs}"
    mapped = {}
    for name, value in state.items():
        prefix = next(p for p in names if name.startswith(p))
        mapped[names[prefix] + name.removeprefix(prefix)] = value
    return mapped


def test_bert_equals_diffusers(bert):
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    config = LDMBertConfig(
        vocab_size=20,
        max_position_embeddings=9,
        encoder_layers=2,
        encoder_ffn_dim=96,
        encoder_attention_heads=3,
        head_dim=4,
        d_model=24,
    )
    reference = LDMBertModel(config).eval()
    reference.load_state_dict(to_diffusers_bert(bert.transformer.state_dict()), strict=True)
    ids = bert.tokenize(PROMPTS)
    with torch.no_grad():
        assert_close(bert.encode(PROMPTS), reference(ids)[0])
        # An embedding manager's vectors are those the transformer reads, before positions.
        doubled = bert.encode(PROMPTS, embedding_manager=lambda _, vectors: 2 * vectors)
        reference.model.embed_tokens.weight.mul_(2)
        assert_close(doubled, reference(ids)[0])


def test_clip_equals_transformers(clip):
    from transformers import CLIPTextModel

    reference = CLIPTextModel(clip.transformer.config).eval()
    reference.load_state_dict(clip.transformer.state_dict())
    ids = clip.tokenize(PROMPTS)
    with torch.no_grad():
        expected = reference(input_ids=ids).last_hidden_state
        assert_close(clip.encode(PROMPTS), expected)
        assert_close(clip.encode(PROMPTS, embedding_manager=lambda _, v: v), expected)
        seen = []
        doubled = clip.encode(PROMPTS, lambda i, v: seen.append(i) or 2 * v)
        assert_close(seen, [ids])
        reference.get_input_embeddings().weight.mul_(2)
        assert_close(doubled, reference(input_ids=ids).last_hidden_state)
        # The manager does not outlive its call.
        assert_close(clip.encode(PROMPTS), expected)


def test_gradients_reach_a_word_through_the_frozen_clip(clip):
    word = torch.ones(24, requires_grad=True)
    clip.encode(["cat"], lambda _, vectors: vectors + word).sum().backward()
    assert word.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())


def test_bert_tokens(bert):
    cat, unknown = BERT_WORDS.index("cat"), BERT_WORDS.index("[UNK]")
    ids = bert.tokenize(["the CAT", "cat " * 20])
    assert ids.tolist()[0] == [2, 10, cat, 3, 0, 0, 0, 0, 0]
    assert ids.tolist()[1] == [2, *[cat] * 7, 3]
    assert bert.count_tokens("cat " * 20) == 22
    assert bert.word_ids("polarbear") == [12, 13]
    assert bert.word_ids("zebra") == [unknown] == [bert.unknown_id]
    assert_close(bert.tokenize("cat"), bert.tokenize(["cat"]))
    assert_close(bert.vocab_table, bert.transformer.token_emb.weight)
    assert (bert.family, bert.width, bert.max_length) == ("ldm-bert", 24, 9)


def test_the_originals_name_of_berts_tokenizer(bert):
    assert_close(bert.tknz_fn("a cat"), bert.tokenize("a cat"))
    assert bert.tknz_fn("a cat").shape == (1, bert.max_length)


def test_clip_tokens(clip):
    ids = clip.tokenize(["cat", "cat " * 100])
    assert ids.shape == (2, 77)
    cat, start, end = clip.word_ids("cat")[0], int(ids[0, 0]), int(ids[0, 2])
    assert ids[0].tolist() == [start, cat, *[end] * 75]  # CLIP pads with its end
    assert ids[1].tolist() == [start, *[cat] * 75, end]
    assert clip.count_tokens("cat " * 100) == 102
    assert len(clip.word_ids("moon")) == 4
    assert clip.unknown_id is None
    assert clip.vocab_table.shape == (49408, 24)


def test_ids_stand_in_for_texts():
    encoder = BERTEmbedder(16, 1, vocab_size=30, max_seq_len=6, use_tokenizer=False)
    ids = torch.randint(30, (2, 6))
    assert_close(encoder.encode(ids), encoder.transformer(ids, return_embeddings=True))
    with pytest.raises(ValueError, match="use_tokenizer"):
        encoder.encode(["cat"])


def missing(kind, source):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_tokenizer(kind, str(source))
    assert "\n" not in str(caught.value)
    assert "scripts/download_models.sh" in str(caught.value)
    assert time.monotonic() - start < 2
    return str(caught.value)


@pytest.mark.parametrize("name", ["bert-base-uncased", "owner/no-such-vocabulary"])
def test_a_vocabulary_missing_offline_is_said_at_once(name, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert repr(name) in missing("BertTokenizerFast", name)


def test_folders_without_vocabulary_are_refused(tmp_path):
    """`transformers` itself would build a tokeniser without words from them."""
    assert "does not exist" in missing("BertTokenizerFast", tmp_path / "absent")
    assert "vocab.txt" in missing("BertTokenizerFast", tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    assert "merges.txt" in missing("CLIPTokenizerFast", tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "vocab.json").write_text("no json")
    assert "cannot read" in missing("CLIPTokenizerFast", tmp_path)


def test_the_hub_is_asked_once_and_only_for_what_is_not_here(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns, local_files_only):
        asked.append(local_files_only)
        assert name == "owner/vocabulary"
        assert "vocab.txt" in allow_patterns
        if not local_files_only:
            write_bert(tmp_path)
        elif not (tmp_path / "vocab.txt").exists():
            raise FileNotFoundError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for _ in range(2):
        tokenizer = load_tokenizer("BertTokenizerFast", "owner/vocabulary")
        assert tokenizer("cat", add_special_tokens=False)["input_ids"] == [BERT_WORDS.index("cat")]
    assert asked == [True, False, True]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of the cache is full"),
        (RuntimeError("Data processing error: connection refused"), "connection refused"),
    ],
)
def test_what_fails_on_the_way_from_the_hub_is_one_line(monkeypatch, error, said):
    import huggingface_hub

    def snapshot_download(name, allow_patterns, local_files_only):
        raise FileNotFoundError("not in the cache") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=said):
        load_tokenizer("BertTokenizerFast", "owner/vocabulary")


def test_a_vocabulary_must_fit_the_model(tmp_path):
    with pytest.raises(UserError, match=r"16 entries, more than vocab_size 5"):
        BERTEmbedder(8, 1, vocab_size=5, tokenizer=write_bert(tmp_path))


def test_class_embedder():
    embedder = ClassEmbedder(5, n_classes=4, key="class_label")
    labels = torch.tensor([3, 0])
    expected = embedder.embedding.weight[labels][:, None]
    assert_close(embedder.encode(labels), expected)
    assert_close(embedder.encode({"class_label": labels}), expected)


def test_spatial_rescaler():
    x = torch.randn(2, 4, 16, 16)
    plain = SpatialRescaler(n_stages=2, method="area")
    assert_close(plain.encode(x), F.avg_pool2d(x, 4))
    mapped = SpatialRescaler(n_stages=1, in_channels=4, out_channels=3)
    half = F.interpolate(x, scale_factor=0.5, mode="bilinear")
    assert_close(mapped(x), F.conv2d(half, mapped.channel_mapper.weight))
    with pytest.raises(ValueError, match="method must be one of"):
        SpatialRescaler(method="lanczos")


@pytest.mark.parametrize("nested", [True, False])
def test_clip_takes_the_names_of_old_and_new_transformers(clip, tmp_path, nested):
    level = "transformer.text_model." if nested else "transformer."
    file = {
        level + name.removeprefix("transformer.").removeprefix("text_model."): torch.rand_like(
            value
        )
        for name, value in clip.state_dict().items()
        if value.is_floating_point()
    }
    other = FrozenCLIPEmbedder(width=24, tokenizer=write_clip(tmp_path))
    report = other.load_state_dict(file, strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    want = file[f"{level}encoder.layers.3.mlp.fc1.weight"]
    got = {n.replace("text_model.", ""): v for n, v in other.state_dict().items()}
    assert_close(got["transformer.encoder.layers.3.mlp.fc1.weight"], want, rtol=0, atol=0)


@pytest.mark.parametrize("which", ["bert", "clip"])
def test_the_end_of_a_text_from_a_token_on(which, request):
    encoder = request.getfixturevalue(which)
    text = "a photo  of the cat"
    ids = encoder.word_ids(text)
    assert encoder.text_from(text, 0) == text
    assert encoder.word_ids(encoder.text_from(text, 3)) == ids[3:]


SIZES = {"width": 24, "layers": 3, "heads": 2, "vocab_size": 70}


@pytest.mark.parametrize(("layer", "place"), [("last", -1), ("penultimate", -2)])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_takes_its_sizes_from_arguments(tmp_path, layer, place, act):
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    folder = write_clip(tmp_path)
    ours = FrozenCLIPEmbedder(tokenizer=folder, **SIZES, hidden_act=act, layer=layer)
    theirs = CLIPTextModel(ours.transformer.config).eval()
    config = theirs.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 2)
    assert (config.vocab_size, config.hidden_act) == (70, act)
    theirs.load_state_dict(ours.transformer.state_dict())
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    with torch.no_grad():
        states = theirs(ours.tokenize(PROMPTS), output_hidden_states=True).hidden_states
        assert_close(ours.encode(PROMPTS), norm(states[place]))
        assert_close(ours.encode(PROMPTS, clip_skip=2), norm(states[place - 1]))
        bare = FrozenCLIPEmbedder(tokenizer=folder, **SIZES, layer=layer, final_norm=False)
        bare.transformer = ours.transformer
        assert_close(bare.encode(PROMPTS), states[place])
    with pytest.raises(UserError, match=r"clip_skip must lie in 1\.\.[23] for this model, got 9"):
        ours.encode(PROMPTS, clip_skip=9)
    with pytest.raises(ValueError, match="layer must be one of last, penultimate, got 'first'"):
        FrozenCLIPEmbedder(tokenizer=folder, layer="first")


def from_open_clip(state, projection=False):
    """Return OpenCLIP's text weights under the names of `CLIPTextModelWithProjection`."""
    names = (
        ("transformer.resblocks.", "text_model.encoder.layers."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
        (".attn.out_proj.", ".self_attn.out_proj."),
        ("token_embedding.", "text_model.embeddings.token_embedding."),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.", "text_model.final_layer_norm."),
    )
    found = {}
    for name, value in state.items():
        if name == "logit_scale":
            continue
        if name == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
            continue
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        if ".attn.in_proj_" in name:
            for kind, part in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".attn.in_proj_", f".self_attn.{kind}_proj.")] = part
        else:
            found[name] = value
    return found


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory):
    """OpenCLIP's text encoder, and `transformers`' with the same weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    folder = write_clip(tmp_path_factory.mktemp("open_clip"))
    ours = FrozenOpenCLIPEmbedder(tokenizer=folder, **SIZES)
    for weight in ours.parameters():
        weight.add_(0.1 * torch.randn(weight.shape))
    config = CLIPTextConfig(
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=70,
        hidden_act="gelu",
        projection_dim=24,
        eos_token_id=ours.frame[1],
    )
    theirs = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    theirs.load_state_dict(from_open_clip(ours.model.state_dict()), strict=True)
    return ours, theirs


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_open_clip_equals_transformers(open_clip):
    ours, theirs = open_clip
    ids = ours.tokenize(PROMPTS)
    start, end, filling = ours.frame
    assert ids[1].tolist() == [start, end] + [0] * 75
    assert filling == 0
    assert {0, start, end} <= ours.special_ids
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
        norm = theirs.text_model.final_layer_norm
        assert relative(ours.encode(PROMPTS), norm(expected.hidden_states[-2])) < 1e-5
        assert relative(ours.encode(PROMPTS, clip_skip=2), norm(expected.hidden_states[-3])) < 1e-5
        ends = (ids == end).int().argmax(-1)
        pooled = ours.pooled(ours.states(ids, None, 3)[-1], ends)
        assert relative(pooled, expected.text_embeds) < 1e-5


def test_a_word_of_open_clip_gets_the_gradient_of_transformers(open_clip):
    """The word's token is in the vocabulary there; here the manager puts it in."""
    ours, theirs = open_clip
    cat = ours.word_ids("cat")[0]
    word = torch.randn(24, requires_grad=True)
    spliced = ours.encode(
        ["a cat on the moon"], lambda ids, v: torch.where((ids == cat)[..., None], word, v)
    )
    target = torch.randn(spliced.shape)
    (spliced * target).sum().backward()
    table = theirs.get_input_embeddings().weight
    before = table.data.clone()
    table.data[cat] = word.data
    table.requires_grad_(True)
    states = theirs(ours.tokenize(["a cat on the moon"]), output_hidden_states=True).hidden_states
    (theirs.text_model.final_layer_norm(states[-2]) * target).sum().backward()
    assert relative(word.grad, table.grad[cat]) < 1e-5
    table.data, table.grad = before, None
    table.requires_grad_(False)


def test_open_clip_takes_the_published_settings(tmp_path):
    """`freeze`, `layer` and `arch` as the YAML files of Stable Diffusion 2 have them."""
    folder = write_clip(tmp_path)
    with torch.device("meta"):
        encoder = FrozenOpenCLIPEmbedder(freeze=True, layer="penultimate", tokenizer=folder)
        large = FrozenOpenCLIPEmbedder(arch="ViT-bigG-14", tokenizer=folder)
    assert (
        encoder.width,
        encoder.blocks(1),
        encoder.model.transformer["resblocks"][0].attn.heads,
    ) == (1024, 23, 16)
    assert (large.width, large.layers) == (1280, 32)
    with pytest.raises(ValueError, match="arch must be one of"):
        FrozenOpenCLIPEmbedder(arch="RN50", tokenizer=folder)


@pytest.mark.parametrize("kind", ["bert", "clip", "open_clip"])
def test_a_name_of_several_tokens_is_an_added_token(kind, request):
    from ldm.words.manager import EmbeddingManager

    encoder = request.getfixturevalue(kind)
    encoder = encoder[0] if kind == "open_clip" else encoder
    manager = EmbeddingManager(encoder, ["<Cat-Toy>", "easynegative"], ["cat"])
    first = encoder.vocab_size
    assert manager.string_to_token_dict == {"<Cat-Toy>": first, "easynegative": first + 1}
    ids = encoder.word_ids("a (<cat-toy>, easynegative)")
    assert (ids.count(first), ids.count(first + 1)) == (1, 1)
    text, plain = "a <Cat-Toy>", encoder.encode("a cat")
    assert_close(encoder.encode(text, manager), plain)  # the word starts from "cat"
    with torch.no_grad():
        manager.string_to_param_dict["<Cat-Toy>"] += torch.arange(24.0)
    assert (encoder.encode(text, manager) - plain).abs().max() > 1e-3
    encoder.placeholders = {}
