"""The U-Net against diffusers', its attention against the formula, and what checkpointing keeps."""

import gzip
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, ResBlock, UNetModel
from ldm.modules.diffusionmodules.util import GroupNorm32, timestep_embedding
from tests.modules.diffusers_names import unet_name
from tests.modules.weights import randomize

SMALL = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 16,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1, 2],
    "num_heads": 2,
    "num_groups": 8,
}
WITH_TEXT = {**SMALL, "use_spatial_transformer": True, "context_dim": 12}
HERE = Path(__file__).parent
SD2 = {
    "image_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
    "legacy": False,
}
SDXL = {
    **SD2,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [1, 2, 10],
    "context_dim": [2048],
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}


def inputs(seed=1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=rng)
    context = torch.randn(2, 5, 12, generator=rng)
    return x, torch.tensor([3, 981]), context


@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_unet_equals_diffusers(num_res_blocks):
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=num_res_blocks,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,  # the number of heads, by diffusers' old name
        transformer_layers_per_block=2,
        norm_num_groups=8,
    ).eval()
    ours = UNetModel(**{**WITH_TEXT, "num_res_blocks": num_res_blocks, "transformer_depth": 2})
    randomize(ours).eval()
    state = {unet_name(n, num_res_blocks): v for n, v in ours.state_dict().items()}
    reference.load_state_dict(state, strict=True)
    x, t, context = inputs()
    with torch.no_grad():
        expected = reference(x, t, encoder_hidden_states=context).sample
        assert_close(ours(x, t, context), expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.1


def published(listing):
    """Names and shapes of a published U-Net."""
    with gzip.open(HERE / listing, "rt") as file:
        rows = (line.rstrip("\n").split("\t") for line in file)
        return {name: tuple(int(n) for n in shape.split(",")) for name, shape in rows}


@pytest.mark.parametrize(
    ("listing", "options"), [("sd-v2-1.tsv.gz", SD2), ("sdxl-base-1.0.tsv.gz", SDXL)]
)
def test_names_and_shapes_are_those_of_published_files(listing, options):
    with torch.device("meta"):
        unet = UNetModel(**options)
    assert {n: tuple(v.shape) for n, v in unet.state_dict().items()} == published(listing)


def test_a_text_and_vector_unet_equals_diffusers():
    """SDXL's form: levels without attention, of several blocks, linear projections, a vector."""
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=(1, 2, 4),  # the number of heads, by diffusers' old name
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 6 * 6,
        norm_num_groups=4,
    ).eval()
    options = {
        **{k: v for k, v in SDXL.items() if k != "image_size"},
        **{"model_channels": 8, "num_groups": 4, "num_head_channels": 8},
        **{"context_dim": 12, "adm_in_channels": 46, "transformer_depth": [0, 2, 3]},
    }
    ours = randomize(UNetModel(**{**options, "attention_resolutions": [1, 2, 4]})).eval()
    state = {unet_name(n, 2): v for n, v in ours.state_dict().items()}
    reference.load_state_dict(state, strict=True)
    x, t, context = inputs()
    rng = torch.Generator().manual_seed(3)
    pooled = torch.randn(2, 10, generator=rng)
    sizes = torch.tensor([[512, 384, 0, 0, 1024, 1024], [64, 64, 8, 0, 64, 64]])
    vector = torch.cat([pooled, timestep_embedding(sizes.flatten(), 6).reshape(2, -1)], 1)
    with torch.no_grad():
        expected = reference(
            x,
            t,
            encoder_hidden_states=context,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample
        assert_close(ours(x, t, context, vector), expected, rtol=1e-4, atol=1e-5)
        assert (ours(x, t, context, 0 * vector) - expected).abs().max() > 0.01
        wrapper = DiffusionWrapper({"target": "torch.nn.Identity"}, "crossattn-adm")
        wrapper.diffusion_model = ours
        for name in ("c_adm", "vector"):
            named = wrapper.conditions({"c_crossattn": [context], name: vector})
            assert_close(wrapper(x, t, **named), expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="needs a vector"):
            wrapper(x, t, **wrapper.conditions(context))


@pytest.mark.parametrize("dim", [8, 9, 320])
def test_timestep_embedding(dim):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 500, 999])
    ours = timestep_embedding(t, dim)
    reference = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    rates = [10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    expected = [f(rate) for f in (math.cos, math.sin) for rate in rates]
    assert_close(ours[1, : len(expected)], torch.tensor(expected))
    assert_close(ours[0], torch.cat([torch.ones(dim // 2), torch.zeros(dim - dim // 2)]))


def test_attention_block_is_softmax_attention():
    block = randomize(AttentionBlock(12, 3, num_groups=4))
    x = torch.randn(2, 12, 3, 5)
    flat = x.reshape(2, 12, 15)
    qkv = block.qkv(block.norm(flat))
    heads = []
    for head in range(3):
        # Head after head; queries, keys and values within each.
        q, k, v = (qkv[:, head * 12 + part * 4 :][:, :4] for part in range(3))
        weights = torch.softmax(torch.einsum("bdi,bdj->bij", q, k) / 2.0, dim=-1)
        heads.append(torch.einsum("bij,bdj->bdi", weights, v))
    expected = (flat + block.proj_out(torch.cat(heads, 1))).reshape(x.shape)
    assert_close(block(x), expected)


def test_attention_in_bfloat16_trains_as_in_full_precision():
    attention = randomize(CrossAttention(6, 5, heads=2, dim_head=3))
    x, context = torch.randn(2, 7, 6), torch.randn(2, 4, 5)

    def gradients(autocast):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attention(x, context)
        out.float().square().sum().backward()
        return out, [weight.grad.clone() for weight in attention.parameters()]

    full, expected = gradients(autocast=False)
    mixed, found = gradients(autocast=True)
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed.float(), full, atol=0.1, rtol=0.05)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_cross_attention_is_masked_softmax_attention():
    attention = randomize(CrossAttention(6, 5, heads=2, dim_head=3))
    x, context = torch.randn(2, 4, 6), torch.randn(2, 7, 5)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
    out = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(3)
        scores = scores.masked_fill(~mask[:, None], -math.inf)
        out.append(scores.softmax(-1) @ v[..., head])
    assert_close(attention(x, context, mask), attention.to_out(torch.cat(out, -1)))
    # What is masked does not matter.
    context[0, 4:] = 100.0
    assert_close(attention(x, context, mask)[0], attention.to_out(torch.cat(out, -1))[0])


@pytest.mark.parametrize("options", [SMALL, WITH_TEXT], ids=["plain", "text"])
def test_checkpointing_computes_again_and_gives_the_same_gradients(options, monkeypatch):
    calls, sizes = {}, {}
    for kind in (ResBlock, AttentionBlock, BasicTransformerBlock):
        inner = kind._forward

        def counted(self, *args, inner=inner, kind=kind):
            calls[current, kind] = calls.get((current, kind), 0) + 1
            return inner(self, *args)

        monkeypatch.setattr(kind, "_forward", counted)
    gradients = {}
    x, t, context = inputs()
    given = (x, t, context) if options is WITH_TEXT else (x, t)
    for current in (False, True):
        unet = randomize(UNetModel(**options, use_checkpoint=current))
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = unet(*given).square().mean()
            sizes[current] = kept
        loss.backward()
        gradients[current] = [p.grad for p in unet.parameters()]
    for kind in (ResBlock, BasicTransformerBlock if options is WITH_TEXT else AttentionBlock):
        assert calls[True, kind] == 2 * calls[False, kind] > 0
    assert sizes[True] < 0.6 * sizes[False]
    assert_close(gradients[True], gradients[False])


def test_checkpointing_costs_nothing_where_nothing_is_learned():
    block = ResBlock(8, 4, 0.0, 8, use_checkpoint=True, num_groups=2)
    ran = []
    block.in_layers.register_forward_hook(lambda *_: ran.append(1))
    block.in_layers[0].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        out = block(torch.randn(1, 8, 4, 4), torch.randn(1, 4))
    assert ran == [1]
    assert not out.requires_grad


def test_a_frozen_checkpointed_unet_hands_gradients_to_its_context():
    unet = randomize(UNetModel(**WITH_TEXT, use_checkpoint=True)).requires_grad_(False)
    plain = randomize(UNetModel(**WITH_TEXT)).requires_grad_(False)
    x, t, context = inputs()
    gradients = []
    for network in (unet, plain):
        word = context.clone().requires_grad_()
        network(x, t, word).square().sum().backward()
        gradients.append(word.grad)
    assert gradients[0].abs().sum() > 0
    assert_close(*gradients)


def test_norms_have_the_published_epsilons():
    unet = UNetModel(**WITH_TEXT)
    eps = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm):
            eps.setdefault("transformer" if ".1.norm" in name else "residual", set()).add(
                module.eps
            )
    assert eps == {"transformer": {1e-6}, "residual": {1e-5}}


def test_group_norm_in_half_precision_computes_in_single():
    norm = randomize(GroupNorm32(2, 8))
    x = 3 + torch.randn(2, 8, 4, 4)
    half = GroupNorm32(2, 8).bfloat16()
    half.load_state_dict(norm.state_dict())
    out = half(x.bfloat16())
    assert out.dtype == torch.bfloat16
    single = nn.functional.group_norm(
        x.bfloat16().float(), 2, half.weight.float(), half.bias.float(), half.eps
    )
    assert_close(out, single.bfloat16())


@pytest.mark.parametrize(
    "options",
    [
        {"use_scale_shift_norm": True, "resblock_updown": True},
        {"num_classes": 5, "num_head_channels": 4, "legacy": False, "use_fp16": True},
        {"dropout": 0.1, "num_heads": -1, "num_head_channels": 8},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_option_builds_and_runs(options):
    unet = randomize(UNetModel(**{**SMALL, **options}))
    x = torch.randn(2, 4, 8, 8)
    y = torch.tensor([0, 4]) if "num_classes" in options else None
    out = unet(x, torch.tensor([0, 5]), y=y)
    assert out.shape == x.shape
    out.sum().backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None] == []


def test_scale_and_shift_follow_the_second_norm():
    block = randomize(ResBlock(8, 4, 0.0, 8, use_scale_shift_norm=True, num_groups=2))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    h = block.out_layers[0](block.in_layers(x))
    scale, shift = block.emb_layers(emb)[:, :, None, None].chunk(2, 1)
    assert_close(block(x, emb), x + block.out_layers[1:](h * (1 + scale) + shift))


def test_untrained_branches_are_nothing():
    transformer = SpatialTransformer(8, 2, 4, context_dim=6, num_groups=2)
    x = torch.randn(1, 8, 2, 3)
    assert_close(transformer(x, torch.randn(1, 5, 6)), x)
    unet = UNetModel(**SMALL)
    assert unet(torch.randn(1, 4, 8, 8), torch.tensor([1])).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": -1}, "num_heads or num_head_channels"),
        ({"context_dim": 4}, "needs use_spatial_transformer"),
        ({"use_spatial_transformer": True}, "needs context_dim"),
        ({"num_heads": 3}, "num_heads must divide the 16 channels"),
        ({"num_head_channels": 5}, "num_head_channels must divide the 16 channels"),
        (
            {"transformer_depth": [1]},
            "one for each of the 2 levels",
        ),
        ({"transformer_depth": [1, 0]}, "at least 1 in the last"),
        ({**WITH_TEXT, "context_dim": [12, 16]}, "context_dim must hold one width"),
        ({"num_classes": "sequential"}, "'sequential' with adm_in_channels"),
        ({"num_classes": "many"}, "num_classes must be a number"),
        ({"channel_mult": []}, r"channel_mult must hold whole numbers of at least 1, got \[\]"),
        (
            {"channel_mult": [1, 0]},
            r"channel_mult must hold whole numbers of at least 1, got \[1, 0",
        ),
        ({"channel_mult": [1, "2"]}, "channel_mult must hold whole numbers"),
        ({"model_channels": 0}, "model_channels must be a whole number of at least 1, got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number of at least 1, got 0"),
        ({"num_groups": 0}, "num_groups must be a whole number of at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be -1 or a whole number of at least 1, got 0"),
        ({"num_head_channels": -2}, "num_head_channels must be -1 or a whole number"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNetModel(**{**SMALL, **options})
    with pytest.raises(TypeError, match="n_heads"):
        UNetModel(**SMALL, n_heads=3)


def test_labels_are_asked_for_exactly_where_the_network_has_classes():
    x, t, _ = inputs()
    with pytest.raises(ValueError, match="y must be given"):
        UNetModel(**SMALL, num_classes=3)(x, t)
    with pytest.raises(ValueError, match="y must be given"):
        UNetModel(**SMALL)(x, t, y=torch.tensor([0, 1]))
