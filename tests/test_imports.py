"""DESIGN's rules about who may import what, and about the shape of the code."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "percent_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = MODULES + sorted((ROOT / "jobs").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
HEAVY = {
    *("ray", "deepspeed", "diffusers", "transformers", "peft", "mlflow", "pyarrow", "matplotlib"),
    *("cv2", "pydantic", "rich", "yaml", "scipy"),
}


ROOMS = [
    *("metrics", "files", "job", "pages", "shapes", "flow", "objective", "types", "recipe"),
    *("models", "scorers", "data", "learn", "monitor", "slots", "lock", "shape", "roles", "loop"),
    *("recover", "runtime", "run"),
    *("export", "evaluation", "report", "comparison", "preview", "study"),
]
"""Folders and files of the package, the lowest first."""


def imports(path):
    """Every module that a file imports, wherever in it: `import a.b`, `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(names):
    return {name.partition(".")[0] for name in names}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", ["flow", "objective"])
def test_the_pure_folders_import_torch_and_nothing_heavier(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        found = imports(path)
        assert not top(found) & HEAVY, name_of(path)
        own = {name for name in found if name.startswith("percent_ray.")}
        allowed = ("percent_ray.flow", "percent_ray.objective", "percent_ray.types")
        assert all(name.startswith(allowed) for name in own), (name_of(path), own)


def loaded(code):
    """Every module that a fresh process has after these lines, less those before `old`."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; old = set()\n{code}\nprint(*(set(sys.modules) - old))",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("folder", ["flow", "objective"])
def test_the_pure_folders_load_nothing_heavier_than_torch(folder):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (PACKAGE / folder).rglob("*.py")
        if path.stem != "__init__"
    ]
    found = loaded(f"import torch; old = set(sys.modules); import {', '.join(names)}")
    assert not top(found) & HEAVY
    assert "percent_ray.recipe" not in found


def test_loading_a_recipe_loads_nothing_heavier_than_torch():
    """torch: a method is a dataclass in the file that computes it."""
    heavy = HEAVY - {"pydantic", "yaml", "rich"}
    assert not top(loaded("import percent_ray.recipe.command_line")) & heavy


@pytest.mark.parametrize(
    ("module", "homes"),
    [
        (
            "ray",
            (
                "percent_ray/runtime/",
                "percent_ray/evaluation/engine.py",
                "percent_ray/comparison/runs.py",
            ),
        ),
        ("deepspeed", ("percent_ray/learn/",)),
        ("mlflow", ("percent_ray/monitor/tracking.py",)),
        ("jobs", ()),
    ],
)
def test_a_heavy_module_has_its_home(module, homes):
    users = {name_of(path) for path in MODULES if module in top(imports(path))}
    assert not [user for user in users if not user.startswith(homes)]


def test_imports_go_down_from_room_to_room():
    """Every import, also one inside a function, is of the same room or of one before it."""
    for path in MODULES:
        place = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if place == "__init__":
            continue
        reached = {name.split(".")[1] for name in imports(path) if name.startswith("percent_ray.")}
        lower = ROOMS[: ROOMS.index(place) + 1]
        assert reached <= set(lower), (name_of(path), reached - set(lower))


def test_models_and_trackers_are_imported_where_they_are_used():
    """An actor that only moves metadata starts in about a second."""
    late = {"diffusers", "transformers", "peft", "mlflow", "matplotlib", "rich"}
    for path in MODULES:
        body = ast.parse(path.read_text()).body
        now = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in now
            for alias in node.names
        }
        assert not top(names) & late, name_of(path)


def test_the_loop_knows_roles_and_no_cluster():
    found = top(imports(PACKAGE / "loop.py"))
    assert not found & {"ray", "deepspeed", "mlflow", "torch"}
    assert len((PACKAGE / "loop.py").read_text().splitlines()) < 250


def test_every_init_is_a_docstring_at_most():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) <= 1, name_of(path)
        assert all(isinstance(node, ast.Expr) for node in body), name_of(path)


def test_no_utils():
    assert not [name_of(path) for path in CODE if path.stem in ("utils", "helpers", "misc")]


def test_no_long_file():
    files = [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_no_long_function():
    long = {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    long[f"{name_of(path)}:{node.name}"] = length
    assert not long


def tracked():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_registry_host_and_no_machine_path_is_tracked():
    hosts = "pypi" + r"\.org|python" + r"hosted\.org|index" + r"-url|download\.py" + r"torch\.org"
    paths = r"(?<![\w.~/-])/(?:ro" + r"ot|ho" + r"me|Us" + r"ers|wo" + r"rk|op" + r"t)/\w"
    pattern = re.compile(f"{hosts}|{paths}")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found
