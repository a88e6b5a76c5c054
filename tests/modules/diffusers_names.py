"""State dicts of the U-Net and the autoencoder under the names that diffusers gives them."""

import re

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
AUTOENCODER_MIDDLE = {
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1.norm": "attentions.0.group_norm",
    "attn_1.q": "attentions.0.to_q",
    "attn_1.k": "attentions.0.to_k",
    "attn_1.v": "attentions.0.to_v",
    "attn_1.proj_out": "attentions.0.to_out.0",
}


def unet_name(name, num_res_blocks):
    """Return diffusers' name of one entry of `UNetModel`."""
    module, _, kind = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{kind}"
    side, block, layer, rest = re.fullmatch(
        r"(input_blocks|middle_block|output_blocks)\.(?:(\d+)\.)?(\d+)\.(.+)", module
    ).groups()
    if side == "middle_block":
        place, j = "mid_block", {"0": 0, "1": 0, "2": 1}[layer]
    else:
        offset = 1 if side == "input_blocks" else 0
        level, j = divmod(int(block) - offset, num_res_blocks + 1)
        place = f"{'down' if offset else 'up'}_blocks.{level}"
    if rest == "op":
        return f"{place}.downsamplers.0.conv.{kind}"
    if rest == "conv":
        return f"{place}.upsamplers.0.conv.{kind}"
    if rest in RESNET:
        return f"{place}.resnets.{j}.{RESNET[rest]}.{kind}"
    return f"{place}.attentions.{j}.{rest}.{kind}"


def autoencoder_name(name, levels):
    """Return diffusers' name of one entry of `AutoencoderKL`."""
    for ours, theirs in AUTOENCODER_MIDDLE.items():
        name = name.replace(f"mid.{ours}.", f"mid_block.{theirs}.")
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    name = re.sub(r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", name)
    # The decoder's levels count from the finest here, from the coarsest there.
    name = re.sub(
        r"up\.(\d+)\.block\.",
        lambda found: f"up_blocks.{levels - 1 - int(found[1])}.resnets.",
        name,
    )
    return re.sub(
        r"up\.(\d+)\.upsample\.",
        lambda found: f"up_blocks.{levels - 1 - int(found[1])}.upsamplers.0.",
        name,
    )


def autoencoder_state(model, levels):
    """Return the weights as diffusers stores them: the attention's as matrices."""
    state = {}
    for name, value in model.state_dict().items():
        if ".attn_1." in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        state[autoencoder_name(name, levels)] = value
    return state
