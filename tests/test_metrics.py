from percent_ray.metrics import by_space


def test_by_space():
    metrics = {"diversity/vendi_dino": 2.0, "diversity/variance_dino": 1.0}
    assert by_space(metrics, "diversity/vendi_") == {"dino": 2.0}
