"""Train a flow model by GRPO with perceptual entropy. `--help` shows every key of the recipe."""

import sys
from pathlib import Path

from percent_ray import job

RECIPES = Path(__file__).parent / "recipes"


def main() -> None:
    job.run(train)


def train() -> None:
    from percent_ray.recipe.command_line import parse

    arguments = parse(sys.argv[1:], job="jobs/train_pec.py", default=RECIPES / "shapes_pec.yaml")
    from percent_ray import run
    from percent_ray.runtime import halves

    if arguments.dry_run:
        from percent_ray.preview import report

        report.show(
            arguments.recipe,
            measure=arguments.measure,
            images_per_hour=arguments.images_per_hour,
            tflops=arguments.tflops,
        )
    elif arguments.only == "rollout":
        halves.sample_groups(arguments.recipe)
    elif arguments.only == "learn":
        assert arguments.source is not None
        halves.learn_groups(arguments.recipe, arguments.source)
    else:
        run.train(arguments.recipe, resume=arguments.resume)


if __name__ == "__main__":
    main()
