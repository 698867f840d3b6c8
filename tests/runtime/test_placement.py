import pytest

from percent_ray.recipe.tree import Recipe, Role, Runtime
from percent_ray.runtime.placement import GIB, check, options

CLUSTER = {"CPU": 8.0, "GPU": 2.0, "memory": 64 * GIB}


def recipe(**roles: Role) -> Recipe:
    small = Role(cpus=1, gpus=0)
    return Recipe(
        runtime=Runtime(**{"rollout": small, "perception": small, "learner": small} | roles)
    )


def test_what_fits_is_accepted():
    check(recipe(rollout=Role(workers=2, cpus=1, gpus=0.5), learner=Role(gpus=1)), CLUSTER)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            {"rollout": Role(workers=3, gpus=1)},
            r"runtime\.rollout: 3 workers x 1 GPU = 3 asked, 2 of 2",
        ),
        (
            {"rollout": Role(gpus=1.5), "learner": Role(gpus=1)},
            r"runtime\.learner: 1 workers x 1 GPU = 1 asked, 0\.5 of 2",
        ),
        ({"perception": Role(cpus=9)}, r"runtime\.perception: 1 workers x 9 CPU = 9 asked, 7 of 8"),
        (
            {"learner": Role(memory_gb=100)},
            r"runtime\.learner: 1 workers x 100 memory = 100 GiB asked, 64 GiB of 64 GiB",
        ),
    ],
)
def test_what_does_not_fit_names_role_asked_and_available(roles, message):
    with pytest.raises(ValueError, match=message):
        check(recipe(**roles), CLUSTER)


def test_memory_is_reserved_only_where_asked():
    assert options(Role(cpus=2)) == {"num_cpus": 2, "num_gpus": 0}
    assert options(Role(memory_gb=3))["memory"] == 3 * GIB
