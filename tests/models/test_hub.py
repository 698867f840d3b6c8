"""Hub ids: from a hub on this machine, from the hub's cache, and from nowhere.

Each is tried in a process of its own, for which the environment says where hub and cache are."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.models.test_folders import variant
from tests.tiny import build_clip, build_sd3

REPO = "owner/name"
COMMIT = "0" * 40
POLICY = """
import torch
from percent_ray.models import sd3
from tests.tiny import sd3_config
policy = sd3.load_policy(sd3_config("owner/name"), seed=0, device=torch.device("cpu"), text=True)
print(policy.describe())
print(sd3.load_decoder(sd3_config("owner/name"), device=torch.device("cpu")).describe())
"""
PARTS = """
from percent_ray.models import hub, weights
print(hub.at_hand("owner/name", "", weights.small))
for part in ("transformer", "vae", "text_encoder", "text_encoder"):
    place = hub.at_hand("owner/name", part, weights.needed)
    print(place.name, *sorted(file.name for file in place.iterdir()))
"""
NOWHERE = "http://127.0.0.1:9"
"""Where no hub is: the connection is refused."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """With a transformer in a variant alone, and with files that no part needs, as on the hub."""
    folder = Path(build_sd3(tmp_path_factory.mktemp("hub")))
    variant(folder / "transformer", "fp16")
    shutil.copy(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors",
    )
    (folder / "flux1-dev.safetensors").write_text("23 GB")
    return folder


def cached(folder: Path, cache: Path) -> None:
    """`folder` as the hub's library lays a download out."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def run(code: str, cache: Path, **environment: str) -> tuple[subprocess.CompletedProcess, float]:
    """The process, and its seconds."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_HUB_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
    )
    return done, time.monotonic() - start


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The few answers of the hub that a download needs, and the paths of the files it was sent."""
    sent: list[str] = []
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}

    class Answers(BaseHTTPRequestHandler):
        def _file(self) -> bytes | None:
            name = self.path.partition(f"/{REPO}/resolve/{COMMIT}/")[2]
            content = files[name].read_bytes() if name in files else None
            self.send_response(200 if content is not None else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content

        def do_HEAD(self) -> None:
            self._file()

        def do_GET(self) -> None:
            if self.path.endswith("/revision/gone"):
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not self.path.startswith("/api/"):
                sent.append(self.path.partition(f"/{COMMIT}/")[2])
                self.wfile.write(self._file() or b"")
                return
            rows = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40}
                for n, f in files.items()
            ]
            info = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            answer = json.dumps(rows if "/tree/" in self.path else info).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()


def test_what_a_part_needs_is_downloaded_once_and_then_read_from_the_cache(pipeline, tmp_path):
    with hub(pipeline) as (address, sent):
        online, _ = run(PARTS, tmp_path, HF_ENDPOINT=address)
        assert online.returncode == 0, online.stderr
        assert sorted(sent) == [
            "model_index.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
        sent.clear()
        again, _ = run(PARTS, tmp_path, HF_ENDPOINT=address)
        assert not sent
    offline, _ = run(PARTS, tmp_path, HF_ENDPOINT=NOWHERE)
    assert online.stdout == again.stdout == offline.stdout
    assert "\ntransformer config.json diffusion_pytorch_model.fp16.safetensors\n" in online.stdout


def test_a_hub_id_with_a_revision_is_the_model_as_it_was(pipeline, tmp_path):
    code = PARTS.replace("owner/name", "owner/name@v1")
    with hub(pipeline) as (address, sent):
        online, _ = run(code, tmp_path, HF_ENDPOINT=address)
        assert online.returncode == 0, online.stderr
        assert "transformer/diffusion_pytorch_model.fp16.safetensors" in sent
        gone, _ = run(PARTS.replace("name", "name@gone"), tmp_path, HF_ENDPOINT=address)
    assert (tmp_path / "models--owner--name/refs/v1").read_text() == COMMIT
    offline, _ = run(code, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout
    now, _ = run(PARTS, tmp_path, HF_HUB_OFFLINE="1")
    assert "not in the cache" in now.stderr, "of v1 alone"
    assert "Refused: the hub's owner/name has no revision gone, not in" in gone.stderr


def test_a_part_that_the_hub_does_not_have_is_one_line(pipeline, tmp_path):
    code = PARTS.replace('"transformer"', '"unet"')
    with hub(pipeline) as (address, _):
        done, _ = run(code, tmp_path, HF_ENDPOINT=address)
    assert done.stderr.splitlines()[-1].endswith(
        "Refused: the hub's owner/name has no files of unet; set another"
    )


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}])
def test_a_cache_that_was_laid_by_hand_is_enough(pipeline, tmp_path, environment):
    cached(pipeline, tmp_path)
    done, _ = run(POLICY, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    policy, decoder = done.stdout.splitlines()
    assert policy.startswith("policy: SD3Transformer2DModel of owner/name, ")
    assert "; read from the fp16 variant: transformer;" in policy
    assert decoder.startswith("decoder: AutoencoderKL of owner/name, ")
    assert all(f"; commit {COMMIT} of the hub" in line for line in (policy, decoder))


def test_a_hub_that_never_answers_is_asked_once(pipeline, tmp_path):
    cached(pipeline, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        done, seconds = run(
            PARTS, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{deaf.getsockname()[1]}"
        )
        deaf.settimeout(0.1)
        deaf.accept()
        with pytest.raises(TimeoutError):
            deaf.accept()
    assert done.returncode == 0, done.stderr
    assert 5 <= seconds < 60, "and not again for each part"


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"HF_ENDPOINT": NOWHERE}, "hub not reachable (ConnectError)"),
        ({"HF_HUB_OFFLINE": "1"}, "hub not asked, for HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_id_from_nowhere_is_one_line_at_once(tmp_path, environment, why):
    done, seconds = run(PARTS, tmp_path, **environment)
    assert done.stderr.splitlines()[-1].endswith(
        f"Refused: {why}, not in the cache, and no folder of that name; set it to a folder"
    )
    assert seconds < 60, "no retries for minutes"


def test_a_cache_without_a_part_says_so(pipeline, tmp_path):
    cached(pipeline, tmp_path)
    shutil.rmtree(tmp_path / "models--owner--name" / "snapshots" / COMMIT / "vae")
    done, _ = run(PARTS, tmp_path, HF_HUB_OFFLINE="1")
    assert done.stderr.splitlines()[-1].endswith(
        "HF_HUB_OFFLINE is set, and the cache has no vae of it; set it to a folder"
    )


def test_a_pickscore_without_its_processor_is_refused_before_its_weights_are_read(tmp_path):
    folder = Path(build_clip(tmp_path / "pickscore"))
    for file in (*folder.glob("*processor*"), *folder.glob("tokenizer*")):
        file.unlink()
    (folder / "model.safetensors").write_text("nobody reads this")
    code = f"""
import torch
from percent_ray.recipe.tree import Scorer
from percent_ray.scorers.base import load_scorer
load_scorer("pickscore", Scorer(path={str(folder)!r}), device=torch.device("cpu"))
"""
    done, _ = run(code, tmp_path, HF_ENDPOINT=NOWHERE)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ValueError: scorers.pickscore: tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K: hub not"
    )
