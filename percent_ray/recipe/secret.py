"""The credentials in a tracking URI, which are for MLflow alone: what is written, printed or sent
to another process has the URI without them."""

import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field, PlainSerializer

SHORT = 3
"""Letters of a query's value that is no secret, such as a 1 or yes."""
_USER = re.compile(r"://([^/].*)@")
"""User and password. To the last '@': a password may have one, or a '/', that is not escaped."""


def public(uri: str) -> str:
    """`uri` without user, password, query and fragment."""
    bare = _USER.sub("://", uri)
    return re.split(r"[?#]", bare, maxsplit=1)[0] if "://" in bare else bare


def hide(text: str, uri: str) -> str:
    """`text` of a library that has been given `uri`, without what `public` takes out of it."""
    text = text.replace(uri, public(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(uri: str) -> Iterator[str]:
    found = _USER.search(uri)
    user, password = found[1].partition(":")[::2] if found else ("", "")
    query = _USER.sub("://", uri).partition("?")[2]
    values = [pair.partition("=")[2] for pair in re.split("[&#]", query)]
    # A token may stand where a user name does.
    for secret in (password or user, *(value for value in values if len(value) > SHORT)):
        yield from {secret, unquote(secret)} - {""}


Uri = Annotated[str, PlainSerializer(public), Field(repr=False)]
"""A URI that may hold credentials, which no dump of a recipe has."""
