import numpy as np
import pytest
import tensorflow as tf

from tfdet.resizers import Warp


def grey(rows):
    return np.repeat(np.array(rows)[..., None], 3, axis=-1)


# Pixel centres lie at halves: pixel i of the result looks at (i + 1/2) * old / new - 1/2, held inside the image.
CASES = {
    "the same size": (2, [[0, 100], [200, 40]], [[0, 100], [200, 40]]),
    "twice as large": (
        4,
        [[0, 100], [200, 40]],
        [[0, 25, 75, 100], [50, 58.75, 76.25, 85], [150, 126.25, 78.75, 55], [200, 160, 80, 40]],
    ),
    "half as large": (2, [[0, 100, 8, 8], [200, 40, 0, 0], [1, 1, 2, 2], [3, 3, 2, 2]], [[85, 4], [2, 2]]),
    "a quarter, not smoothed": (1, [[99, 99, 99, 99], [99, 0, 8, 99], [99, 4, 4, 99], [99] * 4], [[4]]),
    "wide": (2, [[0, 10, 20, 30]], [[5, 25], [5, 25]]),
    "a single pixel": (3, [[7]], [[7] * 3] * 3),
}


@pytest.mark.parametrize(("size", "image", "expected"), CASES.values(), ids=CASES)
def test_warp_by_hand(size, image, expected):
    warped = Warp(size)(grey(image).astype(np.uint8))
    assert warped.dtype == tf.float32
    np.testing.assert_allclose(warped, grey(expected), atol=1e-4)


def test_warp_keeps_channels_apart():
    image = np.zeros((1, 2, 3), np.float32)
    image[0, 0], image[0, 1] = (0, 50, 100), (40, 90, 20)
    np.testing.assert_allclose(Warp(2)(image)[1], [(0, 50, 100), (40, 90, 20)])


def test_warp_of_a_batch_is_that_of_each():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    together = Warp(4)(images)
    assert together.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(together, [Warp(4)(image) for image in images], rtol=1e-6)


def test_scale_takes_boxes_to_the_fed_image():
    scale = Warp(300).scale(height=100, width=600)
    np.testing.assert_allclose(scale, [0.5, 3, 0.5, 3])
    np.testing.assert_allclose(np.array([0, 0, 600, 100]) * scale, [0, 0, 300, 300])
    many = Warp(300).scale(np.array([100, 300]), np.array([600, 150]))
    np.testing.assert_allclose(many, [[0.5, 3, 0.5, 3], [2, 1, 2, 1]])


def test_in_a_graph_that_does_not_know_the_size():
    warp = tf.function(Warp(4), [tf.TensorSpec([None, None, 3], tf.uint8)])
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_allclose(warp(image), Warp(4)(image))
