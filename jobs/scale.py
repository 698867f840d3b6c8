"""Set how many workers a live run has, from any machine of its cluster. It goes on meanwhile.

    python jobs/scale.py RUN --rollout 8 --perception 3
    python jobs/scale.py RUN                              what it has, and what the cluster can give

New workers load their models, then join; those that are too many finish their groups first. No
number of the run changes.
"""

import argparse

from percent_ray import job


def main() -> None:
    job.run(scale)


def scale() -> None:
    parser = job.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name")
    parser.add_argument("--rollout", type=int, metavar="N", help="workers that sample")
    parser.add_argument("--perception", type=int, metavar="N", help="workers that perceive")
    arguments = parser.parse_args()
    asked = {"rollout": arguments.rollout, "perception": arguments.perception}
    from percent_ray.runtime import control

    print(control.scale(arguments.run, {r: n for r, n in asked.items() if n is not None}))


if __name__ == "__main__":
    main()
