"""A hub id as a folder of this machine: the files of a part are downloaded, or are in the cache.

`owner/name@REVISION` is the model as it was at a commit, branch or tag; without one as it is now.

Everything is then read from that folder, so that no loader asks the hub for more, one file after
the other, and tries each again for minutes where there is no network.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from percent_ray.models.weights import Refused

WAIT_S = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5)
"""Longest wait for the hub to say which files a model has."""

COMMIT = 40
"""Digits of a commit's name."""

Pick = Callable[[Sequence[str]], list[str]]
"""Of the names of the files in a folder those that are wanted."""


def at_hand(path: str, subfolder: str, pick: Pick) -> Path:
    """The folder `subfolder` of `path`, which is a folder of this machine or a hub id.

    Of a hub id the files that `pick` names are downloaded into the hub's cache; where the hub does
    not answer, the cache is all there is. Raises Refused where a hub id can be had from neither,
    and OSError where a download fails.
    """
    return Path(path) / subfolder if Path(path).is_dir() else _downloaded(path, subfolder, pick)


def commit(place: Path) -> list[str]:
    """Of what `at_hand` gave of a hub id, whose models may change; none of a folder. The cache has
    `snapshots/COMMIT/SUBFOLDER`."""
    found = zip(place.parts, place.parts[1:], strict=False)
    return [name for above, name in found if above == "snapshots" and len(name) == COMMIT]


def split(path: str) -> tuple[str, str | None]:
    """The `owner/name` of a hub id and its revision, None where it has none; a folder of this
    machine as it is."""
    if Path(path).is_dir():
        return path, None
    repo, _, revision = path.partition("@")
    return repo, revision or None


@functools.cache
def _downloaded(path: str, subfolder: str, pick: Pick) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    repo, revision = split(path)
    files, why = _listed(repo, revision)
    if files is None:
        try:
            cached = snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=[]
            )
        except LocalEntryNotFoundError:
            raise Refused(
                f"{why}, not in the cache, and no folder of that name; set it to a folder"
            ) from None
        if not (Path(cached) / subfolder).is_dir():
            raise Refused(f"{why}, and the cache has no {subfolder} of it; set it to a folder")
        return Path(cached) / subfolder
    beside = [name for name in files if name.rpartition("/")[0] == subfolder]
    wanted = pick([name.rpartition("/")[2] for name in beside])
    if not wanted:
        raise Refused(f"the hub's {path} has no files of {subfolder or 'its own'}; set another")
    try:
        patterns = [f"{subfolder}/{name}".lstrip("/") for name in wanted]
        downloaded = snapshot_download(repo, revision=revision, allow_patterns=patterns)
        return Path(downloaded) / subfolder
    except GatedRepoError:
        raise Refused(
            f"the hub's {repo} is gated; ask for it on its page, then run `hf auth login`"
        ) from None


@functools.cache
def _listed(repo: str, revision: str | None) -> tuple[tuple[str, ...] | None, str]:
    """The paths of a hub model's files; or None, and why there are none. Asked once a process."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    answers: list[tuple[tuple[str, ...] | None, str]] = []

    def ask() -> None:
        try:
            found = HfApi().model_info(repo, revision=revision, timeout=WAIT_S).siblings or []
            answers.append((tuple(file.rfilename for file in found), ""))
        except OfflineModeIsEnabled:
            answers.append((None, "hub not asked, for HF_HUB_OFFLINE is set"))
        except HFValidationError:
            answers.append((None, "no hub id"))
        except RevisionNotFoundError:
            answers.append((None, f"the hub's {repo} has no revision {revision}"))
        except RepositoryNotFoundError:
            answers.append((None, "not on the hub, or private and no `hf auth login` here"))
        except Exception as error:  # of any HTTP library's kinds
            answers.append((None, f"hub not reachable ({type(error).__name__})"))

    # The time limit of a request does not hold for looking up the hub's address.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WAIT_S)
    late = f"hub not reachable (no answer in {WAIT_S:g} s; HF_HUB_ETAG_TIMEOUT sets another limit)"
    return answers[0] if answers else (None, late)
