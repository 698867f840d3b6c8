"""Memory of an evaluation while its pictures pass, and what more workers of a judge give.

    python benchmarks/evaluate.py [--pictures 2000] [--workers 1,2,4] [--judge-s 0.5]

Draws so many pictures of the embedded model and judges them on a Ray cluster of this machine, with
the resident memory of the driver and of all of its processes sampled every second; then has the
same pictures, now kept, judged by an HTTP server on this machine that takes `--judge-s` for each
call, by each number of workers. Prints one JSON line.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation import plan as plans
from percent_ray.evaluation.engine import cluster, todo
from percent_ray.evaluation.plan import Plan
from percent_ray.evaluation.store import Store
from percent_ray.recipe.paths import EMBEDDED

RECIPES = Path(__file__).parents[1] / "jobs" / "recipes"
IMAGES = 16
"""Of a prompt."""
JUDGED = 320
"""Pictures of a throughput, at most."""


def file_of(folder: Path, name: str, body: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"base: {RECIPES / 'evaluate_shapes.yaml'}\nimages: {IMAGES}\n{body}\n")
    return path


def prompts_of(folder: Path, count: int) -> str:
    path = folder / f"prompts_{count}.txt"
    found = [prompt.text for prompt in read_prompts(EMBEDDED / "prompts" / "train.jsonl")]
    repeated = found * (count // len(found) + 1)
    path.write_text("\n".join(f"{text}" for text in repeated[:count]))
    return str(path)


def evaluate(plan: Plan) -> float:
    """Seconds of drawing and judging what is not on disk, without the start."""
    store = Store(plan.evaluation.home, images=plan.evaluation.images)
    with cluster(plan, store) as engine:

        async def work() -> float:
            await engine.ready()
            start = time.monotonic()
            await engine.run(todo(plan, store), say=lambda line: None, done=lambda: None)
            return time.monotonic() - start

        seconds = asyncio.run(work())
    if engine.failures:
        raise SystemExit(f"error: {next(iter(engine.failures.values()))[0]}")
    return seconds


class Memory:
    """Samples MB of this process and of all that it has started."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        own = psutil.Process()
        while not self._done.wait(1.0):
            others = 0
            for child in own.children(recursive=True):
                try:
                    if child.name().startswith("ray::"):
                        memory = child.memory_info()
                        others += memory.rss - memory.shared  # the object store is in every one
                except psutil.NoSuchProcess:
                    continue
            self.samples.append((own.memory_info().rss / 1e6, others / 1e6))

    def thirds(self) -> dict[str, Any]:
        """Medians of the second and of the last third: the first one loads."""
        third = len(self.samples) // 3
        if not third:
            raise SystemExit("error: too short to be sampled; set --pictures higher")
        parts = {
            "second_third": self.samples[third : 2 * third],
            "last_third": self.samples[-third:],
        }
        return {
            name: {
                who: round(statistics.median(sample[place] for sample in part))
                for place, who in enumerate(("driver_mb", "actors_mb"))
            }
            for name, part in parts.items()
        }


@contextmanager
def slow_judge(seconds: float) -> Iterator[str]:
    """The URL of a judge that takes so long for a call, however many it has at a time."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(seconds)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"scores": [0.5] * len(asked["images"])}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def memory(folder: Path, pictures: int) -> dict[str, Any]:
    body = f"folder: {folder / 'memory'}\nprompts: {prompts_of(folder, pictures // IMAGES)}"
    body += "\njudges: [pickscore]\nencoders: [clip]\nrows: [{recipe: %s}]"
    plan = plans.load(file_of(folder, "memory", body % (RECIPES / "shapes_pec.yaml")))
    with Memory() as sampled:
        seconds = evaluate(plan)
    return {"pictures": pictures, "seconds": round(seconds, 1), **sampled.thirds()}


def throughput(folder: Path, workers: list[int], seconds: float) -> dict[str, Any]:
    """Pictures a second by workers of a judge, of pictures that lie on the disk."""
    count = JUDGED // IMAGES
    shared = f"folder: {folder / 'kept'}\nprompts: {prompts_of(folder, count)}\nencoders: []\n"
    shared += f"rows: [{{recipe: {RECIPES / 'shapes_pec.yaml'}}}]\n"
    evaluate(plans.load(file_of(folder, "kept", f"{shared}judges: [pickscore]\nkeep: true")))
    found: dict[int, float] = {}
    with slow_judge(seconds) as url:
        for number in workers:
            name = f"slow_{number}"
            body = f"{shared}keep: true\njudges: [{name}]\njudge: {{{name}: {{workers: {number}}}}}"
            body += f"\nscorers: {{{name}: {{kind: http, path: '{url}'}}}}"
            plan = plans.load(file_of(folder, name, body))
            found[number] = JUDGED / evaluate(plan)
    ideal = IMAGES / seconds
    return {
        "judge_s": seconds,
        "pictures_per_s": {str(n): round(rate, 2) for n, rate in found.items()},
        "of_ideal": {str(n): round(rate / (n * ideal), 3) for n, rate in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="that pass; a multiple of 16")
    parser.add_argument("--workers", default="1,2,4", help="of the slow judge, a list")
    parser.add_argument(
        "--judge-s", type=float, default=0.5, help="seconds of a call of 16 pictures"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = {
            "benchmark": "evaluate",
            "memory": memory(folder, asked.pictures),
            "throughput": throughput(
                folder, [int(n) for n in asked.workers.split(",")], asked.judge_s
            ),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
