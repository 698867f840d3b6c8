import io

import numpy as np
from PIL import Image

from percent_ray.pages.strips import SIDE, strip


def opened(found):
    return np.asarray(Image.open(io.BytesIO(found.content)).convert("RGB"))


def test_small_pictures_are_kept_pixel_by_pixel():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    found = strip("x", images)
    pixels = opened(found)
    assert (found.kind, found.crisp, found.columns) == ("png", True, 3)
    assert pixels.shape == (32, 3 * 33 - 1, 3)
    np.testing.assert_array_equal(pixels[:, 33:65], images[1].transpose(1, 2, 0))


def test_photographs_are_made_smaller_and_keep_their_shape():
    found = strip("x", np.full((2, 3, 128, 256), 200, np.uint8), columns=4)
    pixels = opened(found)
    assert (found.kind, found.crisp, found.columns) == ("jpg", False, 4)
    assert pixels.shape == (SIDE // 2, 4 * (SIDE + 2) - 2, 3)
    assert abs(int(pixels[40, 20, 0]) - 200) < 4
    assert pixels[40, -20, 0] > 250, "white where there is no picture"
