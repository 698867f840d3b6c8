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


def test_files_without_prompts_and_other_kinds(tmp_path):
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
