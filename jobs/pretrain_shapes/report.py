"""Measures the shipped models on scenes and prompts held out, and draws a grid of pictures."""

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline
from numpy.typing import NDArray
from transformers import CLIPModel, Dinov2Model

from jobs.pretrain_shapes import clip, dino, preferences, tiny, vae
from jobs.pretrain_shapes.common import HELD_OUT_SEED, psnr, to_unit
from jobs.pretrain_shapes.flow import T5_TOKENS, load
from jobs.pretrain_shapes.views import augment
from percent_ray.objective.diversity import vendi
from percent_ray.scorers.geneval import judge
from percent_ray.shapes import scenes
from percent_ray.shapes.detect import detect

STEPS: Final = 20
GUIDANCE: Final = 1.0
"""The ODE steps and the guidance at which the flow model is measured and meant to be used: its own
guidance is distilled into it."""


def generate(
    pipe: StableDiffusion3Pipeline, prompts: list[str], *, seed: int, steps: int = STEPS
) -> NDArray[np.uint8]:
    """One picture a prompt, uint8 [N,3,32,32]; the noise is a function of ``seed``."""
    made: list[NDArray[np.uint8]] = []
    for start in range(0, len(prompts), 60):
        output: Any = pipe(
            prompts[start : start + 60],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            height=scenes.SIZE,
            width=scenes.SIZE,
            max_sequence_length=T5_TOKENS,
            generator=torch.Generator().manual_seed(seed + start),
            output_type="np",
        )
        made.append((output.images * 255).round().astype(np.uint8).transpose(0, 3, 1, 2))
    return np.concatenate(made)


def geneval(
    pipe: StableDiffusion3Pipeline, per_task: int, steps: int = STEPS
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Share of right pictures in each task and their mean, with the pictures [6*per_task,...]."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    records = [scenes.sample_metadata(rng, task) for task in scenes.TASKS for _ in range(per_task)]
    prompts = [record["prompt"] for record in records]
    images = generate(pipe, prompts, seed=HELD_OUT_SEED, steps=steps)
    right = [judge(detect(i), record) for i, record in zip(images, records, strict=True)]
    means = np.array(right, float).reshape(len(scenes.TASKS), per_task).mean(axis=1)
    shares = dict(zip(scenes.TASKS, (round(float(mean), 4) for mean in means), strict=True))
    return shares | {"overall": round(float(means.mean()), 4)}, images


@torch.no_grad()
def mean_vendi(
    pipe: StableDiffusion3Pipeline, encoder: Dinov2Model, prompts: list[str], images: int = 30
) -> float:
    """Vendi score in the encoder's space of ``images`` pictures a prompt, mean over prompts."""
    scores: list[float] = []
    for index, prompt in enumerate(prompts):
        made = generate(pipe, [prompt] * images, seed=1000 * (index + 1))
        scores.append(vendi(dino.image_features(encoder, to_unit(made))))
    return float(np.mean(scores))


def grid(images: NDArray[np.uint8], columns: int, path: Path, zoom: int = 3) -> None:
    """Writes pictures uint8 [N,3,H,W] as a PNG of ``columns`` a row."""
    n, _, height, width = images.shape
    rows = n // columns
    tiled = images[: rows * columns].reshape(rows, columns, 3, height, width)
    sheet = tiled.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    size = (columns * width * zoom, rows * height * zoom)
    cv2.imwrite(str(path), cv2.resize(sheet[..., ::-1], size, interpolation=cv2.INTER_NEAREST))


@torch.no_grad()
def measure(folder: Path, per_task: int = 100) -> dict[str, Any]:
    """The quality of every model under ``folder``; writes ``samples.png`` beside that folder."""
    torch.manual_seed(HELD_OUT_SEED)
    autoencoder = AutoencoderKL.from_pretrained(folder / "sd3/vae", dtype=torch.float32)
    held_out, _ = scenes.dataset(256, HELD_OUT_SEED)
    report: dict[str, Any] = {
        "vae_psnr_db": round(psnr(held_out, vae.reconstruct(autoencoder, held_out)), 2)
    }
    small = AutoencoderTiny.from_pretrained(folder / "tiny", torch_dtype=torch.float32)
    report["tiny_psnr_db"] = round(tiny.agreement(small, autoencoder, held_out), 2)
    ranker = CLIPModel.from_pretrained(folder / "pickscore", dtype=torch.float32).eval()
    source = preferences.PairSource(1000, HELD_OUT_SEED, autoencoder)
    by_kind = preferences.accuracy(ranker, source, 200)
    report["preference_accuracy"] = {kind: round(value, 4) for kind, value in by_kind.items()}
    report["preference_accuracy"]["mean"] = round(float(np.mean(list(by_kind.values()))), 4)
    one = to_unit(held_out[:200])
    two = augment(one)
    words = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32).eval()
    seer = Dinov2Model.from_pretrained(folder / "dino", dtype=torch.float32).eval()
    report["retrieval"] = {
        "clip": clip.retrieval(clip.image_features(words, one), clip.image_features(words, two)),
        "dino": clip.retrieval(dino.image_features(seer, one), dino.image_features(seer, two)),
    }
    pipe = load(folder / "sd3")
    report["ode"] = {"steps": STEPS, "guidance": GUIDANCE}
    report["geneval"], images = geneval(pipe, per_task)
    columns = min(per_task, 16)
    shown = images.reshape(6, per_task, *images.shape[1:])[:, :columns]
    grid(shown.reshape(-1, *images.shape[1:]), columns, folder.parent / "samples.png")
    prompts = [scenes.all_metadata(task)[0]["prompt"] for task in scenes.TASKS]
    report["vendi_dino"] = round(mean_vendi(pipe, seer, prompts), 2)
    return report
