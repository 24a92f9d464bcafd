import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.corner_pooling import CornerPooling

MAP = [[1, 3, 2], [4, 0, 2], [0, 5, 1]]
POOLED = {
    "top": [[4, 5, 2], [4, 5, 2], [0, 5, 1]],
    "bottom": [[1, 3, 2], [4, 3, 2], [4, 5, 2]],
    "left": [[3, 3, 2], [4, 2, 2], [5, 5, 1]],
    "right": [[1, 3, 3], [4, 4, 4], [0, 5, 5]],
}
# How many cells each one is the largest for; of equal ones the farthest counts.
CHOSEN = {
    "top": [[0, 0, 0], [2, 0, 2], [1, 3, 1]],
    "bottom": [[1, 2, 3], [2, 0, 0], [0, 1, 0]],
    "left": [[0, 2, 1], [1, 0, 2], [0, 2, 1]],
    "right": [[1, 2, 0], [3, 0, 0], [1, 2, 0]],
}


def pooled(direction, values, weights=None):
    """What the layer gives, and the gradient of its sum."""
    values = tf.constant(values, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = CornerPooling(direction)(values)
    return result.numpy(), tape.gradient(result, values, weights).numpy()


@pytest.mark.parametrize("direction", POOLED)
def test_by_hand(direction):
    result, gradient = pooled(direction, np.reshape(MAP, (1, 3, 3, 1)))
    np.testing.assert_array_equal(result[0, ..., 0], POOLED[direction])
    np.testing.assert_array_equal(gradient[0, ..., 0], CHOSEN[direction])


def loop(direction, values, weights):
    """The running maximum and its gradient, one row or column after the other, as the released code's C++ has it."""
    axis = 1 if direction in ("top", "bottom") else 2
    values, weights = (np.moveaxis(array, axis, 0) for array in (values, weights))
    places = range(len(values)) if direction in ("bottom", "right") else range(len(values))[::-1]
    result, gradient = np.empty_like(values), np.zeros_like(values)
    best, where = np.full(values.shape[1:], -np.inf, np.float32), np.zeros(values.shape[1:], int)
    for place in places:
        larger = values[place] > best
        best, where = np.where(larger, values[place], best), np.where(larger, place, where)
        result[place] = best
        np.put_along_axis(gradient, where[None], np.take_along_axis(gradient, where[None], 0) + weights[place], 0)
    return np.moveaxis(result, 0, axis), np.moveaxis(gradient, 0, axis)


# Lines shorter and longer than a block of eight, and than eight of them; negative values; many equal ones.
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 5, 8, 3), (1, 9, 64, 2), (1, 130, 71, 1)])
@pytest.mark.parametrize("direction", POOLED)
def test_equals_the_loop(direction, shape):
    random = np.random.default_rng(0)
    weights = random.integers(-4, 5, shape).astype(np.float32)  # whole numbers: their sums are exact in any order
    for values in (random.normal(size=shape).astype(np.float32) - 5, random.integers(0, 4, shape).astype(np.float32)):
        for found, expected in zip(pooled(direction, values, weights), loop(direction, values, weights), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("direction", ["top", "right"])
def test_in_a_graph_that_does_not_know_the_size(direction):
    values = np.random.default_rng(0).integers(0, 99, (2, 3, 600, 2)).astype(np.float32)
    values = values if direction == "right" else values.transpose(0, 2, 1, 3)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2])])
    def in_a_graph(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            result = CornerPooling(direction)(values)
        return result, tape.gradient(result, values, values)

    for found, expected in zip(in_a_graph(values), loop(direction, values, values), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_half_precision_and_the_config():
    layer = CornerPooling("left", dtype="mixed_float16")
    assert keras.backend.standardize_dtype(layer(np.float32(MAP)[None, ..., None]).dtype) == "float16"
    again = CornerPooling.from_config(layer.get_config())
    np.testing.assert_array_equal(again(np.float32(MAP)[None, ..., None])[0, ..., 0], POOLED["left"])
    assert CornerPooling("top")(keras.Input((None, 7, 3))).shape == (None, None, 7, 3)
