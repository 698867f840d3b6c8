"""CLIPs that were published for open_clip, such as Apple's DFN5B ViT-H/14 at 378 pixels: a folder
with open_clip_config.json and its weights under open_clip's names, read into transformers'
CLIPModel.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from percent_ray.models import pretrained, weights
from percent_ray.scorers import state_file

CONFIG: Final = "open_clip_config.json"
FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Of the weights; the first that is there is read."""
TOKENIZER: Final = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""All of these CLIPs have the same, where a folder has none."""
END = 49407
"""Token after a text."""

NAMES: Final = (
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.", "visual."),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.", "visual."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.", ""),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.", ""),
    ("encoder.layers.", "transformer.resblocks."),
    (".self_attn.", ".attn."),
    (".layer_norm", ".ln_"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
)
"""transformers' names of CLIP's weights, and open_clip's."""
UNUSED: Final = ("attn_mask", "visual.attn_mask", "logit_bias")
"""What some files have beside the weights: the causal mask, and a bias of other losses."""


def here(folder: str) -> bool:
    """Whether a folder is one of open_clip's, and has no weights for transformers."""
    place = Path(folder)
    others = (place / name for name in ("model.safetensors", "model.safetensors.index.json"))
    return (place / CONFIG).is_file() and not any(file.is_file() for file in others)


def read(folder: str) -> tuple[Any, Any, Any, str]:
    """CLIPModel, tokenizer and image processor of a folder, and what was loaded, in a line.

    Raises ValueError, in one line, for a config that is none of a plain CLIP, and where a weight is
    missing, unexpected or of another shape.
    """
    from transformers import CLIPTokenizer

    place = Path(folder)
    file = next((place / name for name in FILES if (place / name).is_file()), None)
    if file is None:
        raise ValueError(f"model of {folder}: has {CONFIG} and none of {', '.join(FILES)}")
    try:
        found = weights.settings(place / CONFIG)
        config = configured(found["model_cfg"])
        processor = _image_processor(found.get("preprocess_cfg", {}), found["model_cfg"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"model of {folder}: its {CONFIG} is of no plain CLIP ({error})") from None
    source = state_file.beside(file, ("tokenizer.json", "vocab.json"), instead=TOKENIZER)
    tokenizer = pretrained.tokenizer(
        CLIPTokenizer,
        source,
        part="tokenizer",
        vocabulary=config.text_config.vocab_size,
        end=config.text_config.eos_token_id,
    )
    clip = model(config, state_file.read(file, part="model"), where=f"model of {file}")
    return clip, tokenizer, processor, f"{pretrained.counted(file, clip)}; tokenizer of {source}"


def configured(fields: Mapping[str, Any]) -> Any:
    """The CLIPConfig of an open_clip `model_cfg`. Raises KeyError for what is not there, TypeError
    for a tower of another kind."""
    from transformers import CLIPConfig

    vision, text = fields["vision_cfg"], fields["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or isinstance(vision["layers"], list):
        raise TypeError("a tower of timm, of transformers or with convolutions")
    activation = {"hidden_act": "quick_gelu" if fields.get("quick_gelu") else "gelu"}
    width, mlp = vision["width"], vision.get("mlp_ratio", 4)
    return CLIPConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": round(mlp * width),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": width // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "projection_dim": fields["embed_dim"],
            **activation,
        },
        text_config={
            "vocab_size": text.get("vocab_size", END + 1),
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text.get("context_length", 77),
            "bos_token_id": text.get("vocab_size", END + 1) - 2,
            "eos_token_id": text.get("vocab_size", END + 1) - 1,
            "projection_dim": fields["embed_dim"],
            **activation,
        },
        projection_dim=fields["embed_dim"],
    )


def model(config: Any, state: Mapping[str, Tensor], *, where: str) -> Any:
    """The CLIPModel of an open_clip state dict; `where` names its file in errors.

    Raises ValueError, in one line, where a weight is missing, unexpected or of another shape.
    """
    from transformers import CLIPModel

    return state_file.fill(lambda: CLIPModel(config), state, _source, where=where, unused=UNUSED)


def _source(name: str) -> state_file.Source:
    """open_clip stacks query, key and value, and multiplies projections from the right."""
    published = state_file.renamed(name, NAMES)
    if name.endswith("_projection.weight"):
        return published, lambda tensor: tensor.T
    if third := re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", published):
        number = "qkv".index(third[2])
        return f"{third[1]}in_proj_{third[3]}", lambda tensor: tensor.tensor_split(3)[number]
    return published, state_file.whole


def _image_processor(asked: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """open_clip's preprocessing: `squash` both sides to the model's, or (by default) the shorter
    side and then the middle. Raises TypeError for another mode or interpolation."""
    from transformers import CLIPImageProcessor
    from transformers.image_utils import PILImageResampling

    side, mode = fields["vision_cfg"]["image_size"], asked.get("resize_mode", "shortest")
    if mode not in ("squash", "shortest") or asked.get("interpolation", "bicubic") != "bicubic":
        raise TypeError(f"resize_mode {mode}, interpolation {asked.get('interpolation')}")
    square = {"height": side, "width": side}
    own = {f"image_{key}": asked[key] for key in ("mean", "std") if key in asked}
    return CLIPImageProcessor(
        size=square if mode == "squash" else {"shortest_edge": side},
        do_center_crop=mode == "shortest",
        crop_size=square,
        resample=PILImageResampling.BICUBIC,
        **own,
    )
