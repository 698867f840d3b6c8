"""Flags and arguments of every job."""

from tests.inputs.case import Case

EMPTY = r"is empty \(an unset shell variable\?\)"

CASES = [
    *(
        Case((flag, ""), EMPTY, job=job)
        for job, flags in {
            "train_pec": ("--resume", "--config", "--from", "--only", "--tflops"),
            "compare": ("--config", "--only", "--seeds", "--folder", "--workers"),
            "evaluate": ("--rows", "--prompts", "--judges", "--folder", "--images"),
            "export": ("--to", "--step", "--format"),
            "report": ("--to",),
            "calibrate_detector": ("--first", "--second", "--evaluation", "--color-path"),
            "compare_decoders": ("--config", "--groups"),
            "pretrain_shapes": ("--only", "--out", "--steps"),
        }.items()
        for flag in flags
    ),
    Case("--resume=", EMPTY),
    Case("--config=", EMPTY),
    Case(("--config", "  "), EMPTY),
    Case(("",), EMPTY),
    Case(("",), EMPTY, job="report"),
    Case(("", "--to", "x"), EMPTY, job="export"),
    Case(("make", "", "b"), EMPTY, job="user_study"),
    Case(("make", "a", "b", "--to", ""), EMPTY, job="user_study"),
    Case(("count", ""), EMPTY, job="user_study"),
    # Flags of a training job.
    Case("--help-me", r"help-me"),
    Case("--resum x", r"--resum: unknown; did you mean --resume\?"),
    Case("--confg=x.yaml", r"--confg: unknown; did you mean --config\?"),
    Case("--config", r"argument --config: expected one argument"),
    Case("--resume nobody", r"--resume: no recipe\.yaml in nobody nor in runs/nobody"),
    Case("--resume .", r"--resume: no recipe\.yaml"),
    Case("--resume x --config y", r"drop --config", lines=3),
    Case("--only nobody", r"argument --only: invalid choice: 'nobody'"),
    Case("--only learn", r"--only learn and --from FILE go together"),
    Case("--from x.arrow", r"--only learn and --from FILE go together", lines=2),
    Case("--only learn --from none.arrow", r"--from: no file none\.arrow"),
    Case("--only rollout --from x", r"go together", {"x": "a"}),
    Case("--dry-run --only rollout", r"--dry-run is of a whole run"),
    Case("--dry-run --resume x", r"--dry-run is of a whole run", lines=2),
    Case("--measure", r"are of --dry-run"),
    Case("--tflops 100", r"are of --dry-run"),
    *(
        Case(("--dry-run", "--tflops", value), r"argument --tflops: .* is not")
        for value in ("0", "-3", "x", "nan", "inf", "1e999")
    ),
    Case(("--config", "\x1b[31m"), r"--config: no file \\x1b\[31m"),
    Case("--resume r", r"recipe\.yaml: not YAML: line 1", {"r/recipe.yaml": "["}),
    Case(
        "--resume r", r"learner\.lr: got 'x', needs a number", {"r/recipe.yaml": "learner: {lr: x}"}
    ),
    # Flags of the others.
    *(
        Case(words, says, job=job)
        for job, words, says in (
            ("report", "nobody", "no run nobody"),
            ("report", "--too x", "unrecognized arguments: --too; --help shows how"),
            ("export", "nobody --to x", "no checkpoint in nobody"),
            ("export", "nobody", "the following arguments are required: --to"),
            ("export", "", "the following arguments are required: RUN, --to"),
            ("export", "x --to y --step z", "argument --step: invalid int value: 'z'"),
            ("export", "x --to y --format zip", "argument --format: invalid choice: 'zip'"),
            ("export", "x --to y --ema --raw", "not allowed with argument --ema"),
            ("user_study", "", "the following arguments are required: make | count"),
            ("user_study", "make a", "the following arguments are required: ROW_B"),
            ("user_study", "make a b", "holds no evaluated rows"),
            ("user_study", "make a b --pairs x", "argument --pairs: invalid int value"),
            ("user_study", "count none.json", "no key.json"),
            ("user_study", "judge a b", "invalid choice: 'judge'"),
            ("calibrate_detector", "", "the second detector is the first one"),
            ("calibrate_detector", "--noise x", "argument --noise: invalid float value"),
            ("calibrate_detector", "--noise 300", "--noise 0 to 255"),
            ("calibrate_detector", "--noise nan", "--noise 0 to 255"),
            ("calibrate_detector", "--noise 15 --pictures 0", "--pictures needs 1 to 1,000,000"),
            ("calibrate_detector", "--noise 15 --seed -1", "--seed 0 or more"),
            ("calibrate_detector", "--noise 15 --row x", "--evaluation and --row belong together"),
            ("compare_decoders", "--groups 0", "argument --groups: 0 is no number above 0"),
            ("compare_decoders", "--groups -1", "argument --groups: .* is no number above 0"),
            ("compare_decoders", "--config none.yaml", "none.yaml: no such file"),
            ("compare_decoders", "--learner.lr x", r"learner\.lr: got 'x', needs a number"),
            ("compare_decoders", "--perceptual.spaces []", r"perceptual\.spaces|needs one or more"),
            ("pretrain_shapes", "--steps -5", "argument --steps: -5"),
            ("pretrain_shapes", "--steps 0", "argument --steps: 0"),
            ("pretrain_shapes", "--threads 0", "argument --threads: 0"),
            ("pretrain_shapes", "--seed -1", "--seed -1: give 0 or more"),
            ("pretrain_shapes", "--only nobody", "--only has no nobody; choose from prompts"),
            ("scale", "nobody", "no run nobody"),
            ("scale", "", "the following arguments are required: RUN"),
            ("scale", "nobody --rollout x", "argument --rollout: invalid int value"),
            ("compare", "--seeds 1,x", "'1,x' is no list of seeds"),
            ("compare", "--seeds ,", "',' is no list of seeds"),
            ("compare", "--config none.yaml", "none.yaml"),
            ("compare", "--only nobody", "no row nobody"),
            ("compare", "--workers 0", "workers"),
            ("evaluate", "--rows none.yaml", "none.yaml: no such file"),
            ("evaluate", "--images 0", "images: got 0, needs"),
            ("evaluate", "--images x", "argument --images: invalid int value"),
            ("evaluate", "--steps -1", "steps: got -1, needs"),
            ("evaluate", "--judges nobody", "nobody not among scorers"),
            ("evaluate", "--against nobody", "against: no row 'nobody'"),
            ("evaluate", "nobody@x", "nobody"),
        )
    ),
]
