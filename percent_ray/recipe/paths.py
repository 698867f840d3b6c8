"""Where models, scorers and prompts are. `shapes/NAME` is the embedded world's, in this package."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

EMBEDDED = Path(__file__).parents[1] / "shapes"

Place = Literal["folder", "hub id", "weights file", "URL"]
"""What a path of a model or scorer can be."""
DIFFUSERS: tuple[Place, ...] = ("folder", "hub id")
"""What `from_pretrained` takes."""
EVERY: tuple[Place, ...] = ("folder", "hub id", "weights file", "URL")


def locate(path: str, takes: Collection[Place] = DIFFUSERS) -> str:
    """What `path` stands for: a folder or file of this machine, a hub id or a URL as it is.

    Raises ValueError where it is not there, and where it is none of `takes`; for a URL that is not
    http or https, has no host, or holds a password.
    """
    place, found = _place(path)
    if place == "URL" and (problem := _url_problem(path)):
        raise ValueError(problem)
    if place not in takes:
        raise ValueError(f"{path} is a {place}; give a {' or a '.join(takes)}")
    if place == "folder" and not Path(found).is_dir():
        raise ValueError(f"no folder {found}; give a folder or a hub id such as owner/name")
    return found


def locate_pipeline(path: str) -> str:
    """`locate` of a diffusers pipeline.

    A single file of one has no configs and no tokenizers, and diffusers looks for them on the hub:
    that is for its owner to do once, not for every role of a run.
    """
    if _place(path)[0] == "weights file":
        raise ValueError(
            f"{path} is a single file; make a folder of it where the hub can be reached: python -c "
            f'"import diffusers; diffusers.KIND.from_single_file({path!r}).save_pretrained'
            "('FOLDER')\", where KIND is StableDiffusion3Pipeline or FluxPipeline, and give FOLDER"
        )
    return locate(path)


def expanded(path: str) -> Path:
    """`path` with a home folder in the place of its ~. Raises ValueError where there is no such
    user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: no such user; give the whole path") from None


def locate_prompts(path: str) -> Path:
    """The prompt file of `path`."""
    if path.startswith("shapes/"):
        return EMBEDDED / "prompts" / path.removeprefix("shapes/")
    return expanded(path)


def _url_problem(path: str) -> str | None:
    """What is wrong with a URL. A password is not repeated: recipes are written and logged."""
    try:
        parts = urlsplit(path)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "no URL; give one such as https://judge:8000/v1"
    if parts.username is not None:
        return "a URL that holds a user name or password; leave it out and set token_env"
    if parts.scheme not in ("http", "https") or not host:
        return f"{path} is no URL of a server; give one such as https://judge:8000/v1"
    return None


def _place(path: str) -> tuple[Place, str]:
    """What kind of place a path names; a folder need not be there."""
    if "://" in path:
        return "URL", path
    if path.startswith("shapes/"):
        return "folder", str(EMBEDDED / "weights" / path.removeprefix("shapes/"))
    local = expanded(path)
    if local.is_file():
        return "weights file", str(local)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        return "folder", str(local)
    return "hub id", path
