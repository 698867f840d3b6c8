"""Tiny random pipelines of the families that an evaluation is asked about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import tiny

LETTERS = [chr(x) for x in range(ord("a"), ord("z") + 1)]


Built = tuple[Any, dict[str, Any]]
"""A pipeline, as it was saved, and the fields of a row that are its own."""


def build(family: str, folder: Path) -> Built:
    """A pipeline of `FAMILIES`, written to a folder, and the fields of its `PipelineRow`."""
    import transformers

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, fields = FAMILIES[family](folder / family)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipe.save_pretrained(folder / family)
    if family == "HiDream":  # what its folder has not
        llama = fields["components"]["text_encoder_4"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
        tokenizer.pad_token = tokenizer.eos_token
        model = transformers.LlamaForCausalLM.from_pretrained(llama)
        pipe.register_modules(text_encoder_4=model.eval(), tokenizer_4=tokenizer)
    return pipe, {"pipeline": str(folder / family), "dtype": "float32", "steps": 2} | fields


def sd3(folder: Path) -> Built:
    """With T5, as the paper's rows have it."""
    tiny.build_sd3(folder, t5=True)
    return tiny.load_sd3(folder, t5=True), {
        "resolution": 16,
        "guidance": 4.5,
        "arguments": {"max_sequence_length": 8},
    }


def flux(folder: Path) -> Built:
    tiny.build_flux(folder)
    return tiny.load_flux(folder), {
        "resolution": 16,
        "guidance": 3.5,
        "arguments": {"max_sequence_length": 8},
    }


def sdxl(folder: Path) -> Built:
    import diffusers
    import transformers

    config = transformers.CLIPTextConfig(**tiny.text_fields())
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=transformers.CLIPTextModel(config),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        unet=unet(2 * tiny.WIDTH, tiny.WIDTH),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )
    return pipe, {"resolution": 16}


def kolors(folder: Path) -> Built:
    """SDXL's UNet with ChatGLM for CLIP; its second to last hidden state is read, so two layers."""
    import diffusers
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    model = sentencepiece(folder)
    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=128,
            hidden_size=tiny.WIDTH,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=64,
            multi_query_attention=True,
            multi_query_group_num=1,
            bias_dropout_fusion=False,
            rmsnorm=True,
            add_qkv_bias=True,
            post_layer_norm=True,
            original_rope=True,
        )
    )
    for weight in encoder.parameters():  # some of its norms are made without values
        torch.nn.init.normal_(weight, std=0.3)
    pipe = diffusers.KolorsPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=ChatGLMTokenizer(str(model)),
        unet=unet(tiny.WIDTH, tiny.WIDTH, encoder_hid_dim=tiny.WIDTH),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )
    return pipe, {"resolution": 16, "arguments": {"max_sequence_length": 16}}


def hunyuan(folder: Path) -> Built:
    import diffusers
    import transformers

    bert = transformers.BertConfig(
        vocab_size=len(LETTERS) + 5,
        hidden_size=tiny.WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    t5 = {"vocab_size": 32, "d_model": tiny.WIDTH, "d_kv": 8, "d_ff": 32}
    pipe = diffusers.HunyuanDiTPipeline(
        vae=vae(),
        text_encoder=transformers.BertModel(bert),
        tokenizer=bert_tokenizer(folder),
        transformer=diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            mlp_ratio=2,
            cross_attention_dim=tiny.WIDTH,
            cross_attention_dim_t5=tiny.WIDTH,
            pooled_projection_dim=tiny.WIDTH,
            text_len=77,
            text_len_t5=256,
            use_style_cond_and_image_meta_size=False,
        ),
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=transformers.T5EncoderModel(
            transformers.T5Config(num_layers=1, num_heads=2, **t5)
        ),
        tokenizer_2=tiny.t5_tokenizer(),
    )
    return pipe, {"resolution": 16, "arguments": {"use_resolution_binning": False}}


def pixart(folder: Path) -> Built:
    import diffusers

    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_encoder(),
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            caption_channels=3 * tiny.WIDTH,
            sample_size=8,
            patch_size=2,
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return pipe, {
        "resolution": 16,
        "arguments": {"clean_caption": False, "max_sequence_length": 16},
    }


def hidream(folder: Path) -> Built:
    """As published, without its Llama, which a row names beside it."""
    import diffusers
    import transformers

    llama = folder.with_name("llama")
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(LETTERS) + 3,
            hidden_size=tiny.WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).save_pretrained(llama)
    letters_tokenizer().save_pretrained(llama)
    clip = [
        transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**tiny.text_fields()))
        for _ in range(2)
    ]
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=clip[0],
        tokenizer=tiny.clip_tokenizer(),
        text_encoder_2=clip[1],
        tokenizer_2=tiny.clip_tokenizer(),
        text_encoder_3=tiny.t5_encoder(),
        tokenizer_3=tiny.t5_tokenizer(),
        text_encoder_4=None,
        tokenizer_4=None,
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[3 * tiny.WIDTH, tiny.WIDTH],
            text_emb_dim=2 * tiny.WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
    )
    parts = {"text_encoder_4": str(llama), "tokenizer_4": str(llama)}
    # It draws pictures of one area, whatever is asked.
    return pipe, {"steps": 1, "components": parts, "arguments": {"max_sequence_length": 16}}


def qwen(folder: Path) -> Built:
    import diffusers
    import transformers

    text = {
        "vocab_size": 64,
        "hidden_size": tiny.WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 1,
        "hidden_size": tiny.WIDTH,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": tiny.WIDTH,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=letters_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=tiny.WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
    )
    return pipe, {"resolution": 32, "guidance": 3.0, "arguments": {"max_sequence_length": 512}}


def vae(**fields: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **fields,
    )


def unet(pooled: int, width: int, **fields: Any) -> Any:
    """SDXL's kind: conditions with a pooled text and six sizes."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + width,
        cross_attention_dim=pooled,
        **fields,
    )


def letters_tokenizer() -> Any:
    """A fast tokenizer of single letters, as Llama's and Qwen's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        letter: number for number, letter in enumerate(["<pad>", "<unk>", "</s>", *LETTERS])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=2048,
    )


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    return BertTokenizer(vocab=vocabulary, model_max_length=77)


def sentencepiece(folder: Path) -> Path:
    """ChatGLM's kind of tokenizer, trained on the alphabet."""
    import sentencepiece as pieces

    place = folder.with_name("tokenizer.model")
    place.parent.mkdir(parents=True, exist_ok=True)
    pieces.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS), "a red circle", "a blue square"] * 20),
        model_prefix=str(place.with_suffix("")),
        vocab_size=64,
        model_type="char",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return place


FAMILIES: dict[str, Callable[[Path], Built]] = {
    "SD3": sd3,
    "FLUX": flux,
    "SDXL": sdxl,
    "Hunyuan-DiT": hunyuan,
    "Kolors": kolors,
    "HiDream": hidream,
    "Qwen-Image": qwen,
    "PixArt-Sigma": pixart,
}
