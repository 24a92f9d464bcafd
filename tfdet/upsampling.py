"""Transposed convolutions of networks that come back to a fine map, and how they start: as bilinear interpolation.

The kernel is twice the factor f: each pixel is spread over 2f x 2f pixels, and each of those gets a share of four.
"""

import keras
import numpy as np
from keras import ops

from tfdet.errors import require_tensorflow


@keras.saving.register_keras_serializable("tfdet")
class DepthwiseConv2DTranspose(keras.layers.Layer):
    """Enlarges a map, every channel with a kernel of its own: [B, H, W, C] -> [B, factor * H, factor * W, C].

    PyTorch's ConvTranspose2d with groups = channels, kernel 2 * factor, stride factor, padding factor / 2, no bias.
    Keras has no such layer, TensorFlow has it as the gradient of a depthwise convolution.

    Args:
        factor: even.
    Raises:
        TfdetError: Keras computes with another backend.
    """

    use_bias = False

    def __init__(self, factor, **kwargs):
        require_tensorflow("a depthwise transposed convolution")
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        shape = (2 * self.factor, 2 * self.factor, input_shape[-1], 1)
        self.kernel = self.add_weight(shape=shape, initializer=bilinear, name="kernel")

    def call(self, inputs):
        import tensorflow as tf

        strides = (1, self.factor, self.factor, 1)
        size = tf.shape(inputs) * strides
        result = tf.nn.depthwise_conv2d_backprop_input(
            size, ops.convert_to_tensor(self.kernel), inputs, strides, "SAME"
        )
        result.set_shape(self.compute_output_shape(inputs.shape))
        return result

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        enlarged = (side and side * self.factor for side in (height, width))
        return (batch, *enlarged, channels)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("tfdet")
def bilinear(shape, dtype=None):
    """An initializer: every channel of a depthwise kernel [2f, 2f, C, 1] interpolates."""
    return ops.broadcast_to(ops.cast(_tent(shape[0])[:, :, None, None], dtype or "float32"), shape)


@keras.saving.register_keras_serializable("tfdet")
def bilinear_first(shape, dtype=None):
    """An initializer of a full kernel [2f, 2f, filters, channels], as CenterNet's code has it (`fill_up_weights`).

    Written for depthwise kernels, it reaches the first filter only, which then sums all channels, interpolated; the
    others start as PyTorch starts them, uniform in +-1/sqrt(fan in), where PyTorch counts the filters as what goes in.
    """
    size, _, filters, channels = shape
    bound = (size * size * filters) ** -0.5
    others = keras.random.uniform((size, size, filters - 1, channels), -bound, bound, dtype or "float32")
    first = bilinear((size, size, channels, 1), others.dtype)
    return ops.concatenate([ops.transpose(first, (0, 1, 3, 2)), others], axis=2)


def _tent(size):
    """Weights of bilinear interpolation, [size, size]: 4 -> 1/4, 3/4, 3/4, 1/4 along each side."""
    middle = (size - 1) / 2
    sides = 1 - abs(np.arange(size) - middle) / (size / 2)
    return np.outer(sides, sides)
