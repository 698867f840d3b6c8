"""UnifiedReward: what is asked, over HTTP, and how answers are read."""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from percent_ray.recipe.tree import Scorer
from percent_ray.scorers.base import load_scorer, try_out
from percent_ray.scorers.unifiedreward import AT_ONCE, read
from percent_ray.types import Prompt
from tests.scorers.servers import TOKEN, VARIABLE, reply, serve

CPU = torch.device("cpu")
GREY = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)


def lines(alignment: str, coherence: str = "2", style: str = "3") -> str:
    return (
        f"Alignment Score (1-5): {alignment}\nCoherence Score (1-5): {coherence}\n"
        f"Style Score (1-5): {style}"
    )


def completion(text: str | None, finish: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


def unifiedreward(path: str, **settings):
    return load_scorer("judge", Scorer(kind="unifiedreward", path=path, **settings), device=CPU)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (lines("4"), (4, 2, 3)),
        (lines("2.694700002670288", "1.0", "5"), (2.694700002670288, 1, 5)),
        ("Style Score (1-5): 3\nCoherence Score (1-5): 2\nAlignment Score (1-5): 1", (1, 2, 3)),
        (lines("4").lower(), (4, 2, 3)),
        (lines("4").upper().replace("\n", "\r\n"), (4, 2, 3)),
        (f"Here are my scores.\n\n  {lines('4')}  \n\nI like it: 5/5.", (4, 2, 3)),
        (lines("4").replace(": ", ":"), (4, 2, 3)),
        (lines("+4"), (4, 2, 3)),
    ],
)
def test_an_answer_is_read(text, scores):
    assert read(text) == scores


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (lines("10"), "Alignment Score 10, which is not in 1 to 5"),
        (lines("0"), "Alignment Score 0, which"),
        (lines("-3"), "Alignment Score -3, which"),
        (lines("5.01"), "Alignment Score 5.01, which"),
        (lines("4", "0.99"), "Coherence Score 0.99, which"),
        (lines("9" * 400), "Alignment Score 9999"),
        (lines("nan"), "no single number as its Align"),
        (lines("4", "2", "inf"), "no single number as its Style Score"),
        (lines(""), "no single number"),
        (lines("\n4"), "no single number"),
        (lines("X"), "no single number"),
        (lines("3 or 4"), "no single number"),
        (lines("3, 4"), "no single number"),
        (lines("3-4"), "no single number"),
        (lines("4/5"), "no single number"),
        (lines("4,5"), "no single number"),
        (lines("1e0"), "no single number"),
        (lines("4."), "no single number"),
        (lines("٤"), "no single number"),
        ("", "0 lines `Alignment Score (1-5): NUMBER`, needs 1"),
        ("4 2 3", "0 lines `Alignment"),
        (lines("4").replace("(1-5)", "(1-10)"), "0 lines `Alignment"),
        (lines("4").replace("Style", "Final"), "0 lines `Style"),
        (lines("4").replace("\n", " "), "no single number as its Align"),
        (f"{lines('4')}\nStyle Score (1-5): 3", "2 lines `Style"),
        (f"{lines('4')}\nstyle score (1-5): 5", "2 lines `Style"),
        ("I cannot rate this.\n\n" * 99, "0 lines `Alignment"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure_in_one_line(text, problem):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 compared below
        read(text)
    said = str(caught.value)
    assert said.startswith(f"the model's answer has {problem}")
    assert "\n" not in said
    assert len(said) < 250


def test_every_image_is_asked_about_with_its_prompt_and_scored_in_order(monkeypatch):
    """The model of this server sees the brightness and the caption."""
    monkeypatch.setenv(VARIABLE, TOKEN)
    bodies, paths = [], set()

    def answer(handler, asked):
        body = json.loads(asked)
        bodies.append(body)
        paths.add((handler.path, handler.headers["Authorization"]))
        image, text = body["messages"][0]["content"]
        url = image["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
        assert url.startswith("data:image/jpeg;base64,")
        assert (picture.format, picture.size) == ("JPEG", (24, 16))
        level = np.asarray(picture).mean() / 64 + 1
        number = text["text"].splitlines()[-1].removeprefix("Text Caption: [number {")
        time.sleep(0.02 * (5 - level))  # the later ones are done first
        scores = lines(str(level), number.removesuffix("}]"), "3")
        reply(completion(scores))(handler, asked)

    levels = torch.tensor([0, 64, 128, 192], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(4, 3, 16, 24)
    prompts = [Prompt(f"number {{{i}}}") for i in (5, 4, 1, 2)]
    expected = torch.tensor([(1 + 5 + 3) / 3, (2 + 4 + 3) / 3, (3 + 1 + 3) / 3, (4 + 2 + 3) / 3])
    with serve(answer) as url:
        scorer = unifiedreward(f"{url}/v1/?api-version=1", token_env=VARIABLE)
        torch.testing.assert_close(scorer.score(images, prompts), expected, atol=0.01, rtol=0)
        report = scorer.report(images, prompts)
        named = unifiedreward(f"{url}/v1", served_model="mine", token_env=VARIABLE)
        named.score(images[:1], prompts[:1])
    torch.testing.assert_close(report.values, expected, atol=0.01, rtol=0)
    assert report.unit == "mean of alignment, coherence and style, 1 to 5"
    bearer = f"Bearer {TOKEN}"
    assert paths == {
        ("/v1/chat/completions?api-version=1", bearer),
        ("/v1/chat/completions", bearer),
    }
    assert [body["model"] for body in bodies] == ["UnifiedReward"] * 8 + ["mine"]
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0, 4096)}
    for axis in ("Alignment", "Coherence", "Style"):
        assert f"{axis} Score (1-5): " in bodies[0]["messages"][0]["content"][1]["text"]


def test_jpegs_are_of_quality_95():
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    sent = []

    def answer(handler, asked):
        sent.append(json.loads(asked)["messages"][0]["content"][0]["image_url"]["url"])
        reply(completion(lines("4")))(handler, asked)

    with serve(answer) as url:
        unifiedreward(url).score(noise, [Prompt("x")])
    file = io.BytesIO()
    Image.fromarray(noise[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    assert base64.b64decode(sent[0].partition(",")[2]) == file.getvalue()


def test_a_few_requests_are_under_way_at_once():
    lock = threading.Lock()
    now, most = 0, 0

    def answer(handler, asked):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        reply(completion(lines("4")))(handler, asked)

    with serve(answer) as url:
        scorer = unifiedreward(url)
        assert scorer.score(GREY.expand(24, -1, -1, -1), [Prompt("x")] * 24).tolist() == [3] * 24
    assert 2 <= most <= AT_ONCE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            completion(lines("nan")),
            "the model's answer has no single number as its Alignment Score",
        ),
        (completion(lines("4"), "length"), "the model's answer was cut after 4096 tokens"),
        (completion(None), "the server's answer is a chat completion without text"),
        ('{"error": "no such model"}', "the server's answer is no chat completion"),
        ('{"choices": []}', "the server's answer is no chat completion"),
        ('{"choices": ["x"]}', "the server's answer is no chat completion"),
        ("[]", "the server's answer is no chat completion"),
        ("<html>", "http.*: answered no JSON but '<html>'"),
    ],
)
def test_one_image_without_a_score_fails_the_batch(body, message):
    def answer(handler, asked):
        black = b"black" in asked
        reply(body if black else completion(lines("4")))(handler, asked)

    with serve(answer) as url:
        scorer = unifiedreward(url)
        three = GREY.expand(3, -1, -1, -1)
        assert scorer.score(three, [Prompt("x")] * 3).tolist() == [3, 3, 3]
        with pytest.raises(ValueError, match=rf"^scorers\.judge: {message}"):
            scorer.score(three, [Prompt("x"), Prompt("black"), Prompt("x")])


def test_a_model_that_the_server_does_not_know_is_one_line_at_the_runs_start():
    unknown = reply('{"error": {"message": "The model `UnifiedReward` does not exist."}}', 404)
    message = r"^scorers\.judge: tried on .* 'x': http.*: answered 404: .*`UnifiedReward` does not"
    with serve(unknown) as url, pytest.raises(ValueError, match=message):
        try_out(unifiedreward(url), Prompt("x"), scores=True, encodes=False, size=(8, 8))


def test_it_cannot_encode():
    with pytest.raises(ValueError, match="a unifiedreward only scores; leave it out of spaces"):
        unifiedreward("http://127.0.0.1:1").encode(GREY)
