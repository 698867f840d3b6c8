"""The `http` kind and what it shares with every remote judge, against real servers."""

import base64
import datetime
import io
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from percent_ray.recipe.tree import Recipe, Scorer
from percent_ray.roles import perception
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.scorers.base import load_scorer, try_out
from percent_ray.scorers.remote import MOST_BYTES
from percent_ray.types import Prompt
from tests.scorers.servers import TOKEN, VARIABLE, reply, serve

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red cat"), Prompt("zwei Bären", {"tag": "counting", "include": []})]
GREY = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)


def http(path: str, **settings):
    return load_scorer("judge", Scorer(kind="http", path=path, **settings), device=CPU)


def scores(*values: float):
    return reply(json.dumps({"scores": values}))


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)


def test_images_prompts_and_metadata_arrive_as_they_are_and_scores_come_back(token):
    seen = []

    def answer(handler, asked):
        seen.append((handler.headers["Authorization"], json.loads(asked)))
        scores(0.25, -3)(handler, asked)

    noise = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    with serve(answer) as url:
        scorer = http(url, token_env=VARIABLE)
        assert torch.equal(scorer.score(noise, PROMPTS), torch.tensor([0.25, -3.0]))
        report = scorer.report(noise, PROMPTS)
        assert torch.equal(report.values, torch.tensor([0.25, -3.0]))
        assert scorer.describe() == f"scorers.judge: server at {url}, with the token of {VARIABLE}"
    for authorization, body in seen:
        assert authorization == f"Bearer {TOKEN}"
        assert body["prompts"] == ["a red cat", "zwei Bären"]
        assert body["metadata"] == [None, {"tag": "counting", "include": []}]
        pictures = [Image.open(io.BytesIO(base64.b64decode(i))) for i in body["images"]]
        assert {picture.format for picture in pictures} == {"PNG"}
        pixels = torch.tensor(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
        assert torch.equal(pixels, noise)
    with pytest.raises(ValueError, match=r"^scorers\.judge: an http only scores; leave it out"):
        scorer.encode(noise)


def slow(handler, asked):
    time.sleep(0.6)


def drip(handler, asked):
    """Never silent for long, and never done."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def repeats_the_token(status: int):
    def answer(handler, asked):
        said = handler.headers["Authorization"]
        reply(f"<h1>bad\n\x1b[31m request</h1> {said}", status)(handler, asked)

    return answer


def reason(handler, asked):
    handler.send_response(502, handler.headers["Authorization"])
    handler.end_headers()


def redirect(handler, asked):
    reply("", 307, Location=f"https://elsewhere/{TOKEN}")(handler, asked)


def breaks_off(handler, asked):
    reply('{"scores"', **{"Content-Length": "100"})(handler, asked)


FAILURES = {
    "slow": (slow, r"no answer in 0\.3 s; set timeout_s higher"),
    "drip": (drip, r"no answer in 0\.3 s; set timeout_s higher"),
    "too much": (reply(b" " * (MOST_BYTES + 1)), rf"answered more than {MOST_BYTES} bytes"),
    "html": (reply("<html>\nhi"), r"answered no JSON but '<html> hi'"),
    "deep": (reply("[" * 100_000), r"answered no JSON but '\[\[.*"),
    "bytes": (reply(b"\xff\xfe"), r"answered no JSON but .*"),
    "500": (repeats_the_token(500), r"answered 500: '<h1>bad \\x1b\[31m .*Bearer \(token\)'"),
    "reason": (reason, "answered 502: ''"),
    "401": (repeats_the_token(401), rf"answered 401; set another token in {VARIABLE}"),
    "307": (redirect, r"answered 307 and sends us to 'https://elsewhere/\(token\)'; set path .*"),
    "breaks off": (breaks_off, r"broke off \(RemoteProtocolError: .*\)"),
    "short": (scores(0.5), "the server answered 1 scores for 2 images"),
    "long": (scores(1, 2, 3), "the server answered 3 scores for 2 images"),
    "no list": (reply('{"scores": 0.5}'), "the server's answer has no list `scores`"),
    "list": (reply("[1, 2]"), "the server's answer has no list `scores`"),
    "nan": (reply('{"scores": [1, NaN]}'), "answered 'nan' where a finite number belongs"),
    "inf": (reply('{"scores": [1, -1e999]}'), "answered '-inf' where .*"),
    "float64": (reply('{"scores": [1, 1e39]}'), r"answered '1e\+39' where .*"),
    "huge": (reply('{"scores": [1, 1%s]}' % ("0" * 400)), "answered '1000.*' where .*"),
    "null": (reply('{"scores": [1, null]}'), "answered 'None' where .*"),
    "text": (reply('{"scores": [1, "2"]}'), "answered '2' where .*"),
    "bool": (reply('{"scores": [1, true]}'), "answered 'True' where .*"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line_without_the_token_and_never_a_number(case, token, caplog):
    answer, message = FAILURES[case]
    with serve(answer) as url, caplog.at_level(logging.DEBUG):
        scorer = http(url, token_env=VARIABLE, timeout_s=0.3)
        with pytest.raises(ValueError, match=rf"^scorers\.judge: ({url}: )?{message}$") as caught:
            scorer.score(GREY, PROMPTS)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in told
    assert "\x1b" not in str(caught.value)
    assert TOKEN not in repr(vars(scorer))


def test_a_server_that_is_down_is_one_line_at_the_runs_start(token):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    scorer = http(url, token_env=VARIABLE)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 compared below
        try_out(scorer, PROMPTS[0], scores=True, encodes=False, size=(8, 8))
    assert str(caught.value) == (
        f"scorers.judge: tried on a grey picture for 'a red cat': {url}: no connection "
        "([Errno 111] Connection refused); start the server or set path"
    )


def test_tries_after_a_failure_are_the_recipes(token, monkeypatch):
    """Two failures, then scores; with no retries the group is dropped and the line is kept. Between
    them the server has time to come back."""
    calls, slept = [], []
    monkeypatch.setattr(perception.time, "sleep", slept.append)

    def answer(handler, asked):
        calls.append(1)
        (scores(1, 2) if len(calls) > 2 else reply("busy", 503))(handler, asked)

    def rewards(retries: int):
        settings = Scorer(kind="http", path=url, weight=1, retries=retries)
        recipe = Recipe(scorers={"judge": settings}, perceptual={"spaces": ()})
        worker = PerceptionWorker(recipe, worker="test")
        worker._scorers["judge"] = load_scorer("judge", settings, device=CPU)
        return worker._rewards(GREY, PROMPTS[0])

    with serve(answer) as url:
        found, failures, dropped = rewards(0)
        assert (found, dropped) == ({}, True)
        assert failures == {"judge": f"scorers.judge: {url}: answered 503: 'busy'"}
        assert slept == []
        calls.clear()
        found, failures, dropped = rewards(2)
        assert (found["judge"].tolist(), failures, dropped) == ([1, 2], {}, False)
        assert slept == [5, 15]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("http://127.0.0.1:1", "", f"token_env: {VARIABLE} is not set where this worker runs; .*"),
        ("http://127.0.0.1:1", f"{TOKEN}\n", f"token_env: {VARIABLE} holds spaces, line ends .*"),
        ("http://judge.example:1", TOKEN, f"the token of {VARIABLE} would travel unencrypted .*"),
        ("http://127.0.0.1.evil.example:1", TOKEN, ".* would travel unencrypted to 127.0.0.1.e.*"),
        ("", TOKEN, "has no path; set path to the server's URL"),
        ("owner/name", TOKEN, "owner/name is a hub id; give a URL"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_load(monkeypatch, path, value, message):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=rf"^scorers\.judge: {message}$") as caught:
        http(path, token_env=VARIABLE)
    assert TOKEN not in str(caught.value)


def test_a_token_goes_over_tls_or_to_this_machine_only(token):
    for path in ("https://judge.example", "http://localhost:1", "http://[::1]:1/v1?a=b"):
        assert f"with the token of {VARIABLE}" in http(path, token_env=VARIABLE).describe()
    assert "without a token" in http("http://judge.example").describe()


def test_a_server_that_wants_a_token_says_where_to_set_it(token):
    with (
        serve(reply("", 401)) as url,
        pytest.raises(ValueError, match="answered 401; set token_env to the variable"),
    ):
        http(url).score(GREY, PROMPTS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate of 127.0.0.1 by an authority that nobody knows, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, *form))
    return file


def test_a_certificate_is_verified(certificate, monkeypatch, token):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked = []

    def answer(handler, body):
        asked.append(handler.headers["Authorization"])
        scores(1, 2)(handler, body)

    with serve(answer, tls=context) as url:
        with pytest.raises(ValueError, match=r"no connection \(.*CERTIFICATE_VERIFY_FAILED"):
            http(url, token_env=VARIABLE).score(GREY, PROMPTS)
        assert asked == [], "no token went there"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert http(url, token_env=VARIABLE).score(GREY, PROMPTS).tolist() == [1, 2]
        assert asked == [f"Bearer {TOKEN}"]


def test_the_example_server_of_the_docs_scores(monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "http_scorer.py"
    monkeypatch.setenv("JUDGE_TOKEN", TOKEN)
    command = [sys.executable, "-S", str(page), "0"]  # -S: the standard library is all it has
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    stop = threading.Timer(60, process.kill)
    stop.start()
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        noise = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
        images = torch.cat([GREY[:1], noise])
        found = http(url, token_env="JUDGE_TOKEN").score(images, PROMPTS)
        assert 0 < found[0] < found[1] < 6, "bytes a pixel"
        with pytest.raises(ValueError, match="answered 401; set token_env"):
            http(url).score(images, PROMPTS)
    finally:
        stop.cancel()
        process.kill()
        process.communicate()


def test_a_proxy_never_sees_what_is_for_this_machine(token, monkeypatch):
    asked = []

    def proxy(handler, body):
        asked.append(handler.path)
        reply("", 502)(handler, body)

    with serve(proxy) as other, serve(scores(1, 2)) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert http(url, token_env=VARIABLE).score(GREY, PROMPTS).tolist() == [1, 2]
    assert asked == []
