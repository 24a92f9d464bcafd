import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.deformable import DeformableConv2D, deform_conv2d


def wave(*shape, frequency):
    return np.sin(frequency * np.arange(np.prod(shape))).reshape(shape)


def example(dtype="float64"):
    """Features [1, 4, 5, 2], offsets of up to two pixels, mask, kernel [3, 3, 2, 3], bias."""
    features, offsets = wave(1, 4, 5, 2, frequency=0.7), 2 * wave(1, 4, 5, 18, frequency=1.3)
    mask, kernel = 0.5 + 0.5 * wave(1, 4, 5, 9, frequency=2.1), wave(3, 3, 2, 3, frequency=0.9)
    return [tf.constant(array, dtype) for array in (features, offsets, mask, kernel, np.array([0.1, 0.2, 0.3]))]


# torchvision 0.28, deform_conv2d of that; the upstream gradient is wave(1, 4, 5, 3, frequency=0.37)
TORCHVISION_FIRST_ROW = [
    (0.1306, 0.39199, 0.50809),
    (-0.40801, -0.29466, 0.19303),
    (-0.43679, 0.40033, 1.08584),
    (-0.16215, -0.28004, -0.03465),
    (0.42563, 0.26366, 0.05352),
]
TORCHVISION_LAST_ROW = [
    (0.48246, 0.2707, 0.00544),
    (0.12163, -0.01979, 0.00513),
    (0.17963, 0.80335, 0.97046),
    (0.66793, 0.46615, 0.06296),
    (-0.27271, 0.00644, 0.43208),
]
# Of features, offsets, mask and kernel: sum, sum of absolute values, first and last six numbers
TORCHVISION_GRADIENTS = [
    (
        (1.861519, 21.735335),
        [-0.2809, 0.64802, -0.32304, 0.30617, 0.61655, -0.09838],
        [-0.50388, 0.51257, -0.75122, 0.57626, 0.69893, -0.26776],
    ),
    ((-4.002517, 47.824357), [0.08235, 0, 0, 0, 0, 0], [0, 0, 0.05413, 0.08721, 0, 0]),
    ((1.463678, 34.937331), [0, 0, 0, -0.0357, 0, 0.33492], [-0.03179, 0, 0, 0, -0.37938, 0]),
    (
        (-1.046155, 16.697672),
        [-0.5269, -0.42136, -0.2588, -0.67333, -0.74038, -0.70723],
        [0.01096, 0.01226, 0.01191, 0.02558, 0.01852, 0.00896],
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_torchvision(dtype):
    given = example(dtype)
    with tf.GradientTape() as tape:
        tape.watch(given)
        result = deform_conv2d(*given)
    assert (result.shape, result.dtype) == ((1, 4, 5, 3), dtype)
    np.testing.assert_allclose(result[0, 0], TORCHVISION_FIRST_ROW, atol=1e-5)
    np.testing.assert_allclose(result[0, -1], TORCHVISION_LAST_ROW, atol=1e-5)
    upstream = tf.constant(wave(1, 4, 5, 3, frequency=0.37), dtype)
    *gradients, of_bias = tape.gradient(result, given, upstream)
    np.testing.assert_allclose(of_bias, tf.reduce_sum(upstream, (0, 1, 2)), rtol=1e-5)
    for gradient, (sums, first, last) in zip(gradients, TORCHVISION_GRADIENTS, strict=True):
        numbers = np.ravel(gradient)
        np.testing.assert_allclose((numbers.sum(), abs(numbers).sum()), sums, rtol=1e-4)
        np.testing.assert_allclose(numbers[:6], first, atol=2e-5)
        np.testing.assert_allclose(numbers[-6:], last, atol=2e-5)


@pytest.mark.parametrize("which", range(5), ids=["features", "offsets", "mask", "kernel", "bias"])
def test_gradients_are_slopes(which):
    given = example()
    given[1] += 0.1  # at offset 0, a pixel's own place, there is no slope
    direction = np.random.RandomState(0).normal(size=given[which].shape)
    steps = []
    for step in (1e-6, -1e-6):
        moved = [*given[:which], given[which] + step * direction, *given[which + 1 :]]
        steps.append(tf.reduce_sum(tf.square(deform_conv2d(*moved))))
    with tf.GradientTape() as tape:
        tape.watch(given)
        total = tf.reduce_sum(tf.square(deform_conv2d(*given)))
    slope = tf.reduce_sum(tape.gradient(total, given[which]) * direction)
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / 2e-6, rtol=1e-6)


RAMP = 10 * np.arange(4)[:, None] + np.arange(5) + 1.0  # 4 x 5; row 1 is 11 .. 15
# Offset (y, x) and mask of the middle tap, the only one that counts -> what pixels (1, 4) and (1, 0) read
READS = {
    "its place": ((0, 0), 1, 15, 11),
    "half masked": ((0, 0), 0.5, 7.5, 5.5),
    "a row down": ((1, 0), 1, 25, 21),
    "between": ((0.25, -0.5), 1, 17, 6.75),  # left of the first column is 0
    "half beyond the border": ((0, 0.5), 1, 7.5, 11.5),
    "a pixel beyond": ((0, 1), 1, 0, 12),
    "far beyond": ((-1e9, 1e9), 1, 0, 0),
    "above, half a pixel": ((-1.5, 0), 1, 2.5, 0.5),
}


@pytest.mark.parametrize(("offset", "mask", "last", "first"), READS.values(), ids=READS)
def test_where_a_tap_reads(offset, mask, last, first):
    features, kernel = RAMP[None, ..., None].astype("float32"), np.zeros((3, 3, 1, 1), "float32")
    kernel[1, 1] = 1
    offsets, masks = np.zeros((1, 4, 5, 9, 2), "float32"), np.ones((1, 4, 5, 9), "float32")
    offsets[..., 4, :], masks[..., 4] = offset, mask
    found = deform_conv2d(features, offsets.reshape(1, 4, 5, 18), masks, kernel)
    np.testing.assert_allclose((found[0, 1, 4, 0], found[0, 1, 0, 0]), (last, first), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_without_offsets_it_is_a_convolution(size):
    features, kernel = wave(2, 6, 4, 3, frequency=0.7), wave(size, size, 3, 2, frequency=0.9)
    offsets, mask = np.zeros((2, 6, 4, 2 * size**2)), np.ones((2, 6, 4, size**2))
    found = deform_conv2d(features, offsets, mask, kernel)
    np.testing.assert_allclose(found, tf.nn.conv2d(features, kernel, 1, "SAME"), atol=1e-12)


def test_starts_as_half_a_convolution_that_learns_its_offsets():
    layer, features = DeformableConv2D(4), tf.constant(wave(1, 6, 5, 3, frequency=0.7), "float32")
    with tf.GradientTape() as tape:
        found = layer(features)
    np.testing.assert_allclose(found, tf.nn.conv2d(features, layer.kernel, 1, "SAME") / 2, atol=1e-6)
    kernel, bias, offset_kernel, offset_bias = tape.gradient(found, layer.trainable_variables, tf.square(found))
    assert all(np.any(gradient) for gradient in (kernel, bias, offset_kernel))
    assert np.all(offset_bias[18:]) and np.any(offset_bias[:18])
    assert np.ptp(layer.kernel) < 2 / 27**0.5


def some_layer():
    layer = DeformableConv2D(4)
    layer.build((None, None, None, 3))
    layer.offset_convolution.bias.assign(wave(27, frequency=1.3))
    return layer


def test_a_saved_model_of_any_size_gives_the_same(tmp_path):
    image = keras.Input((None, None, 3))
    model = keras.Model(image, some_layer()(image))
    assert model.output.shape == (None, None, None, 4)
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "export", verbose=False)
    again, served = keras.models.load_model(tmp_path / "model.keras"), tf.saved_model.load(tmp_path / "export")
    for shape in ((1, 6, 5, 3), (2, 3, 8, 3)):
        features = tf.constant(wave(*shape, frequency=0.7), "float32")
        np.testing.assert_array_equal(again(features), model(features))
        np.testing.assert_allclose(served.serve(features), model(features), atol=1e-6)


def test_a_batch_of_no_images():
    *maps, kernel, bias = example()
    given = [*(tensor[:0] for tensor in maps), kernel, bias]
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = deform_conv2d(*given)
    assert found.shape == (0, 4, 5, 3)
    for tensor, gradient in zip(given, tape.gradient(found, given), strict=True):
        np.testing.assert_array_equal(gradient, tf.zeros_like(tensor))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(dtype):
    exact, features = some_layer(), tf.constant(wave(1, 6, 5, 3, frequency=0.7), "float32")
    layer = DeformableConv2D(4, dtype=f"mixed_{dtype}")
    layer.build(features.shape)
    layer.set_weights(exact.get_weights())
    assert layer.offset_convolution.compute_dtype == dtype
    with tf.GradientTape() as tape:
        found = layer(features)
    assert found.dtype == dtype
    np.testing.assert_allclose(tf.cast(found, "float32"), exact(features), atol=0.03)
    gradients = tape.gradient(found, layer.trainable_variables)
    assert all(gradient.dtype == "float32" and np.any(gradient) for gradient in gradients)
