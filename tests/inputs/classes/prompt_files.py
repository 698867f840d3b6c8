"""Files of prompts and of probes."""

import json
import os

from tests.inputs.case import Case

LATIN = "a café\n".encode("latin-1")


def text(content, says, name="p.txt", **options):
    """As prompts, and as probes."""
    good = {"good.txt": "a red circle\n"}
    return [
        Case(f"--data.prompts {name}", says, {name: content}, **options),
        Case(
            f"--data.prompts good.txt --data.probe_prompts {name}",
            says,
            {name: content, **good},
            **options,
        ),
    ]


def lines(content, says, **options):
    return text(content, says, name="p.jsonl", **options)


def place(make, says):
    def prepare(here):
        make(here / "p.txt")

    return Case("--data.prompts p.txt", says, prepare=prepare)


CASES = [
    *text("a red circle\n", None),
    *text("\ufeffa red circle\r\n\r\n", None),
    *text("a café, 日本語, 🟥\n", None),
    *text("$\\frac{x$ and $5 or $6\n", None),
    *text("a red\tcircle\n", None),
    *text("x" * 100_000 + "\n", None),
    *text("", r"p\.txt: no prompts in it"),
    *text("\n \n\t\n", r"p\.txt: no prompts in it"),
    *text("\ufeff", r"p\.txt: no prompts in it"),
    *text("\ufeff\n\n", r"p\.txt: no prompts in it"),
    *text("a\nred\0circle\n", r"p\.txt:2: has the character U\+0000"),
    *text("\0\0\0\0", r"p\.txt:1: has the character U\+0000"),
    *text("a\x07b\n", r"p\.txt:1: has the character U\+0007"),
    *text("a\x1b[31mred\n", r"p\.txt:1: has the character U\+001B"),
    *text("a\u2028b\n", r"p\.txt:1: has the character U\+2028"),
    *text("a\u2029b\n", r"p\.txt:1: has the character U\+2029"),
    *text("ok\na\x85b\n", r"p\.txt:2: has the character U\+0085"),
    *text(b"a\n" + LATIN, r"p\.txt:2: byte 6 is not UTF-8; save the file as UTF-8"),
    *text("日本語\n".encode("shift-jis"), r"p\.txt:1: byte 1 is not UTF-8"),
    *text("кот\n".encode("cp1251"), r"p\.txt:1: byte 1 is not UTF-8"),
    *text("a cat\n".encode("utf-16"), r"p\.txt: is UTF-16; save it as UTF-8"),
    *text("a cat\n".encode("utf-16-be"), r"p\.txt:1: has the character U\+0000"),
    *text("a cat\n".encode("utf-32"), r"p\.txt: is UTF-16|has the character"),
    *text(b"\x89PNG\r\n\x1a\n", r"p\.txt:1: byte 1 is not UTF-8"),
    *text(b"PK\x03\x04", r"p\.txt:1: has the character U\+0003"),
    # Lines of JSON.
    *lines('{"prompt": "a cat"}\n{"text": "a dog"}\n', None),
    *lines('\ufeff{"prompt": "a cat"}\r\n', None),
    *lines('{"prompt": "a\\nb", "x": [1, {"y": null}]}\n', None),
    *lines("", r"p\.jsonl: no prompts in it"),
    *lines("a cat\n", r"p\.jsonl:1: not JSON: Expecting value, at character 1"),
    *lines('{"prompt": "a cat"}\n\n{"prompt": "a', r"p\.jsonl:3: not JSON: Unterminated string"),
    *lines('{"prompt": "a cat"} {"prompt": "b"}\n', r"p\.jsonl:1: not JSON: Extra data"),
    *lines('[{"prompt": "a cat"}]\n', r"p\.jsonl:1: expected an object"),
    *lines('"a cat"\n', r"p\.jsonl:1: expected an object"),
    *lines("7\n", r"p\.jsonl:1: expected an object"),
    *lines("null\n", r"p\.jsonl:1: expected an object"),
    *lines('{"caption": "a cat"}\n', r"p\.jsonl:1: no text under 'prompt' or 'text'"),
    *lines('{"prompt": ""}\n', r"p\.jsonl:1: no text"),
    *lines('{"prompt": "  "}\n', r"p\.jsonl:1: no text"),
    *lines('{"prompt": ["a cat"]}\n', r"p\.jsonl:1: no text"),
    *lines('{"prompt": 7}\n', r"p\.jsonl:1: no text"),
    *lines('{"prompt": null}\n', r"p\.jsonl:1: no text"),
    *lines('{"prompt": "a", "prompt": "b"}\n', r"p\.jsonl:1: key 'prompt' is given twice"),
    *lines(json.dumps({"prompt": "a\0b"}), r"p\.jsonl:1: has the character U\+0000"),
    *lines(json.dumps({"prompt": "a \ud800"}), r"p\.jsonl:1: has the character U\+D800"),
    *lines(json.dumps({"prompt": "a\u2028b"}), r"p\.jsonl:1: has the character U\+2028"),
    *lines('{"prompt": "a", "n": ' + "9" * 5000 + "}", r"p\.jsonl:1: "),
    *lines('{"prompt": "a", "n": NaN}', r"p\.jsonl:1: NaN is no number of JSON"),
    *lines('{"prompt": "a", "n": -Infinity}', r"p\.jsonl:1: -Infinity is no number of JSON"),
    *lines('{"a": ' * 5000 + "1" + "}" * 5000, r"p\.jsonl:1: .*too many levels"),
    *lines("[" * 100_000, r"p\.jsonl:1: .*too many levels"),
    *lines('{"prompt": "a cat"}\n'.encode("utf-16"), r"p\.jsonl: is UTF-16"),
    *lines(b'{"prompt": "caf\xe9"}\n', r"p\.jsonl:1: byte 16 is not UTF-8"),
    # Files that are none.
    Case("--data.prompts p.csv", r"p\.csv: prompts are read from \.txt or \.jsonl", {"p.csv": "a"}),
    Case("--data.prompts p", r"p: prompts are read from", {"p": "a"}),
    Case("--data.prompts p.TXT", r"p\.TXT: prompts are read from", {"p.TXT": "a"}),
    Case("--data.prompts none.txt", r"data\.prompts: no file .*none\.txt"),
    Case("--data.probe_prompts none.txt", r"data\.probe_prompts: no file .*none\.txt"),
    Case("--data.prompts shapes/none.jsonl", r"data\.prompts: no file .*none\.jsonl"),
    Case("--data.prompts shapes/../../../pyproject.toml", r"data\.prompts: no file|read from"),
    Case("--data.prompts .", r"data\.prompts: no file"),
    Case("--data.prompts /dev/zero", r"data\.prompts: no file /dev/zero"),
    Case("--data.prompts https://host/p.txt", r"data\.prompts: no file"),
    place(lambda path: path.mkdir(), r"data\.prompts: no file .*p\.txt"),
    place(lambda path: path.symlink_to("nowhere.txt"), r"data\.prompts: no file .*txt"),
    place(lambda path: path.symlink_to(path), r"data\.prompts: .*(no file|no path)"),
    place(os.mkfifo, r"data\.prompts: no file .*p\.txt"),
    # Both halves, and what only looks.
    Case("--only rollout --data.prompts p.txt", r"p\.txt:1: byte 6", {"p.txt": LATIN}),
    Case("--dry-run --data.prompts p.txt", None, {"p.txt": "a cat\n"}),
    Case("--data.prompts p.txt", r"p\.txt:1: byte 6", {"p.txt": LATIN}, job="compare_decoders"),
    Case("--prompts p.txt", r"p\.txt:1: byte 6", {"p.txt": LATIN}, job="evaluate"),
]
