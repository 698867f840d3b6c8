"""Train a flow model by GRPO with perceptual entropy. `--help` shows every key of the recipe."""

import sys
from pathlib import Path

from percent_ray.recipe.command_line import parse

RECIPES = Path(__file__).parent / "recipes"


def main() -> None:
    arguments = parse(sys.argv[1:], job="jobs/train_pec.py", default=RECIPES / "shapes_pec.yaml")
    from percent_ray import run
    from percent_ray.runtime import halves

    try:
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
    except (ValueError, OSError, FloatingPointError) as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        print(f"error: {error} {notes}".rstrip(), file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ValueError) else 1) from None
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
