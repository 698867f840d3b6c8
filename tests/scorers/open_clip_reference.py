"""open_clip's CLIP in plain torch: names and shapes of its state dict, and its sums."""

import torch
from torch.nn.functional import conv2d, gelu

from tests.scorers import published
from tests.tiny import MAX_TOKENS, clip_tokenizer

HEADS = 2
TINY = {"vision": 32, "text": 16, "layers": (2, 2), "patch": 8, "grid": 2, "features": 24}
"""Sizes of `shapes`, beside the tokenizer's."""


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def blocks(prefix, width, layers):
    shapes = {}
    for block in (f"{prefix}transformer.resblocks.{i}" for i in range(layers)):
        shapes |= published.norm(f"{block}.ln_1", width) | published.norm(f"{block}.ln_2", width)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width)}
        shapes |= {f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= published.layer(f"{block}.attn.out_proj", width, width)
        shapes |= published.layer(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= published.layer(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def shapes(*, vision, text, layers, patch, grid, vocabulary, tokens, features):
    """Every name and shape that open_clip's CLIP saves."""
    return {
        "logit_scale": (),
        "positional_embedding": (tokens, text),
        "token_embedding.weight": (vocabulary, text),
        "text_projection": (text, features),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (grid**2 + 1, vision),
        "visual.conv1.weight": (vision, 3, patch, patch),
        "visual.proj": (vision, features),
        **published.norm("visual.ln_pre", vision),
        **published.norm("visual.ln_post", vision),
        **published.norm("ln_final", text),
        **blocks("visual.", vision, layers[0]),
        **blocks("", text, layers[1]),
    }


def tower(x, state, prefix, activation, mask=None):
    for block in (f"{prefix}transformer.resblocks.{i}" for i in range(2)):
        y = published.normed(x, state, f"{block}.ln_1", eps=1e-5)
        stacked = y @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        y = published.attended(*stacked.chunk(3, dim=-1), HEADS, mask)
        x = x + published.dense(y, state, f"{block}.attn.out_proj")
        y = published.normed(x, state, f"{block}.ln_2", eps=1e-5)
        y = activation(published.dense(y, state, f"{block}.mlp.c_fc"))
        x = x + published.dense(y, state, f"{block}.mlp.c_proj")
    return x


def image_features(state, pixels, activation=gelu):
    patches = conv2d(pixels, state["visual.conv1.weight"], stride=8).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = tower(published.normed(x, state, "visual.ln_pre", eps=1e-5), state, "visual.", activation)
    return published.normed(x[:, 0], state, "visual.ln_post", eps=1e-5) @ state["visual.proj"]


def text_features(state, texts, activation=gelu):
    """Each text alone and without padding; the end of text is the last token."""
    rows = []
    for ids in clip_tokenizer()(texts, truncation=True, max_length=MAX_TOKENS).input_ids:
        x = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
        later = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        x = tower(x[None], state, "", activation, later)[0, -1]
        rows.append(published.normed(x, state, "ln_final", eps=1e-5) @ state["text_projection"])
    return torch.stack(rows)
