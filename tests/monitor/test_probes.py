import numpy as np
import pytest

from percent_ray.monitor import probes


def groups(count=10):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, count, 3, 6, 5), dtype=np.uint8)
    return list(zip(("a café", "b\n\u2028c"), images, strict=True))


def test_pictures_come_back_as_they_were_written(tmp_path):
    written = groups()
    path = probes.write(tmp_path, 40, written)
    found = probes.read(path)
    assert (found.step, found.prompts) == (40, ("a café", "b\n\u2028c"))
    np.testing.assert_array_equal(found.images, np.stack([i[: probes.KEPT] for _, i in written]))


def test_fewer_pictures_than_are_kept_come_back_too(tmp_path):
    assert probes.read(probes.write(tmp_path, 0, groups(3))).images.shape == (2, 3, 3, 6, 5)


def test_files_are_in_the_order_of_their_steps(tmp_path):
    for step in (100_000, 20, 0):
        probes.write(tmp_path, step, groups(2))
    (tmp_path / "pictures" / "probe_x.png").touch()
    assert [*probes.files(tmp_path)] == [0, 20, 100_000]


def test_what_is_no_such_picture_is_told(tmp_path):
    from PIL import Image

    torn = probes.write(tmp_path, 20, groups())
    torn.write_bytes(torn.read_bytes()[:150])
    other = tmp_path / "pictures" / "probe_00001.png"
    Image.new("RGB", (4, 4)).save(other)
    for path in (torn, other, tmp_path / "nothing.png"):
        with pytest.raises(ValueError, match="is no picture of a probe"):
            probes.read(path)
