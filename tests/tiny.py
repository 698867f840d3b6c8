"""Random tiny models of the real classes, written to disk as the real ones are."""

from pathlib import Path
from typing import Any

import torch

WIDTH = 16
MAX_TOKENS = 16
RESOLUTION = 16
SCALE = 2
"""Pixels on a side of one of the VAE's latents."""
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj")


def sd3_config(folder: Path | str, **changes: Any) -> Any:
    """A `tree.Model` for a folder of `build_sd3`."""
    from percent_ray.recipe import tree

    fields: dict[str, Any] = {
        "path": str(folder),
        "resolution": RESOLUTION,
        "guidance": 4.5,
        "dtype": "float32",
        "max_sequence_length": 8,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_targets": TARGETS,
    }
    return tree.Model(**(fields | changes))


def build_sd3(folder: Path | str, *, t5: bool = False, seed: int = 0) -> str:
    """A StableDiffusion3Pipeline of 16x16 images with SD3.5's kinds of layers, about 100 kB."""
    import diffusers
    import transformers

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        encoders = [
            transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**_text(tokenizer))
            )
            for _ in range(2)
        ]
        parts: dict[str, Any] = {
            "transformer": _transformer(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": _vae(),
            "text_encoder": encoders[0],
            "tokenizer": tokenizer,
            "text_encoder_2": encoders[1],
            "tokenizer_2": clip_tokenizer(),
            "text_encoder_3": t5_encoder() if t5 else None,
            "tokenizer_3": t5_tokenizer() if t5 else None,
        }
        diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return str(folder)


def load_sd3(folder: Path | str, *, t5: bool = False) -> Any:
    """The whole pipeline of a folder of `build_sd3` as a user of diffusers loads it."""
    from diffusers import StableDiffusion3Pipeline

    absent: dict[str, Any] = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_config(folder: Path | str, **changes: Any) -> Any:
    """A `tree.Model` for a folder of `build_flux`."""
    return sd3_config(folder, **{"family": "flux", "guidance": 3.5} | changes)


def build_flux(folder: Path | str, *, embeds: bool = True, seed: int = 0) -> str:
    """A FluxPipeline of 16x16 images, about 100 kB; `embeds`: with a guidance embedding."""
    import diffusers
    import transformers

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
        diffusers.FluxPipeline(
            transformer=_flux_transformer(embeds),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**dynamic),
            vae=_vae(),
            text_encoder=transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**_text(tokenizer))
            ),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(),
            tokenizer_2=t5_tokenizer(),
        ).save_pretrained(folder)
    return str(folder)


def load_flux(folder: Path | str) -> Any:
    """The whole pipeline of a folder of `build_flux` as a user of diffusers loads it."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _flux_transformer(embeds: bool) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=embeds,
        axes_dims_rope=(4, 4, 8),
    )


def _transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_tiny(folder: Path | str, *, seed: int = 0, **changes: Any) -> str:
    """An AutoencoderTiny of the latents of `build_sd3` and `build_flux`."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config: dict[str, Any] = {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
            "latent_channels": 4,
        }
        AutoencoderTiny(**config | changes).save_pretrained(folder)
    return str(folder)


def clip_tokenizer() -> Any:
    """A CLIPTokenizer of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def text_fields() -> dict[str, Any]:
    """Of a CLIPTextConfig for `clip_tokenizer`."""
    return _text(clip_tokenizer())


def _text(tokenizer: Any) -> dict[str, Any]:
    # eos_token_id must be the tokenizer's: at 2 the tower would pool another token.
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "projection_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def t5_tokenizer() -> Any:
    """A T5 tokenizer of single letters."""
    from transformers import T5TokenizerFast

    letters = [(chr(x), -3.0) for x in range(ord("a"), ord("z") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5TokenizerFast(vocab=special + letters, extra_ids=0)


def t5_encoder() -> Any:
    """A T5EncoderModel for `t5_tokenizer`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=32, d_model=3 * WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def build_clip(folder: Path | str, *, size: int = 16, seed: int = 0) -> str:
    """A CLIPModel folder with its processor, for clip.py and pickscore.py."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        vision = {
            "hidden_size": WIDTH,
            "intermediate_size": 32,
            "projection_dim": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": size,
            "patch_size": 8,
        }
        config = transformers.CLIPConfig(
            text_config=_text(tokenizer), vision_config=vision, projection_dim=WIDTH
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        square = {"height": size, "width": size}
        images = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square)
        transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def build_dino(folder: Path | str, *, size: int = 16, seed: int = 0) -> str:
    """A Dinov2Model folder with its processor."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=size,
            patch_size=8,
        )
        transformers.Dinov2Model(config).save_pretrained(folder)
        transformers.BitImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ).save_pretrained(folder)
    return str(folder)
