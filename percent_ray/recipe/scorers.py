"""What has to be right about scorers alone, whoever asks them: a recipe or an evaluation."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from percent_ray.recipe.discover import SCORERS
from percent_ray.recipe.errors import short
from percent_ray.recipe.paths import DIFFUSERS, EVERY, Place, locate

if TYPE_CHECKING:
    from percent_ray.recipe.tree import Scorer

NO_FEATURES = "ENCODES = False"
"""In the module of a scorer that has no features of an image."""
NO_SCORE = "SCORES = False"
"""In that of one that has no score."""
SERVED = "SERVED = True"
"""In that of one that is behind a server."""
NO_DEFAULT = "HAS_DEFAULT = False"
"""In that of one whose path has to be set."""
MEASURED = ("latent", "pixel", "vae", "vae_centred")
"""Spaces that are measured beside those of the scorers, under names of their own."""
OF_SOME = ("color_path", "verdict", "served_model", "token_env", "timeout_s")
"""Keys of a scorer that only kinds take whose `load` has a parameter of that name."""
NAME = re.compile(r"[\w-]{1,100}", re.ASCII)
"""Of a scorer: it is a key, a folder and a column."""


def problems(scorers: Mapping[str, "Scorer"]) -> Iterator[str]:
    """One line for every problem, that says what to set."""
    for name, scorer in scorers.items():
        if not NAME.fullmatch(name) or name in MEASURED:
            yield (
                f"scorers: {short(name)} can be no name; give letters, digits, '_' and '-', at "
                f"most 100, and none of {', '.join(MEASURED)}, which are spaces of their own"
            )
            continue
        key = f"scorers.{name}.kind" if scorer.kind else "scorers"
        if problem := SCORERS.unknown(scorer.kind or name, key=key):
            yield problem
        else:
            yield from _useless(name, scorer)
        yield from _places(name, scorer)
        # Not repeated: it may be the token itself.
        if not re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", scorer.token_env, re.ASCII):
            yield (
                f"scorers.{name}.token_env: no name of an environment variable; give one of "
                "capitals, digits and '_', such as JUDGE_TOKEN"
            )


def _useless(name: str, scorer: "Scorer") -> Iterator[str]:
    """Keys that are set and that its kind does not take."""
    kind = scorer.kind or name
    for key in OF_SOME:
        usual = type(scorer).model_fields[key].default
        if getattr(scorer, key) != usual and key not in SCORERS.parameters(kind):
            yield f"scorers.{name}.{key}: a {kind} has no use for it; leave it out"


def _places(name: str, scorer: "Scorer") -> Iterator[str]:
    """What is wrong with the paths of one."""
    kind = scorer.kind or name
    known = kind in SCORERS.names()
    served = known and SCORERS.has(kind, SERVED)
    if served and not scorer.path:
        yield f"scorers.{name}.path: a {kind} has no default; set it to the URL of its server"
    elif known and SCORERS.has(kind, NO_DEFAULT) and not scorer.path:
        yield f"scorers.{name}.path: a {kind} has no default; set it to its file or folder"
    takes: tuple[Place, ...] = ("URL",) if served else EVERY
    for key, path, kinds in (
        ("path", scorer.path, takes),
        ("color_path", scorer.color_path, DIFFUSERS),
    ):
        try:
            if path:
                locate(path, takes=kinds)
        except ValueError as error:
            yield f"scorers.{name}.{key}: {error}"
