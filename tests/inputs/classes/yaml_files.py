"""Recipe files that are no recipes, and YAML that would bend values."""

from tests.inputs.case import Case

LAUGHS = "\n".join(
    ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 40))]
)


def file(content, says, **options):
    return Case("--config r.yaml", says, {"r.yaml": content}, **options)


def key(key, value, says, **options):
    """Of a file and of the command line."""
    return [
        file(f"{{{_nested(key, value)}}}", says, **options),
        Case((f"--{key}", value), says, **options),
    ]


def _nested(key, value):
    first, _, rest = key.partition(".")
    return f"{first}: {{{_nested(rest, value)}}}" if rest else f"{first}: {value}"


CASES = [
    # Numbers that YAML 1.1 bends.
    *key("run.steps", "1:30", r"run\.steps: got '1:30', needs a whole number"),
    *key("run.steps", "010", r"run\.steps: got '010', needs a whole number"),
    *key("run.steps", "0x10", r"run\.steps: got '0x10', needs a whole number"),
    *key("run.steps", "0b11", r"run\.steps: got '0b11', needs a whole number"),
    *key("run.steps", "0o17", r"run\.steps: got '0o17', needs a whole number"),
    *key("run.steps", "1_000", r"run\.steps: got '1_000', needs a whole number"),
    *key("run.steps", "2026-01-01", r"run\.steps: got '2026-01-01', needs a whole number"),
    *key("run.steps", "1e2", r"run\.steps: got 100\.0, needs a whole number|is not whole", lines=1),
    *key("learner.lr", "1:30.5", r"learner\.lr: got '1:30\.5', needs a number"),
    *key("learner.lr", "1e999", r"learner\.lr: got inf, needs a finite number"),
    *key("learner.lr", "-.inf", r"learner\.lr: got -inf, needs"),
    *key("learner.lr", "1e-", r"learner\.lr: got '1e-', needs a number"),
    Case("--learner.lr 1,5", r"learner\.lr: got '1,5', needs a number"),
    *key("run.seed", "9" * 5000, r"a number of 5000 digits"),
    *key("run.seed", "9" * 41, r"a number of 41 digits"),
    *key("run.seed", "9" * 30, r"run\.seed: got 9999.*, needs at most"),
    *key("model.t5", "yup", r"model\.t5: got 'yup', needs true or false"),
    *key("run.name", "no", r"run\.name: got False, needs text; put it in quotes")[:1],
    *key("run.name", "7", r"run\.name: got 7, needs text; put it in quotes")[:1],
    *key("run.name", "007", None),
    *key("run.name", "2026-01-01", None),
    file("run: {name: 1:30}", r"run\.name: got '1:30', needs letters"),
    file("{run: {steps: 1_0}}", r"needs a whole number"),
    # Sections that are none.
    Case(
        "--config r.yaml --learner.lr 1e-4",
        r"learner: got \[1, 2\], needs keys of its own",
        {"r.yaml": "learner: [1, 2]"},
    ),
    Case(
        "--config r.yaml --runtime.rollout.cpus 1",
        r"runtime\.rollout: got 3, needs keys",
        {"r.yaml": "runtime: {rollout: 3}"},
    ),
    Case(
        "--config r.yaml --method.strength 1",
        r"method: got 'pec', needs keys",
        {"r.yaml": "method: pec"},
        lines=2,
    ),
    Case(
        "--config r.yaml --scorers.clip.weight 1",
        r"scorers\.clip: got \[1\], needs keys",
        {"r.yaml": "scorers: {clip: [1]}"},
    ),
    Case(
        "--config r.yaml --scorers.clip.weight 1",
        r"scorers: got \[\], needs keys",
        {"r.yaml": "scorers: []"},
    ),
    Case("--learner [1] --learner.lr 3", r"learner was given a value before|needs keys", lines=2),
    Case("--learner.lr .3 --learner [1]", r"learner: was given a key of its own before"),
    Case(
        "--config b.yaml",
        r"learner: got \[1\], needs keys",
        {"a.yaml": "learner: [1]", "b.yaml": "base: a.yaml\nlearner: {lr: 1e-4}"},
    ),
    file("learner: 7", r"learner: got 7, needs keys of its own"),
    file("learner: text", r"learner: got 'text', needs keys of its own"),
    file("scorers: {pickscore: [1]}", r"scorers\.pickscore: got \[1\], needs keys"),
    file("monitor: {spaces: {a: 1}}", r"monitor\.spaces: got .*, needs a list"),
    file("model: {resolution: {a: 1}}", r"model\.resolution: got"),
    file("learner: {lr: [1]}", r"learner\.lr: got \[1\], needs a number"),
    file("learner: {lr: null}", r"learner\.lr: got None, needs a number"),
    # No YAML, or not the YAML of a recipe.
    file("", None),
    file("# only a comment\n", None),
    file("---\n", None),
    file("\ufeffrun: {steps: 3}\n", None),
    file("\ufeff", None),
    file("run: {steps: 3}\r\nlearner: {lr: 1e-4}\r\n", None),
    file("run: {steps: 3}\n...\n", None),
    file("{}", None),
    file("[]", r"r\.yaml: holds \[\]; needs sections"),
    file("7", r"r\.yaml: holds 7; needs sections"),
    file("text", r"r\.yaml: holds 'text'; needs sections"),
    file("a" * 5000, r"r\.yaml: holds 'aaa"),
    file("run: {steps: 3}\n---\nrun: {steps: 4}\n", r"r\.yaml: not YAML: line 2"),
    file("learner: {lr: 1", r"r\.yaml: not YAML: line 1"),
    file("learner:\n  lr: 1\n lr: 2\n", r"r\.yaml: not YAML: line 3"),
    file("learner:\n\tlr: 1\n", r"r\.yaml: not YAML: line 2"),
    file(
        "learner: {lr: 1, lr: 2}", r"r\.yaml: not YAML: line 1, column 18: key 'lr' is given twice"
    ),
    file("learner: {lr: 1}\nlearner: {eps: 1}", r"line 2, column 1: key 'learner' is given twice"),
    file("x: *nobody", r"r\.yaml: not YAML: line 1"),
    file("run: {steps: %3}", r"r\.yaml: not YAML: line 1"),
    file("run: {steps: @3}", r"r\.yaml: not YAML: line 1"),
    file("run: {name: 'x}", r"r\.yaml: not YAML: line 1"),
    file("? [a, b]\n: 1\n", r"r\.yaml: not YAML: line 1, column 3: key of several is no text"),
    file("? {a: b}\n: 1\n", r"line 1, column 3: key of several is no text"),
    file("1: x", r"line 1, column 1: key 1 is no text; put it in quotes"),
    file("on: x", r"line 1, column 1: key on is no text; put it in quotes"),
    file("null: x", r"line 1, column 1: key null is no text"),
    file("run:\n  1.5: x", r"line 2, column 3: key 1.5 is no text"),
    # Tags, anchors, depth, size.
    file(
        "run: {steps: !!int '3'}", r"r\.yaml: not YAML: line 1, column 14: tag .*int is not known"
    ),
    file("!!python/object/apply:os.system ['true']", r"line 1, column 1: tag .* is not known"),
    file("run: {name: !!binary aGk=}", r"tag .*binary is not known"),
    file("run: !!set {a, b}", r"tag .*set is not known"),
    file("run: !mine {steps: 3}", r"tag !mine is not known"),
    file("run: {steps: !!float x}", r"tag .*float is not known"),
    file("run: &a {steps: *a}", r"line 1, column 6: an anchor holds itself"),
    file("&a {run: *a}", r"an anchor holds itself"),
    file("run: &a [*a, *a]", r"an anchor holds itself"),
    file("run: &a\n  <<: *a", r"an anchor holds itself"),
    file(LAUGHS, r"more than 10000 values, counted by aliases"),
    file(MERGES, r"more than (10000 values|32 levels)"),
    file("run: &r {steps: 3}\n", None),
    file("sampling: {steps: &n 10, batch_size: *n}\n", None),
    file("run: " + "[" * 3000 + "]" * 3000, r"line 1, column \d+: more than 32 levels deep"),
    file("{a: " * 3000 + "1" + "}" * 3000, r"line 1, column \d+: more than 32 levels deep"),
    file("".join(f"{' ' * n}a:\n" for n in range(400)), r"more than 32 levels deep"),
    file("[" * 100_000, r"more than 32 levels deep"),
    file("run: {name: " + "a" * 300_000 + "}", r"has 300,013 bytes, a recipe has at most 262,144"),
    file("a: 1\n" * 50_000, r"line 5000, column 4: more than 10000 values"),
    file("".join(f"k{n}: 1\n" for n in range(15_000)), r"more than 10000 values"),
    # Bytes.
    file("run: {name: é}".encode("latin-1"), r"r\.yaml: line 1: byte 0xe9 is not UTF-8"),
    file("run: {steps: 3}".encode("utf-16"), r"r\.yaml: line 1: byte 0xff is not UTF-8"),
    file(b"run: {steps: 3}\n\n# caf\xe9\n", r"r\.yaml: line 3: byte 0xe9 is not UTF-8"),
    file(b"\x80\x81", r"line 1: byte 0x80 is not UTF-8"),
    file(b"run: {steps: 3}\n\x00\n", r"r\.yaml: not YAML: line 2: character 0x0000"),
    file(b"\x00" * 1000, r"not YAML: line 1: character 0x0000"),
    file(b"run: {name: a\x07b}", r"not YAML: line 1: character 0x0007"),
    file('run: {name: "a\\0b"}', r"run\.name: 'a\\x00b' has characters that are no text"),
    file('run: {folder: "a\\0b"}', r"run\.folder: 'a\\x00b' has characters"),
    file('data: {prompts: "a\\0b"}', r"data\.prompts: 'a\\x00b' is no path: embedded null"),
    file('"run\\0": {name: a}', r"has characters that are no text"),
    file("PK\x03\x04 a zip file", r"not YAML: line 1: character"),
    file(b"\x89PNG\r\n\x1a\n", r"line 1: byte 0x89 is not UTF-8"),
    # Files that are none, and bases.
    Case("--config none.yaml", r"--config: no file none\.yaml"),
    Case("--config .", r"--config: no file \."),
    Case("--config /dev/zero", r"--config: no file /dev/zero"),
    Case(("--config", "a" * 5000), r"file name too long"),
    Case(("--config", "a\nb"), r"--config: no file"),
    file("base: none.yaml", r"none\.yaml: no such file"),
    file("base: /dev/zero", r"/dev/zero: is no file"),
    file("base: .", r"is no file; give a file of YAML"),
    file("base: [a]", r"base: got \['a'\], needs the name of a recipe's file"),
    file("base: {a: b}", r"base: got \{'a': 'b'\}, needs the name"),
    file("base: 7", r"base: got 7, needs the name"),
    file("base: ''", r"base: got '', needs the name"),
    file("base: r.yaml", r"a base cannot have a base"),
    file('base: "a\\0b"', r"a\\x00b: embedded null byte"),
    file(f"base: {'a' * 5000}", r"file name too long"),
    Case(
        "--config b.yaml", r"a\.yaml: not YAML: line 1", {"a.yaml": "[", "b.yaml": "base: a.yaml"}
    ),
    # Keys of the command line.
    Case("--learner.lr", r"--learner\.lr: has no value"),
    Case("--learner.lr --run.steps 3", r"--learner\.lr: has no value"),
    Case("learner.lr 3", r"unexpected", lines=2),
    Case("--learner.lr= ", r"learner\.lr: got None", lines=1),
    Case(("--learner.lr=",), r"learner\.lr: got None, needs a number"),
    Case(("--learner.lr", ""), r"learner\.lr: got None, needs a number"),
    Case("--.lr 3", r"unknown"),
    Case("--learner..lr 3", r"unknown"),
    Case("--learner.lr. 3", r"learner\.lr"),
    Case("--learner.lr.x 3", r"learner\.lr"),
    Case("--. 3", r"unknown"),
    Case("--=3", r"unknown|unexpected"),
    Case("-- 3", r"unexpected", lines=2),
    Case("--learner.lr [", r"learner\.lr: '\[' is not YAML: line 1"),
    Case(("--learner.lr", "&a [*a]"), r"learner\.lr: .* is not YAML: .*an anchor holds itself"),
    Case(("--learner.lr", "{a: " * 3000), r"learner\.lr: .* more than 32 levels deep"),
    Case((f"--{'a.' * 3000}b", "3"), r"unknown; --help lists the keys"),
    Case((f"--{'a' * 3000}", "3"), r"unknown"),
    Case(("--learner.lr", "x" * 3000), r"learner\.lr: got 'xxx.*, needs a number"),
    Case(("--run.name", "x\udc80"), r"run\.name: .* has characters that are no text"),
    Case(("--model.path", "~no_such_user/x"), r"model\.path: '~no_such_user/x'"),
    Case(("--data.prompts", "~no_such_user/x"), r"data\.prompts: '~no_such_user/x'"),
    Case(("--data.prompts", "a" * 5000), r"data\.prompts: 'aaa.*[Ff]ile name too long", lines=1),
    Case(("--model.path", "./" + "a" * 5000), r"model\.path: .*[Ff]ile name too long"),
    Case(("--scorers.pickscore.path", "./" + "a" * 5000), r"scorers\.pickscore\.path"),
    Case("--base x.yaml", r"base"),
    Case("--run null", None),
    Case("--scorers null", None),
    Case("--scorers.pickscore null", r"scorers: none has a weight above 0", lines=2),
    Case("--learner.betas 0.9", r"learner\.betas"),
    Case("--learner.betas []", r"learner\.betas\.0: missing|learner\.betas", lines=2),
    Case("--learner.betas [.9,.9,.9]", r"learner\.betas"),
    Case("--monitor.spaces [1]", r"monitor\.spaces\.0: got 1, needs text"),
    Case("--monitor.spaces [[dino]]", r"monitor\.spaces\.0: got \['dino'\], needs text"),
]
