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
]
