"""Records of GenEval's form that a reward would misread."""

import json

from tests.inputs.case import Case

GOOD = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
PLACED = [{"class": "circle", "count": 1}, {"class": "square", "count": 1}]
ARGV = (
    "--data.prompts p.jsonl --scorers.geneval.weight 1 --scorers.pickscore.weight 0 "
    "--perceptual.spaces [] --method.name flow_grpo --run.folder runs"
)


def line(record):
    return record if isinstance(record, str) else json.dumps({"prompt": "a photo", **record})


def bad(record, says, argv=ARGV, **options):
    """The third line of a file, blank lines counted."""
    text = f"{line(GOOD)}\n\n{line(record)}\n"
    said = rf"p\.jsonl:3: .*{says}"
    return Case(argv, said, {"p.jsonl": text}, **options)


def good(record, argv=ARGV):
    return Case(argv, None, {"p.jsonl": f"{line(GOOD)}\n{line(record)}\n"})


def one(**changes):
    """With an entry of `include` that is changed; ... takes a key out."""
    entry = {"class": "circle", "count": 1, **changes}
    entry = {key: value for key, value in entry.items() if value is not ...}
    return {**GOOD, "include": [entry]}


def placed(position, **others):
    return {
        "tag": "position",
        "include": [PLACED[0], {**PLACED[1], "position": position, **others}],
    }


REAL = f"{ARGV} --scorers.geneval.path shapes/dino"
"""A detector of real pictures, which knows other colours, and classes that only it can tell."""

CASES = [
    good(GOOD),
    good(one(count=16)),
    good(one(color="cyan")),
    good(placed(["left of", 0])),
    good({**GOOD, "exclude": []}),
    good({**GOOD, "exclude": [{"class": "circle", "count": 2}]}),
    good({**GOOD, "tag": "counting"}),
    good(one(color="brown"), REAL),
    good({**GOOD, "include": [{"class": "zebra", "count": 1}]}, REAL),
    # Tags and keys.
    bad({"include": GOOD["include"]}, "scorers.geneval: the record has no tag"),
    bad({"tag": "single_object"}, "the record has no include"),
    bad({**GOOD, "tag": "count"}, "tag is 'count'; known are single_object"),
    bad({**GOOD, "tag": "Counting"}, "tag is 'Counting'; known are"),
    bad({**GOOD, "tag": ""}, "tag is ''; known are"),
    bad({**GOOD, "tag": None}, "tag is None; known are"),
    bad({**GOOD, "tag": ["counting"]}, r"tag is \['counting'\]; known are"),
    bad({**GOOD, "tag": 3}, "tag is 3; known are"),
    bad({**GOOD, "exlude": []}, "unknown key 'exlude'; did you mean exclude"),
    bad({**GOOD, "includes": []}, "unknown key 'includes'; did you mean include"),
    bad({**GOOD, "id": 7}, "unknown key 'id'; it has tag, include, exclude"),
    bad({}, "has no record of GenEval's; give a .jsonl with tag and include"),
    # Include.
    bad({**GOOD, "include": []}, "include is empty; give one object or more"),
    bad({**GOOD, "include": None}, "include is None; give a list"),
    bad({**GOOD, "include": {"class": "circle"}}, "include is .*; give a list"),
    bad({**GOOD, "include": ["circle"]}, "include is .*; give a list"),
    bad({**GOOD, "include": "circle"}, "include is 'circle'; give a list"),
    bad(one(colour="red"), r"include\[0\] has an unknown key 'colour'; did you mean color"),
    bad(one(number=2), r"include\[0\] has an unknown key 'number'; it has class, count"),
    bad(one(count=...), r"include\[0\] has no count"),
    bad({**GOOD, "include": [{"count": 1}]}, r"include\[0\] has no class"),
    *(
        bad(one(count=count), r"include\[0\]\.count is .*; give 1 to 16")
        for count in (0, -1, 1.0, 1.5, "1", True, None, [1], 17, 10**9)
    ),
    *(
        bad(one(**{"class": name}), r"include\[0\]\.class is .*; known are circle, square")
        for name in ("dog", "circles", "", None, 3, ["circle"], "Circle")
    ),
    *(
        bad(one(color=color), r"include\[0\]\.color is .*; known are red")
        for color in ("brown", "Red", "", None, 3, ["red"], "light red")
    ),
    *(
        bad(one(color=color), r"include\[0\]\.color is .*; known are red", REAL)
        for color in ("cyan", "grey")
    ),
    bad(one(**{"class": ""}), r"include\[0\]\.class is ''; give an object's name", REAL),
    # Positions.
    *(
        bad(placed([relation, 0]), r"include\[1\]\.position\[0\] is .*; known are left of")
        for relation in ("left", "Left of", "under", "", None, 3)
    ),
    *(
        bad(placed(["above", other]), r"include\[1\]\.position\[1\] is .*; the objects before it")
        for other in (1, 2, -1, "0", None, True, 0.0, 10**9)
    ),
    *(
        bad(placed(position), r"include\[1\]\.position is .*; give one such as")
        for position in ("above", ["above"], ["above", 0, 1], None, {"above": 0}, [])
    ),
    bad(
        one(position=["above", 0]),
        r"include\[0\]\.position\[1\] is 0; .* none, for it is the first",
    ),
    bad(placed(["above", 0], color="red"), r"include\[1\] has color and position"),
    # Exclude.
    bad({**GOOD, "exclude": None}, "exclude is None; give a list"),
    bad({**GOOD, "exclude": {"class": "circle", "count": 2}}, "exclude is .*; give a list"),
    bad({**GOOD, "exclude": [{"class": "circle"}]}, r"exclude\[0\] has no count"),
    bad({**GOOD, "exclude": [{"class": "dog", "count": 1}]}, r"exclude\[0\]\.class is 'dog'"),
    bad({**GOOD, "exclude": [{"class": "cross", "count": 0}]}, r"exclude\[0\]\.count is 0"),
    bad(
        {**GOOD, "exclude": [{"class": "circle", "count": 1}]},
        r"exclude\[0\] forbids 1 of 'circle'",
    ),
    bad(
        {**GOOD, "exclude": [{"class": "cross", "count": 1, "color": "red"}]},
        r"exclude\[0\] has an unknown key 'color'",
    ),
    # JSON that is none, or that says a thing twice.
    bad(
        '{"prompt": "a", "tag": "counting", "tag": "colors", "include": []}',
        "key 'tag' is given twice",
    ),
    bad('{"prompt": "a", "include": [{"count": 1, "count": 2}]}', "key 'count' is given twice"),
    # Where records are needed and where not.
    Case(
        f"{ARGV} --data.prompts p.txt",
        r"p\.txt:1: scorers\.geneval: has no record of GenEval's",
        {"p.txt": "a cat\n", "p.jsonl": line(GOOD)},
    ),
    Case(
        f"{ARGV} --data.probe_prompts q.txt",
        r"q\.txt:1: scorers\.geneval: has no record",
        {"q.txt": "a cat\n", "p.jsonl": line(GOOD)},
    ),
    Case(
        f"{ARGV} --scorers.geneval.kind pickscore --scorers.x.kind geneval --scorers.x.weight 1",
        r"p\.jsonl:1: scorers\.x: tag is 'none'",
        {"p.jsonl": line({**GOOD, "tag": "none"})},
    ),
    Case("--data.prompts p.jsonl", None, {"p.jsonl": line({"tag": "mine", "colour": 3})}),
    Case(
        "--data.prompts p.jsonl --scorers.geneval.weight 0",
        None,
        {"p.jsonl": line({"tag": "mine", "colour": 3})},
    ),
    Case(
        "--rows r.yaml",
        r"p\.jsonl:1: scorers\.geneval: tag is 'mine'",
        {
            "p.jsonl": line({**GOOD, "tag": "mine"}),
            "r.yaml": "prompts: p.jsonl\njudges: [geneval]\nencoders: []\nscorers: {geneval: {}}\n"
            "rows: [{pipeline: shapes/sd3}]\n",
        },
        job="evaluate",
    ),
]
