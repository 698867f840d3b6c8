"""The one way to a judge behind an HTTP server: a JSON request, a checked JSON answer, and one line
for every way in which that goes wrong.

Certificates are verified (`SSL_CERT_FILE` names a private authority's), redirects are not followed,
nothing is unpickled. Tries after a failure are the recipe's (`scorers.NAME.retries`).
"""

import base64
import io
import ipaddress
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from percent_ray.recipe.paths import locate
from percent_ray.scorers.base import Unanswered

MOST_BYTES = 2**20
"""Of an answer; the scores of 1,000 images take 20,000."""
BUSY = (429, 502, 503, 504)
"""Statuses of a server that is asked too often, or that does not run yet."""
EXCERPT = 160
"""Characters of an answer that an error line shows."""
LARGEST = torch.finfo(torch.float32).max
# Below a warning the client logs a server's words, which may repeat the token.
for client in ("httpx2", "httpcore2"):
    logging.getLogger(client).setLevel(logging.WARNING)


class Server:
    """A server's URL, the token for it and how long to wait. May be asked by several threads."""

    def __init__(self, url: str, *, token_env: str, timeout_s: float) -> None:
        """`token_env` names the environment variable of the bearer token, which is sent where it
        is not empty and is never in an error.

        Raises ValueError for what is no URL, for a variable that is not set or holds no token, and
        where a token would travel unencrypted to another machine.
        """
        if not url:
            raise ValueError("has no path; set path to the server's URL")
        self._url = httpx2.URL(locate(url, takes=("URL",)))
        self._timeout_s = timeout_s
        self._token_env = token_env
        self._token = _token(token_env) if token_env else ""
        if self._token and self._url.scheme != "https" and not _is_loopback(self._url.host):
            raise ValueError(
                f"the token of {token_env} would travel unencrypted to {self._url.host}; set path "
                "to an https:// URL, or leave token_env empty"
            )
        headers = {"Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        # A proxy of the environment is another machine.
        options: dict[str, Any] = {}
        if _is_loopback(self._url.host):
            authority = os.environ.get("SSL_CERT_FILE") or None
            options = {"trust_env": False, "verify": ssl.create_default_context(cafile=authority)}
        self._client = httpx2.Client(
            headers=headers, timeout=timeout_s, follow_redirects=False, **options
        )

    def ask(self, body: Mapping[str, Any], *, path: str = "") -> Any:
        """The parsed answer to a POST of `body` to the URL with `path` at its end.

        Raises ValueError in one line: no answer in time, an answer over `MOST_BYTES`, a redirect,
        any status but success, what is not JSON; and of its kinds Unanswered: no connection, one
        that broke off, a status of `BUSY`.
        """
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path) if path else self._url
        # Errors of the client hold the request, and with it the token: they end here.
        try:
            with self._client.stream("POST", url, json=body) as response:
                content = self._read(response)
        except httpx2.TimeoutException:
            raise self._late() from None
        except httpx2.ConnectError as error:
            said = self._shown(str(error))
            raise Unanswered(
                f"{self._place}: no connection ({said}); start the server or set path"
            ) from None
        except httpx2.TransportError as error:
            said = self._shown(str(error))
            raise Unanswered(f"{self._place}: broke off ({type(error).__name__}: {said})") from None
        if response.status_code in BUSY:
            raise Unanswered(
                f"{self._place}: answered {response.status_code}: {self._excerpt(content)}"
            )
        if problem := self._refusal(response, content):
            raise self._wrong(problem)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self._wrong(f"answered no JSON but {self._excerpt(content)}") from None

    def describe(self) -> str:
        """Where it is and whether it is sent a token."""
        token = f"with the token of {self._token_env}" if self._token else "without a token"
        return f"{self._place}, {token}"

    def _read(self, response: httpx2.Response) -> bytes:
        """The body as it came. The client's own limit is on each wait, not on their sum."""
        start = time.monotonic()
        content = b""
        for part in response.iter_raw():
            content += part
            if len(content) > MOST_BYTES:
                raise self._wrong(f"answered more than {MOST_BYTES} bytes")
            if time.monotonic() - start > self._timeout_s:
                raise self._late()
        return content

    def _refusal(self, response: httpx2.Response, content: bytes) -> str | None:
        status = response.status_code
        if response.is_redirect:
            to = self._shown(response.headers.get("location", ""))
            return f"answered {status} and sends us to {to!r}; set path to where the server is"
        if status in (401, 403):
            if not self._token:
                return f"answered {status}; set token_env to the variable that holds its token"
            return f"answered {status}; set another token in {self._token_env}"
        if not response.is_success:
            return f"answered {status}: {self._excerpt(content)}"
        return None

    def _late(self) -> ValueError:
        return self._wrong(f"no answer in {self._timeout_s:g} s; set timeout_s higher")

    def _wrong(self, problem: str) -> ValueError:
        return ValueError(f"{self._place}: {problem}")

    @property
    def _place(self) -> str:
        return str(self._url.copy_with(query=None))

    def _excerpt(self, content: bytes) -> str:
        return repr(self._shown(content.decode("utf-8", errors="replace")))

    def _shown(self, text: str) -> str:
        """A server's words in one line, without the token that it may have repeated."""
        hidden = text.replace(self._token, "(token)") if self._token else text
        return " ".join(hidden.split())[:EXCERPT]


def encoded(image: UInt8[Tensor, "3 H W"], kind: str, **options: int) -> str:
    """Base64 of an image as a `PNG` or `JPEG` file; `options` are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")


def number(value: Any) -> float:
    """A number of a server's answer. Raises ValueError for anything else, and for one that is not
    finite in float32."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST:
        raise ValueError(f"answered {str(value)[:40]!r} where a finite number belongs")
    return float(value)


def _token(name: str) -> str:
    token = os.environ.get(name, "")
    if not token:
        raise ValueError(
            f"token_env: {name} is not set where this worker runs; set it on every machine, before "
            "Ray is started there"
        )
    # Such a header would be refused by the client, in words that repeat it.
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"token_env: {name} holds spaces, line ends or letters beyond ASCII")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
