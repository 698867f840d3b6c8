"""The file for ComfyUI, read by the rule that its docstring states onto ComfyUI's own layers."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from percent_ray.export import adapter, pipeline
from percent_ray.export.source import Source
from percent_ray.models.base import family
from percent_ray.recipe.tree import Model
from tests import tiny
from tests.models.cases import CPU, noise

SD3 = {
    "x_embedder.proj": ["pos_embed.proj"],
    "context_embedder": ["context_embedder"],
    "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
    "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
    "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
SD3_BLOCK = {
    "x_block.attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "x_block.attn.proj": ["attn.to_out.0"],
    "x_block.attn2.qkv": ["attn2.to_q", "attn2.to_k", "attn2.to_v"],
    "x_block.attn2.proj": ["attn2.to_out.0"],
    "x_block.adaLN_modulation.1": ["norm1.linear"],
    "x_block.mlp.fc1": ["ff.net.0.proj"],
    "x_block.mlp.fc2": ["ff.net.2"],
    "context_block.attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "context_block.attn.proj": ["attn.to_add_out"],
    "context_block.adaLN_modulation.1": ["norm1_context.linear"],
    "context_block.mlp.fc1": ["ff_context.net.0.proj"],
    "context_block.mlp.fc2": ["ff_context.net.2"],
}
FLUX = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
FLUX_BLOCK = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mod.lin": ["norm1.linear"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mod.lin": ["norm1_context.linear"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
FLUX_SINGLE = {
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "modulation.lin": ["norm.linear"],
}
SCALE_FIRST = ("final_layer.adaLN_modulation.1",)
"""Layers whose halves (shift, scale) the two have in the other order; in SD3 so has the last
block's context, which has no other half of its own."""


def layers(name: str, blocks: int) -> dict[str, list[str]]:
    """ComfyUI's layers of a transformer, each with the diffusers layers that are its rows."""

    def inside(there: str, here: str, block: Mapping[str, list[str]]) -> dict[str, list[str]]:
        return {
            f"{there}.{i}.{name}": [f"{here}.{i}.{part}" for part in parts]
            for i in range(blocks)
            for name, parts in block.items()
        }

    if name == "sd3":
        return SD3 | inside("joint_blocks", "transformer_blocks", SD3_BLOCK)
    double = inside("double_blocks", "transformer_blocks", FLUX_BLOCK)
    return FLUX | double | inside("single_blocks", "single_transformer_blocks", FLUX_SINGLE)


def is_swapped(layer: str, blocks: int) -> bool:
    last = f"joint_blocks.{blocks - 1}.context_block.adaLN_modulation.1"
    return layer in (*SCALE_FIRST, last)


def swapped(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])


def fused(weights: Mapping[str, Tensor], name: str, blocks: int) -> dict[str, Tensor]:
    """A diffusers transformer's weights as ComfyUI holds them."""
    made = {}
    for layer, parts in layers(name, blocks).items():
        present = [weights[f"{part}.weight"] for part in parts if f"{part}.weight" in weights]
        if present:
            rows = torch.cat(present)
            made[layer] = swapped(rows) if is_swapped(layer, blocks) else rows
    return made


def apply(path: Path, base: dict[str, Tensor], name: str, blocks: int) -> dict[str, Tensor]:
    """ComfyUI's layers with a LoRA file on them: alpha / r B A of a diffusers layer is added to the
    rows that this one is of its layer. Every key of the file must have been read."""
    file = load_file(path)
    after = {layer: rows.clone() for layer, rows in base.items()}
    for layer, parts in layers(name, blocks).items():
        first = 0
        for part in parts:
            key = f"transformer.{part}"
            if f"{key}.lora_A.weight" not in file:
                continue  # the model has no such layer: here every one of it has an adapter
            down, up = file.pop(f"{key}.lora_A.weight"), file.pop(f"{key}.lora_B.weight")
            scale = file.pop(f"{key}.alpha").item() / len(down)
            gain = scale * up @ down
            if is_swapped(layer, blocks):
                gain = swapped(gain)
            after[layer][first : first + len(gain)] += gain.reshape(
                len(gain), *after[layer].shape[1:]
            )
            first += len(gain)
    assert not file, f"not read: {list(file)}"
    return after


def linear_layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]


FAMILIES = {
    "sd3": (tiny.build_sd3, tiny.sd3_config, 2),
    "flux": (tiny.build_flux, tiny.flux_config, 1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_gives_comfyui_s_layers_the_merged_weights(name, tmp_path):
    """With an adapter on every linear layer that there is."""
    build, config, blocks = FAMILIES[name]
    folder = Path(build(tmp_path / name))
    bare = family(name).load_policy(config(folder, lora_rank=0), seed=0, device=CPU, text=False)
    model: Model = config(folder, lora_alpha=6, lora_targets=tuple(linear_layers(bare.module)))
    policy = family(name).load_policy(model, seed=0, device=CPU, text=False)
    weights = {n: noise(*p.shape, seed=i) for i, (n, p) in enumerate(policy.trainable().items())}
    source = Source(tmp_path, "NAME", 40, model, 10, weights, average=True)
    path = adapter.write_comfyui(source, tmp_path)
    assert path.name == "NAME-40.safetensors"
    assert len(load_file(path)) == 3 * len(linear_layers(bare.module))
    (tmp_path / "merged").mkdir()
    pipeline.write(source, tmp_path / "merged")
    file = "transformer/diffusion_pytorch_model.safetensors"
    before, merged = load_file(folder / file), load_file(tmp_path / "merged" / file)
    found = apply(path, fused(before, name, blocks), name, blocks)
    expected = fused(merged, name, blocks)
    assert found.keys() == expected.keys()
    for layer, rows in expected.items():
        torch.testing.assert_close(found[layer], rows, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected["final_layer.linear"], before["proj_out.weight"])


def test_every_linear_layer_of_the_real_models_has_a_key_there():
    import diffusers

    with torch.device("meta"):
        sd3 = diffusers.SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        flux = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    for name, network, blocks in (("sd3", sd3, 24), ("flux", flux, 38)):
        known = {part for parts in layers(name, blocks).values() for part in parts}
        assert set(linear_layers(network)) <= known, name
