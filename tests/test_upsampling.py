import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.upsampling import DepthwiseConv2DTranspose, bilinear, bilinear_first


def test_starts_as_bilinear_interpolation():
    """1 and 5 are at 0.5 and 2.5 of the four pixels' 0 .. 3; beyond the border is 0."""
    rows = np.float32([(1, 5), (1, 5), (1, 5)])[None, ..., None]
    found = DepthwiseConv2DTranspose(2)(np.concatenate([rows, -rows], axis=-1))
    assert found.shape == (1, 6, 4, 2)
    np.testing.assert_allclose(found[0, 2, :, 0], (0.75, 2, 4, 3.75), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0, :, 0], 0.75 * found[0, 2, :, 0], rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], -found[..., 0])


@pytest.mark.parametrize("factor", [2, 4])
def test_is_a_transposed_convolution_of_each_channel(factor):
    layer, x = DepthwiseConv2DTranspose(factor), np.float32(np.random.RandomState(0).normal(size=(2, 3, 5, 4)))
    layer.build(x.shape)
    layer.kernel.assign(np.random.RandomState(1).normal(size=layer.kernel.shape))
    full = tf.linalg.diag(layer.kernel[..., 0])
    expected = tf.nn.conv2d_transpose(x, full, (2, 3 * factor, 5 * factor, 4), factor, "SAME")
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_of_any_size_saved_and_in_bfloat16(tmp_path):
    image = keras.Input((None, None, 3))
    model = keras.Model(image, DepthwiseConv2DTranspose(2, dtype="mixed_bfloat16")(image))
    assert model.output.shape == (None, None, None, 3)
    model.save(tmp_path / "model.keras")
    x = np.float32(np.random.RandomState(0).normal(size=(1, 4, 3, 3)))
    found = keras.models.load_model(tmp_path / "model.keras")(x)
    assert found.dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(found, "float32"), DepthwiseConv2DTranspose(2)(x), atol=0.02)


def test_initializers():
    """The released code fills the first filter only of a full kernel."""
    sides = (0.25, 0.75, 0.75, 0.25)
    np.testing.assert_allclose(bilinear((4, 4, 3, 1))[:, :, 2, 0], np.outer(sides, sides))
    kernel = bilinear_first((4, 4, 5, 3))
    assert kernel.shape == (4, 4, 5, 3)
    np.testing.assert_allclose(kernel[:, :, 0, 2], np.outer(sides, sides))
    others = np.array(kernel)[:, :, 1:]
    assert len(np.unique(others)) == others.size and 0.09 < abs(others).max() < 80**-0.5
