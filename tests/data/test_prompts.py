import json

import pytest

from percent_ray.data.prompts import PromptStream, read_prompts
from percent_ray.types import Prompt


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text_files_have_a_prompt_a_line(tmp_path):
    path = write(tmp_path, "a.txt", "a red circle\n\n  a café \n")
    assert read_prompts(path) == [Prompt("a red circle"), Prompt("a café")]


def test_json_lines_are_genevals_form_or_text(tmp_path):
    lines = (
        '{"tag": "counting", "include": [{"class": "circle"}], "prompt": "two circles"}\n'
        '{"text": "a cross"}\n'
    )
    metadata = {"tag": "counting", "include": [{"class": "circle"}]}
    assert read_prompts(write(tmp_path, "a.jsonl", lines)) == [
        Prompt("two circles", metadata),
        Prompt("a cross"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:3: not JSON: Expecting"),
        ('["a"]', r"a\.jsonl:3: expected an object"),
        ('{"tag": "colors"}', r"a\.jsonl:3: no text under 'prompt' or 'text'"),
        ('{"prompt": " "}', r"a\.jsonl:3: no text"),
        ('{"prompt": 4}', r"a\.jsonl:3: no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path, "a.jsonl", f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"a red circle\na caf\xe9\n", r"a\.txt:2: byte 6 is not UTF-8"),
        ("a red circle".encode("utf-16"), r"a\.txt: is UTF-16; save it as UTF-8"),
        (b"a\nred\0circle\n", r"a\.txt:2: has the character U\+0000"),
        ("a red\u2028circle\n".encode(), r"a\.txt:1: has the character U\+2028"),
        (b"\xef\xbb\xbf\n", r"a\.txt: no prompts in it"),
    ],
)
def test_what_is_no_utf_8_or_no_text_is_named(tmp_path, contents, message):
    path = tmp_path / "a.txt"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_every_prompt_is_one_line_and_a_byte_order_mark_is_none_of_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa red\tcircle\r\n")
    assert read_prompts(path) == [Prompt("a red circle")]
    line = json.dumps({"prompt": "a red\ncircle "})
    assert read_prompts(write(tmp_path, "a.jsonl", line)) == [Prompt("a red circle")]
    with pytest.raises(ValueError, match=r"U\+D800"):
        read_prompts(write(tmp_path, "b.jsonl", json.dumps({"prompt": "a \ud800"})))
    with pytest.raises(ValueError, match="too many levels"):
        read_prompts(write(tmp_path, "c.jsonl", "[" * 100_000))


def test_files_without_prompts_and_other_kinds(tmp_path):
    with pytest.raises(ValueError, match="no such file of prompts"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="no prompts in it"):
        read_prompts(write(tmp_path, "a.txt", "\n"))
    with pytest.raises(ValueError, match=r"from \.txt or \.jsonl"):
        read_prompts(write(tmp_path, "a.csv", "a"))


PROMPTS = [Prompt(f"prompt {i}") for i in range(7)]


def test_a_resumed_stream_continues_where_the_first_would_be():
    straight = PromptStream(PROMPTS, seed=3)
    prompts = [straight.prompt(i) for i in range(30)]
    resumed = PromptStream(PROMPTS, seed=3)
    assert [resumed.prompt(i) for i in range(11, 30)] == prompts[11:]
    assert [straight.prompt(i) for i in reversed(range(30))] == prompts[::-1]


def test_every_epoch_has_every_prompt_in_a_new_order():
    stream = PromptStream(PROMPTS, seed=3)
    epochs = [[stream.prompt(7 * e + i).text for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == [p.text for p in PROMPTS] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = PromptStream(PROMPTS, seed=4)
    assert [other.prompt(i).text for i in range(7)] != epochs[0]


def test_probes_are_not_in_the_stream():
    with pytest.raises(ValueError, match="group -1 is a probe"):
        PromptStream(PROMPTS, seed=3).prompt(-1)


def test_the_line_ends_of_old_macs_are_no_prompt_of_all_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a cat\ra dog\ra bird\r")
    with pytest.raises(ValueError, match=r":1: a line ends with a carriage return alone; save"):
        read_prompts(path)
    path.write_bytes(b"a cat\r\na dog\r\n")
    assert [prompt.text for prompt in read_prompts(path)] == ["a cat", "a dog"]
