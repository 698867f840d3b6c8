"""Set how many workers a live run has, from any machine of its cluster. It goes on meanwhile.

    python jobs/scale.py RUN --rollout 8 --perception 3
    python jobs/scale.py RUN                              what it has, and what the cluster can give

New workers load their models, then join; those that are too many finish their groups first. No
number of the run changes.
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name")
    parser.add_argument("--rollout", type=int, help="workers that sample")
    parser.add_argument("--perception", type=int, help="workers that perceive")
    arguments = parser.parse_args()
    asked = {"rollout": arguments.rollout, "perception": arguments.perception}
    from percent_ray.runtime.control import scale

    try:
        print(scale(arguments.run, {r: n for r, n in asked.items() if n is not None}))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ValueError) else 1) from None


if __name__ == "__main__":
    main()
