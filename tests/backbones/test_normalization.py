"""Batch normalisation of the backbones."""

import keras
import numpy as np
import tensorflow as tf

from tfdet.backbones.normalization import BatchNorm


def test_inference_equals_keras_batch_normalisation(seeded):
    layer, theirs = BatchNorm(epsilon=1e-5), keras.layers.BatchNormalization(epsilon=1e-5)
    x = tf.constant(seeded("x", (2, 3, 4, 5)))
    for each in (layer, theirs):
        each.build(x.shape)
        each.set_weights([seeded(name, (5,)) for name in ("weight", "bias", "mean", "running_var")])
    np.testing.assert_allclose(layer(x), theirs(x), rtol=1e-5, atol=1e-6)
    layer.moving_variance.assign([0.0] * 5)  # epsilon alone: a larger one would show
    theirs.moving_variance.assign([0.0] * 5)
    np.testing.assert_allclose(layer(x), theirs(x), rtol=1e-5)
    np.testing.assert_allclose(layer(x, training=True), theirs(x, training=True), rtol=1e-5, atol=1e-6)


def test_half_precision_is_rounded_once(seeded):
    layers = [BatchNorm(dtype=dtype) for dtype in ("mixed_bfloat16", "float32")]
    x = tf.cast(seeded("x", (2, 3, 4, 5)), tf.bfloat16)
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights([seeded(name, (5,)) for name in ("weight", "bias", "mean", "running_var")])
    half, full = (layer(x) for layer in layers)
    assert half.dtype == tf.bfloat16
    np.testing.assert_array_equal(half, tf.cast(full, tf.bfloat16))


def test_what_one_backend_saves_another_loads(monkeypatch):
    """Keras refuses statistics over all replicas on any backend but TensorFlow."""
    layer = BatchNorm(name="norm")
    assert layer.synchronized
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert not BatchNorm.from_config(layer.get_config()).synchronized
