"""Text encoders against diffusers and transformers; vocabularies found, cut, and missed clearly."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ldm.modules.encoders.modules import (
    BERTEmbedder,
    ClassEmbedder,
    FrozenCLIPEmbedder,
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
