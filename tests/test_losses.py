import numpy as np
import pytest
import tensorflow as tf

from tfdet import losses


@pytest.mark.parametrize(
    ("target", "prediction", "beta", "loss", "slope"),
    [
        (0, 0, 1, 0, 0),
        (0, 0.5, 1, 0.125, 0.5),
        (0, -0.5, 1, 0.125, -0.5),
        (0, 1, 1, 0.5, 1),
        (0, -3, 1, 2.5, -1),
        (5, 3, 1, 1.5, -1),
        (0, 0.25, 0.5, 0.0625, 0.5),
        (0, 0.5, 0.5, 0.25, 1),
        (0, 1, 0.5, 0.75, 1),
        (0, 1, 2, 0.25, 0.5),
        (0, 1e30, 1, 1e30, 1),
    ],
)
def test_smooth_l1_by_hand(target, prediction, beta, loss, slope):
    prediction = tf.Variable([float(prediction)])
    with tf.GradientTape() as tape:
        value = losses.smooth_l1([float(target)], prediction, beta)
    np.testing.assert_allclose(value, [loss], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, prediction), [slope], rtol=1e-6)


def test_smooth_l1_is_elementwise_and_in_float32():
    target = np.zeros((2, 3, 4), np.float16)
    loss = losses.smooth_l1(target, tf.fill((2, 3, 4), tf.constant(300, tf.bfloat16)))
    assert loss.dtype == tf.float32
    np.testing.assert_array_equal(loss, np.full((2, 3, 4), 299.5))


def cross_entropy(labels, logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_softmax, labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("shape", [(7,), (2, 5), (0,)])
@pytest.mark.parametrize("spread", [1, 30, 1000])
def test_softmax_cross_entropy_is_minus_log_softmax(shape, spread):
    random = np.random.default_rng(0)
    logits = random.normal(scale=spread, size=(*shape, 4)).astype(np.float32)
    labels = random.integers(0, 4, shape)
    loss = losses.softmax_cross_entropy(labels, logits)
    assert loss.shape == shape
    np.testing.assert_allclose(loss, cross_entropy(labels, logits), rtol=1e-5, atol=1e-6)


def test_softmax_cross_entropy_by_hand():
    logits = np.log(np.float32([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(losses.softmax_cross_entropy([0, 2], logits), -np.log([0.2, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_softmax_cross_entropy_of_half_precision_is_computed_in_float32(dtype):
    logits = tf.constant([[1, -2, 0.5, 1.25], [-60, 60, 0, 0]], dtype)  # exact in either type
    loss = losses.softmax_cross_entropy(np.array([0, 0]), logits)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, cross_entropy(np.array([0, 0]), logits.numpy().astype(np.float32)), rtol=1e-6)


def test_softmax_cross_entropy_has_a_finite_gradient():
    logits = tf.Variable([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = losses.softmax_cross_entropy(np.array([1, 1]), logits)
    np.testing.assert_allclose(loss, [2e4, np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, logits), [[1, -1, 0], [1 / 3, -2 / 3, 1 / 3]], rtol=1e-5)
