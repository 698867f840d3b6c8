"""aesthetic.py on a random tiny SigLIP, saved with its text tower as the real one is, and a random
head under the published names."""

import pytest
import torch

from percent_ray.recipe.tree import Scorer as Settings
from percent_ray.scorers import aesthetic
from percent_ray.scorers.base import load_scorer
from percent_ray.types import Prompt
from tests.scorers import published

CPU = torch.device("cpu")
PROMPTS = [Prompt(""), Prompt("cat"), Prompt("cat " * 600)]
WIDTH = 24


def shapes(width):
    """Every name and shape of aesthetic_predictor_v2_5.pth, for SigLIP's features of `width`."""
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 8: (1, 16)}
    found = {}
    for number, (out, inside) in sizes.items():
        found |= published.layer(f"scoring_head.{number}", out, inside)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the published file and SigLIP, and the state dict in the file."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    folder = tmp_path_factory.mktemp("aesthetic")
    few = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = SiglipConfig(
        vision_config={**few, "hidden_size": WIDTH, "image_size": 16, "patch_size": 8},
        text_config={**few, "hidden_size": WIDTH, "vocab_size": 9, "max_position_embeddings": 4},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    state = published.random_state(shapes(WIDTH))
    for name in state:
        if name.endswith("weight"):
            state[name] /= 0.3 * state[name].shape[1] ** 0.5  # scores near 1
    torch.save(state, folder / aesthetic.FILE)
    return folder, state


def pooled(folder, images):
    """SigLIP's features by the whole model of transformers, of pictures of PIL."""
    from PIL import Image
    from transformers import SiglipImageProcessorPil, SiglipModel

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        vision = SiglipModel.from_pretrained(folder).vision_model
        return vision(pixels.pixel_values).pooler_output


def test_score_report_and_features_are_the_head_on_siglips(tiny):
    folder, state = tiny
    scorer = aesthetic.load(str(folder), device=CPU)
    images = published.images(height=16, width=16)
    features = pooled(folder, images)
    torch.testing.assert_close(scorer.encode(images), features, rtol=1e-3, atol=1e-4)
    assert (features.norm(dim=1) - 1).abs().min() > 0.05
    x = features / features.norm(dim=1, keepdim=True)
    for number in (0, 2, 4, 6, 8):
        x = published.dense(x, state, f"scoring_head.{number}")
    torch.testing.assert_close(scorer.score(images, PROMPTS), x[:, 0], rtol=1e-3, atol=1e-4)
    assert x.std() > 0.001
    report = scorer.report(images, PROMPTS)
    torch.testing.assert_close(report.values, x[:, 0], rtol=1e-3, atol=1e-4)
    assert report.unit == "aesthetic v2.5 (1 to 10)"


def test_pictures_of_another_shape_are_squashed_as_siglips_are(tiny):
    folder, _ = tiny
    scorer = aesthetic.load(str(folder), device=CPU)
    images = published.images()
    torch.testing.assert_close(scorer.encode(images), pooled(folder, images), rtol=0.02, atol=0.02)


def test_what_was_loaded_is_said(tiny):
    folder, state = tiny
    count = sum(x.numel() for x in state.values())
    said = aesthetic.load(str(folder), device=CPU).describe()
    assert said.startswith(f"SiglipVisionModel of {folder}, ")
    head = f"Head of {folder / aesthetic.FILE}, {count:,} weights, none missing"
    assert said.endswith(f" weights, none missing; {head}")


def test_prompts_are_not_read_and_a_batch_is_one_by_one(tiny):
    scorer = aesthetic.load(str(tiny[0] / aesthetic.FILE), device=CPU)
    images = published.images()
    together = scorer.score(images, PROMPTS)
    assert together.isfinite().all()
    alone = [scorer.score(images[i : i + 1], [Prompt("")]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_published_names_and_shapes_are_those_of_the_head():
    layers = aesthetic.head(published.meta_state(shapes(1152)), width=1152, where="meta")
    assert sum(x.numel() for x in layers.parameters()) == 1_321_185


def test_siglip_so400ms_sizes_are_those_of_the_head():
    """SigLIP's published config, built without memory."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    with torch.device("meta"):
        features = SiglipVisionModel(config)(torch.empty(1, 3, 384, 384)).pooler_output
        layers = aesthetic.head(published.meta_state(shapes(1152)), width=1152, where="meta")
        assert layers(features).shape == (1,)


def moved(tiny, to, state):
    """The folder with another head."""
    for file in tiny[0].iterdir():
        (to / file.name).symlink_to(file)
    (to / aesthetic.FILE).unlink()
    torch.save(state, to / aesthetic.FILE)
    return str(to)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": "scoring_head.8.bias"}, r"1 missing \(scoring_head\.8\.bias\)"),
        ({"add": "scoring_head.10.bias"}, r"1 unexpected \(scoring_head\.10\.bias\)"),
        (
            {"cut": "scoring_head.0.bias"},
            r"1 of another shape \(scoring_head\.0\.bias read as \[6\], needs \[1024\]\)",
        ),
    ],
)
def test_a_head_without_all_of_its_weights_is_one_line(tiny, tmp_path, damage, message):
    path = moved(tiny, tmp_path, published.damaged(tiny[1], **damage))
    line = rf"^scorers\.mine: aesthetic head of .*\.pth does not fit Head: {message}; give the"
    with pytest.raises(ValueError, match=line):
        load_scorer("mine", Settings(kind="aesthetic", path=path), device=CPU)


def test_a_siglip_without_all_of_its_weights_is_one_line(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    path = moved(tiny, tmp_path, tiny[1])
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    file.unlink()
    last = next(name for name in whole if name.endswith("vision_model.head.mlp.fc2.bias"))
    save_file({k: v for k, v in whole.items() if k != last}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^SigLIP of .* 1 missing \(.*head\.mlp\.fc2\.bias\)"):
        aesthetic.load(path, device=CPU)


def test_what_is_no_such_file_is_one_line(tiny, tmp_path):
    def said(path):
        return published.refusal("aesthetic", path)

    assert said("") == (
        "aesthetic head: has no default, for its licence is AGPL-3.0; set path to "
        "aesthetic_predictor_v2_5.pth of discus0434/aesthetic-predictor-v2-5 on GitHub, or to a "
        "folder with it"
    )
    (tmp_path / "empty").mkdir()
    assert said(str(tmp_path / "empty")) == (
        f"aesthetic head of {tmp_path / 'empty'}: has no aesthetic_predictor_v2_5.pth; give that "
        "file or a folder with it"
    )
    path = moved(tiny, tmp_path, {"layers.0.weight": torch.zeros(3)})
    assert "10 missing (scoring_head.0.bias, " in said(path)
    (tmp_path / aesthetic.FILE).write_text("<html>")
    assert said(path).startswith(
        f"aesthetic head of {tmp_path / aesthetic.FILE}: is no PyTorch file of plain weights; give"
    )


def test_without_a_siglip_beside_it_the_published_one_is_read(tiny, tmp_path, monkeypatch):
    torch.save(tiny[1], tmp_path / aesthetic.FILE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=rf"^image processor of {aesthetic.SIGLIP}: .*; set it to"):
        aesthetic.load(str(tmp_path), device=CPU)
