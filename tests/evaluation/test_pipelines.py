"""Any text-to-image pipeline of diffusers as a row: loaded whole, drawn as diffusers draws."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.evaluation.pipelines import PipelineRow, PipelineSource
from percent_ray.flow import noise
from percent_ray.types import Prompt
from tests.evaluation import tiny_pipelines

PROMPT, NUMBER, SEED, IMAGES = Prompt("a red circle"), 3, 7, 3
LORAS = {"SD3": "transformer", "FLUX": "transformer", "SDXL": "unet"}
"""Families that are tried with a LoRA, and the component that it is on."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """By family: the pipeline that was saved, and its row's fields."""
    folder = tmp_path_factory.mktemp("pipelines")
    made: dict[str, tiny_pipelines.Built] = {}

    def of(family: str) -> tiny_pipelines.Built:
        if family not in made:
            made[family] = tiny_pipelines.build(family, folder)
        return made[family]

    return of


def source(fields: dict[str, Any], **changes: Any) -> PipelineSource:
    row = PipelineRow.model_validate_json(json.dumps(fields | changes), strict=True)
    return PipelineSource(row, device=torch.device("cpu"))


def drawn(of: PipelineSource, images: int = IMAGES, seed: int = SEED) -> torch.Tensor:
    return of.draw(PROMPT, NUMBER, images=images, seed=seed).images


def furthest(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("family", tiny_pipelines.FAMILIES)
def test_pictures_are_diffusers_own_whatever_the_batches(built, family):
    """Those that the pipeline in memory draws, before it was written and loaded again, from the
    same generators, and as PIL rounds them."""
    pipe, fields = built(family)
    arguments = {n: v for n, v in fields.items() if n in ("guidance", "resolution")}
    images = 2 if family == "HiDream" else IMAGES  # large ones
    call = fields.get("arguments", {}) | {"num_inference_steps": fields["steps"]}
    if "guidance" in arguments:
        call["true_cfg_scale" if family == "Qwen-Image" else "guidance_scale"] = fields["guidance"]
    if family == "Qwen-Image":
        call["negative_prompt"] = " "
    if side := arguments.get("resolution"):
        call |= {"height": side, "width": side}
    if family == "PixArt-Sigma":
        call["use_resolution_binning"] = False
    expected = pipe(
        prompt=PROMPT.text,
        num_images_per_prompt=images,
        generator=[noise.generator("evaluation", SEED, NUMBER, k) for k in range(images)],
        output_type="pil",
        **call,
    ).images
    expected = torch.from_numpy(np.stack([np.asarray(each) for each in expected]))
    ours = source(fields, batch_size=IMAGES)
    pictures = drawn(ours, images)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, expected.permute(0, 3, 1, 2))
    assert pictures.float().std() > 5, "not grey"
    assert not torch.equal(pictures[0], pictures[1])
    # A matrix product of other sizes may round the last bit otherwise.
    one_by_one = source(fields, batch_size=1)
    assert furthest(drawn(one_by_one, images=2), pictures[:2]) <= 1
    assert torch.equal(drawn(one_by_one, images=1), drawn(one_by_one, images=2)[:1])
    assert "weights in float32, none missing" in ours.describe()
    assert f"num_inference_steps {fields['steps']}" in ours.describe()
    assert furthest(drawn(ours, images=1, seed=8), pictures[:1]) > 1


@pytest.mark.parametrize("family", LORAS)
def test_a_lora_is_on_every_layer_that_it_is_for_and_its_scale_counts(built, tmp_path, family):
    from peft import LoraConfig

    pipe, fields = built(family)
    module = getattr(source(fields)._pipe, LORAS[family])
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    lora = tmp_path / "lora"
    from peft.utils import get_peft_model_state_dict

    layers = {f"{LORAS[family]}_lora_layers": get_peft_model_state_dict(module)}
    type(pipe).save_lora_weights(lora, **layers)
    base = drawn(source(fields))
    whole, none = source(fields, lora=str(lora)), source(fields, lora=str(lora), lora_scale=0.0)
    assert furthest(drawn(whole), base) > 1
    assert torch.equal(drawn(none), base)
    count = sum("lora_A" in name for name in load_file(next(lora.glob("*.safetensors"))))
    assert f"LoRA {lora} x 1 on {count} layers" in whole.describe()
    half = tmp_path / "half.safetensors"
    tensors = load_file(next(lora.glob("*.safetensors")))
    save_file({name.replace("to_q", "to_none"): t for name, t in tensors.items()}, half)
    other = tmp_path / "other.safetensors"
    save_file({name.replace("to_", "from_"): tensor for name, tensor in tensors.items()}, other)
    for file in (half, other):
        with pytest.raises(ValueError, match=f"lora: .*{file.stem}") as caught:
            source(fields, lora=str(file))
        assert "\n" not in str(caught.value)


def test_steps_guidance_resolution_dtype_and_arguments_each_count(built):
    _, fields = built("SD3")
    base = drawn(source(fields), images=1)
    for changes in (
        {"steps": 3},
        {"guidance": 1.0},
        {"dtype": "bfloat16"},
        {"arguments": {"max_sequence_length": 8, "negative_prompt": "a blue square"}},
    ):
        changed = source(fields, **changes)
        assert not torch.equal(drawn(changed, images=1), base), changes
    assert "in bfloat16" in source(fields, dtype="bfloat16").describe()
    assert drawn(source(fields, resolution=[16, 32]), images=1).shape[-2:] == (16, 32)


def test_true_guidance_has_its_name_and_is_not_off_without_a_word(built):
    _, fields = built("Qwen-Image")
    said = source(fields).describe()
    assert "true_cfg_scale 3.0" in said
    assert "negative_prompt" in said
    assert furthest(drawn(source(fields), 1), drawn(source(fields, guidance=1.0), 1)) > 0


def test_hidream_without_its_llama_says_what_to_set(built):
    _, fields = built("HiDream")
    with pytest.raises(
        ValueError, match=r"has no text_encoder_4 and no tokenizer_4; set components"
    ):
        source(fields, components={})


def test_a_size_that_a_class_does_not_draw_is_refused(built):
    _, fields = built("HiDream")
    with pytest.raises(
        ValueError, match="resolution 16 x 16: HiDreamImagePipeline draws 256 x 256"
    ):
        drawn(source(fields, resolution=16, steps=1), images=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": "{}/gone"}, "no folder .*gone"),
        ({"pipeline": "{}/empty"}, "empty: .*give a folder or hub id of a pipeline"),
        ({"arguments": {"stepz": 3}}, "arguments.stepz: StableDiffusion3Pipeline has .*clip_skip"),
        ({"arguments": {"height": 16}}, "arguments.height: is set by resolution; leave it out"),
        ({"components": {"text_encoder_9": "x"}}, "StableDiffusion3Pipeline has no text_encoder_9"),
        ({"lora": "{}/gone"}, "lora: .*gone has 0 safetensors files, needs one"),
    ],
)
def test_what_cannot_be_is_one_line(built, tmp_path, changes, words):
    _, fields = built("SD3")
    (tmp_path / "empty").mkdir()
    placed = {
        key: value.format(tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(ValueError, match=words) as caught:
        source(fields, **placed)
    assert "\n" not in str(caught.value)


def copy(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    shutil.copytree(fields["pipeline"], folder)
    return fields | {"pipeline": str(folder)}


@pytest.mark.parametrize(
    "name",
    [
        *("StableDiffusion3Img2ImgPipeline", "StableVideoDiffusionPipeline", "NoPipeline"),
        *("AudioLDM2Pipeline", "StableAudioPipeline", "ShapEPipeline", "WanPipeline"),
    ],
)
def test_what_does_not_draw_images_of_a_text_is_refused(built, tmp_path, name):
    fields = copy(built("SD3")[1], tmp_path / "other")
    index = tmp_path / "other" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
    with pytest.raises(ValueError, match=f"is a {name}, which"):
        source(fields)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3", "vae"])
@pytest.mark.parametrize("wrong", ["missing", "unexpected"])
def test_a_weight_too_few_or_too_many_is_named(built, tmp_path, part, wrong):
    fields = copy(built("SD3")[1], tmp_path / "torn")
    [file] = (tmp_path / "torn" / part).glob("*.safetensors")
    tensors = load_file(file)
    if wrong == "missing":
        del tensors[min(tensors)]  # of T5 its largest is the one that two names share
    else:
        tensors["a.weight"] = torch.zeros(2)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} of .*torn.* 1 {wrong}"):
        source(fields)


@pytest.mark.parametrize("way", ["variant", "shards"])
def test_half_precision_variants_and_shards_are_read(built, tmp_path, way):
    pipe, fields = built("SD3")
    options = {"variant": "fp16"} if way == "variant" else {"max_shard_size": "30KB"}
    pipe.save_pretrained(tmp_path / "other", **options)
    names = {p.name for p in (tmp_path / "other" / "transformer").iterdir()}
    assert any(("fp16" if way == "variant" else "00002-of") in name for name in names)
    pictures = drawn(source(fields | {"pipeline": str(tmp_path / "other")}))
    assert torch.equal(pictures, drawn(source(fields)))
