from percent_ray.monitor.failed import Failed

CLIP = {"clip": "scorers.clip: RuntimeError: out of memory"}
DINO = {"dino": "scorers.dino: returned float32 [3], expected floats [4]"}


def test_the_first_failure_of_each_reward_is_told_with_its_text():
    failed = Failed()
    assert list(failed.add(0, [{}, {}])) == []
    assert list(failed.add(1, [CLIP, {}])) == [
        "step 2: scorers.clip: RuntimeError: out of memory (for 1 of 2 groups; told at its first "
        "failure only)"
    ]
    assert list(failed.add(2, [CLIP, CLIP])) == []
    [line] = failed.add(3, [DINO | CLIP, {}])
    assert line.startswith("step 4: scorers.dino: returned float32 [3], expected floats [4] (for 1")
    assert failed.always() == []
    assert failed.words() == [
        "scorers.clip failed for 4 of 8 groups; first: scorers.clip: RuntimeError: out of memory",
        f"scorers.dino failed for 1 of 8 groups; first: {DINO['dino']}",
    ]


def test_a_reward_that_always_fails_is_told():
    failed = Failed()
    for step in range(3):
        list(failed.add(step, [CLIP, CLIP]))
    said = (
        "scorers.clip failed for every one of 6 groups and is no part of the reward; first: "
        "scorers.clip: RuntimeError: out of memory"
    )
    assert failed.always() == failed.words() == [said]
    list(failed.add(3, [{}, CLIP]))
    assert failed.always() == []
