"""imagereward.py on a random tiny model under the published names, against BLIP's sums in plain
torch."""

import pytest
import torch
from torch.nn.functional import conv2d, gelu

from percent_ray.recipe.tree import Scorer as Settings
from percent_ray.scorers import imagereward
from percent_ray.scorers.base import load_scorer
from percent_ray.types import Prompt
from tests.scorers import published

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red cat"), Prompt(""), Prompt("Two dogs " * 300)]
HEADS = 2


def bert_tokenizer():
    """A BertTokenizer of single letters, with BERT's special tokens in its order."""
    from transformers import BertTokenizer

    letters = [chr(x) for x in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def attention(name, width, inside):
    return {
        **published.layer(f"{name}.self.query", width, width),
        **published.layer(f"{name}.self.key", width, inside),
        **published.layer(f"{name}.self.value", width, inside),
        **published.layer(f"{name}.output.dense", width, width),
        **published.norm(f"{name}.output.LayerNorm", width),
    }


def shapes(*, vision, text, layers, patch, grid, vocabulary, positions):
    """Every name and shape of ImageReward.pt."""
    image, words = "blip.visual_encoder", "blip.text_encoder"
    found = {
        f"{image}.cls_token": (1, 1, vision),
        f"{image}.pos_embed": (1, grid**2 + 1, vision),
        f"{image}.patch_embed.proj.weight": (vision, 3, patch, patch),
        f"{image}.patch_embed.proj.bias": (vision,),
        **published.norm(f"{image}.norm", vision),
        f"{words}.embeddings.position_ids": (1, positions),
        f"{words}.embeddings.word_embeddings.weight": (vocabulary, text),
        f"{words}.embeddings.position_embeddings.weight": (positions, text),
        **published.norm(f"{words}.embeddings.LayerNorm", text),
        **published.layer("blip.vision_proj", 256, vision),
        **published.layer("blip.text_proj", 256, text),
    }
    for block in (f"{image}.blocks.{i}" for i in range(layers[0])):
        found |= published.norm(f"{block}.norm1", vision) | published.norm(f"{block}.norm2", vision)
        found |= published.layer(f"{block}.attn.qkv", 3 * vision, vision)
        found |= published.layer(f"{block}.attn.proj", vision, vision)
        found |= published.layer(f"{block}.mlp.fc1", 4 * vision, vision)
        found |= published.layer(f"{block}.mlp.fc2", vision, 4 * vision)
    for layer in (f"{words}.encoder.layer.{i}" for i in range(layers[1])):
        found |= attention(f"{layer}.attention", text, text)
        found |= attention(f"{layer}.crossattention", text, vision)
        found |= published.layer(f"{layer}.intermediate.dense", 4 * text, text)
        found |= published.layer(f"{layer}.output.dense", text, 4 * text)
        found |= published.norm(f"{layer}.output.LayerNorm", text)
    widths = {0: (1024, text), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    for number, (out, inside) in widths.items():
        found |= published.layer(f"mlp.layers.{number}", out, inside)
    return found


IMAGEREWARD = shapes(
    vision=1024, text=768, layers=(24, 12), patch=16, grid=14, vocabulary=30524, positions=512
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the published file and a tokenizer, and the state dict in the file."""
    folder = tmp_path_factory.mktemp("imagereward")
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    state = published.random_state(
        shapes(
            vision=32,
            text=16,
            layers=(2, 2),
            patch=8,
            grid=2,
            vocabulary=len(tokenizer) + 2,
            positions=40,
        )
    )
    for name in state:
        if name.startswith("mlp.layers.") and name.endswith("weight"):
            state[name] /= 0.3 * state[name].shape[1] ** 0.5  # rewards near 1
    torch.save(state, folder / imagereward.FILE)
    return folder, state


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Those of the tiny model."""
    few = {"num_hidden_layers": 2, "num_attention_heads": HEADS}
    vision = {"hidden_size": 32, "intermediate_size": 128, "image_size": 16, "patch_size": 8}
    text = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "vocab_size": len(bert_tokenizer()) + 2,
        "max_position_embeddings": 40,
    }
    monkeypatch.setattr(imagereward, "VISION", {**imagereward.VISION, **few, **vision})
    monkeypatch.setattr(imagereward, "TEXT", {**imagereward.TEXT, **few, **text})


def image_tokens(state, pixels):
    name = "blip.visual_encoder"
    weight, bias = (state[f"{name}.patch_embed.proj.{x}"] for x in ("weight", "bias"))
    patches = conv2d(pixels, weight, bias, stride=8).flatten(2).mT
    x = torch.cat([state[f"{name}.cls_token"].expand(len(pixels), 1, -1), patches], dim=1)
    x = x + state[f"{name}.pos_embed"]
    for block in (f"{name}.blocks.{i}" for i in range(2)):
        y = published.normed(x, state, f"{block}.norm1", eps=1e-6)
        y = published.dense(y, state, f"{block}.attn.qkv").chunk(3, dim=-1)
        x = x + published.dense(published.attended(*y, HEADS), state, f"{block}.attn.proj")
        y = published.normed(x, state, f"{block}.norm2", eps=1e-6)
        y = gelu(published.dense(y, state, f"{block}.mlp.fc1"))
        x = x + published.dense(y, state, f"{block}.mlp.fc2")
    return published.normed(x, state, f"{name}.norm", eps=1e-6)


def joined(state, name, new, old):
    """BERT's end of a part: a linear layer, what came in, a norm."""
    y = published.dense(new, state, f"{name}.output.dense") + old
    return published.normed(y, state, f"{name}.output.LayerNorm", eps=1e-12)


def attends(state, name, x, to):
    query = published.dense(x, state, f"{name}.self.query")
    key, value = (published.dense(to, state, f"{name}.self.{part}") for part in ("key", "value"))
    return joined(state, name, published.attended(query, key, value, HEADS), x)


def reward(state, image, text):
    """Of one image's tokens [1, L, D] and one text, which is not padded."""
    ids = bert_tokenizer()(text, truncation=True, max_length=35).input_ids
    name = "blip.text_encoder"
    x = state[f"{name}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
    x = published.normed(x, state, f"{name}.embeddings.LayerNorm", eps=1e-12)[None]
    for layer in (f"{name}.encoder.layer.{i}" for i in range(2)):
        x = attends(state, f"{layer}.attention", x, x)
        x = attends(state, f"{layer}.crossattention", x, image)
        y = gelu(published.dense(x, state, f"{layer}.intermediate.dense"))
        x = joined(state, layer, y, x)
    x = x[0, 0]
    for number in (0, 2, 4, 6, 7):
        x = published.dense(x, state, f"mlp.layers.{number}")
    return (x[0] - 0.16717362830052426) / 1.0333394966054072


def prepared(images):
    """ImageReward's preprocessing: torchvision's, of a picture of PIL."""
    from PIL import Image
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        Resize,
        ToTensor,
    )

    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    steps = Compose(
        [
            Resize(16, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(16),
            ToTensor(),
            Normalize(mean, std),
        ]
    )
    return torch.stack([steps(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images])


def test_preprocessing_is_the_published_one_to_a_level(tiny):
    scorer = imagereward.load(str(tiny[0]), device=CPU)
    for height, width in ((40, 24), (17, 31), (16, 16)):
        images = published.images(height=height, width=width)
        difference = (scorer._pixels(images) - prepared(images)).abs()
        level = 1 / 255 / 0.26
        assert difference.max() <= 1.01 * level
        assert difference.mean() <= 0.2 * level


def test_score_report_and_features_are_blips(tiny):
    folder, state = tiny
    scorer = imagereward.load(str(folder), device=CPU)
    images = published.images(height=16, width=16)
    tokens = image_tokens(state, prepared(images))
    torch.testing.assert_close(scorer.encode(images), tokens[:, 0], rtol=1e-3, atol=1e-4)
    rewards = [reward(state, tokens[i : i + 1], PROMPTS[i].text) for i in range(3)]
    expected = torch.stack(rewards)
    torch.testing.assert_close(scorer.score(images, PROMPTS), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01
    report = scorer.report(images, PROMPTS)
    torch.testing.assert_close(report.values, expected, rtol=1e-3, atol=1e-4)
    assert report.unit == "ImageReward"


def test_what_was_loaded_and_what_was_not_is_said(tiny):
    folder, state = tiny
    unused = {name for name in state if "_proj." in name or name.endswith("position_ids")}
    count = sum(x.numel() for name, x in state.items() if name not in unused)
    assert imagereward.load(str(folder), device=CPU).describe() == (
        f"ImageReward: Blip of {folder / imagereward.FILE}, {count:,} weights, none missing, 5 of "
        f"the file's tensors not needed; tokenizer of {folder}"
    )


def test_texts_of_any_length_and_a_batch_of_any_size(tiny):
    scorer = imagereward.load(str(tiny[0] / imagereward.FILE), device=CPU)
    prompts = [Prompt(""), Prompt("cat"), Prompt("cat " * 600)]
    images = published.images()
    together = scorer.score(images, prompts)
    assert together.isfinite().all()
    alone = [scorer.score(images[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[2:], scorer.score(images[2:], [Prompt("cat " * 500)]))
    assert (together[2:] - scorer.score(images[2:], [Prompt("dog " * 600)])).abs() > 1e-3


def test_the_published_names_and_shapes_are_those_of_the_model(monkeypatch):
    monkeypatch.undo()
    blip = imagereward.model(published.meta_state(IMAGEREWARD), where="ImageReward of meta")
    assert blip.text.config.num_attention_heads == 12
    assert blip.vision.config.num_attention_heads == 16
    assert sum(x.numel() for x in blip.parameters()) == 446_206_689


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": "mlp.layers.7.bias"}, r"1 missing \(mlp\.layers\.7\.bias\)"),
        (
            {"drop": "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"},
            r"1 missing \(blip\.text_encoder\.encoder\.layer\.1\.crossattention\.self\.key\.weight",
        ),
        ({"add": "mlp.layers.8.weight"}, r"1 unexpected \(mlp\.layers\.8\.weight\)"),
        (
            {"cut": "blip.visual_encoder.norm.bias"},
            r"1 of another shape \(blip\.visual_encoder\.norm\.bias read as \[6\], needs \[32\]\)",
        ),
    ],
)
def test_a_file_without_all_of_its_weights_is_one_line(tiny, tmp_path, damage, message):
    bert_tokenizer().save_pretrained(tmp_path)
    torch.save(published.damaged(tiny[1], **damage), tmp_path / imagereward.FILE)
    line = rf"^scorers\.mine: ImageReward of .*\.pt does not fit Blip: {message}"
    with pytest.raises(ValueError, match=line):
        load_scorer("mine", Settings(kind="imagereward", path=str(tmp_path)), device=CPU)


def test_what_is_no_such_file_is_one_line(tmp_path):
    bert_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / imagereward.FILE

    def said(path=str(tmp_path)):
        return published.refusal("imagereward", path)

    assert said() == (
        f"ImageReward of {tmp_path}: has no {file.name}; give that file or a folder with it"
    )
    torch.save({"state_dict": {"x": torch.zeros(2)}}, file)
    assert said().startswith(f"ImageReward of {file}: holds no state dict; give the file")
    torch.save({"x": torch.zeros(2)}, file)
    assert "missing (blip.text_encoder.embeddings.LayerNorm.bias, " in said()
    file.write_text("version https://git-lfs")
    assert said().startswith(f"ImageReward of {file}: is no PyTorch file of plain weights; give")


def test_without_a_tokenizer_beside_it_berts_is_read(tiny, tmp_path, monkeypatch):
    (tmp_path / imagereward.FILE).symlink_to(tiny[0] / imagereward.FILE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=rf"^tokenizer of {imagereward.TOKENIZER}: .*; set it to"):
        imagereward.load(str(tmp_path), device=CPU)
