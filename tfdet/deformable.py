"""Deformable convolution, modulated: DCNv2 (Zhu et al. 2018, arXiv 1811.11168, section 2.2).

A convolution whose taps read beside their places: for each pixel and tap a second convolution gives an offset, by which
the tap is moved, and a mask in 0..1, by which what it read is multiplied.

A tap reads between pixels, so it reads its four neighbours, each with a weight. The kernel is applied first, to every
pixel and for every tap: a table of B * H * W * taps rows of filters. An output pixel is then a weighted sum of 4 * taps
rows of that table, and all output pixels are one product of a sparse matrix with it. (Reading first takes as long, and
as the kernel has fewer filters than channels wherever it is used, this needs less memory.)
"""

import keras
import numpy as np
import tensorflow as tf

from tfdet import sparse
from tfdet.errors import require_tensorflow


def deform_conv2d(features, offsets, mask, kernel, bias=None):
    """A convolution of stride 1, padded to the same size, whose taps are moved and weighted.

    As torchvision's operator: beyond the map's border all is zero. Places are computed in float32; the result has the
    dtype of the features, and the sums are computed in no less than float32. All five have gradients.

    Args:
        features: [B, H, W, C].
        offsets: [B, H, W, 2 * taps], in pixels: y and x of the first tap, y and x of the second, ... Taps go through
            the kernel row by row.
        mask: [B, H, W, taps].
        kernel: [kernel height, kernel width, C, filters]; both sides odd.
        bias: [filters], or None.
    Returns:
        [B, H, W, filters].
    """
    features, kernel = tf.convert_to_tensor(features), tf.convert_to_tensor(kernel)
    *size, channels, filters = kernel.shape
    taps = size[0] * size[1]
    precision = tf.float64 if features.dtype == tf.float64 else tf.float32
    pixels, weights = _neighbours(tf.cast(offsets, precision), tf.cast(mask, precision), size)

    table = tf.reshape(features, [-1, channels])
    kernels = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [channels, taps * filters])
    rows = tf.reshape(pixels * taps + tf.range(taps)[:, None], [-1, 4 * taps])
    summed = _read(table, kernels, tf.reshape(weights, [-1, 4 * taps]), rows, filters)

    result = tf.reshape(summed, tf.concat([tf.shape(features)[:3], [filters]], axis=0))
    result.set_shape([*features.shape[:3], filters])
    return result if bias is None else result + tf.convert_to_tensor(bias)


def _neighbours(offsets, mask, size):
    """The four pixels around each tap, and what each contributes to what the tap reads.

    Returns:
        int32 [B, H, W, taps, 4], their places in the table of all pixels of the batch; their weights, of the same shape
        and the dtype of the offsets: 0 for one that lies outside of the map, whose place is then any other.
    """
    batch, height, width, taps = tf.unstack(tf.shape(mask))
    offsets = tf.reshape(offsets, [batch, height, width, taps, 2])
    tap_rows, tap_columns = (taps.ravel() - taps.max() // 2 for taps in np.indices(size))
    rows, row_weights = _along(tf.range(height)[:, None, None] + tap_rows, offsets[..., 0], height)
    columns, column_weights = _along(tf.range(width)[:, None] + tap_columns, offsets[..., 1], width)

    first_pixels = tf.range(batch)[:, None, None, None, None, None] * height * width
    pixels = first_pixels + rows[..., :, None] * width + columns[..., None, :]
    weights = mask[..., None, None] * row_weights[..., :, None] * column_weights[..., None, :]
    shape = [batch, height, width, taps, 4]
    return tf.reshape(pixels, shape), tf.reshape(weights, shape)


def _along(places, offsets, length):
    """The two rows (or columns) beside each place, int32 [..., 2], and the weights of linear interpolation."""
    point = tf.cast(places, offsets.dtype) + offsets
    neighbours = tf.floor(point)[..., None] + [0.0, 1.0]
    last = tf.cast(length - 1, offsets.dtype)
    weights = tf.where((neighbours >= 0) & (neighbours <= last), 1 - tf.abs(point[..., None] - neighbours), 0.0)
    return tf.cast(tf.clip_by_value(neighbours, 0.0, last), tf.int32), weights


def _read(table, kernels, weights, rows, filters):
    """Weighted sums of the rows of table @ kernels.

    Args:
        table: [P, C], all pixels.
        kernels: [C, taps * filters]; the product is taken as [P * taps, filters].
        weights, rows: [Q, 4 * taps], which rows are summed for each of the Q results.
    Returns:
        [Q, filters], in the dtype of the table.
    """

    @tf.custom_gradient  # TensorFlow's own would keep, and gather, 4 * taps rows for each pixel
    def read(table, kernels, weights):
        count, entries = tf.unstack(tf.shape(rows))
        indices = tf.stack([tf.repeat(tf.range(count), entries), tf.reshape(rows, [-1])], axis=1)
        shape = tf.stack([count, tf.shape(table)[0] * (entries // 4)])
        matrix = tf.cast(indices, tf.int64), tf.reshape(weights, [-1]), tf.cast(shape, tf.int64)

        def transformed():
            return tf.cast(tf.reshape(tf.matmul(table, kernels), [-1, filters]), weights.dtype)

        def gradient(upstream):
            upstream = tf.cast(upstream, weights.dtype)
            of_transformed = sparse.matmul(*matrix, upstream, transposed=True)
            of_transformed = tf.cast(tf.reshape(of_transformed, [-1, kernels.shape[1]]), table.dtype)
            of_table = tf.matmul(of_transformed, kernels, transpose_b=True)
            of_kernels = tf.matmul(table, of_transformed, transpose_a=True)
            # Computed again: kept, it would be `taps` times as large as the result. One neighbour after the other.
            again = transformed()
            neighbours = [tf.gather(again, rows[:, i::4]) for i in range(4)]
            of_weights = [tf.reduce_sum(values * upstream[:, None], axis=-1) for values in neighbours]
            return of_table, of_kernels, tf.reshape(tf.stack(of_weights, axis=-1), tf.shape(weights))

        return tf.cast(sparse.matmul(*matrix, transformed()), table.dtype), gradient

    return read(table, kernels, weights)


@keras.saving.register_keras_serializable("tfdet")
class DeformableConv2D(keras.layers.Layer):
    """DCNv2 with the convolution that gives its offsets and masks: [B, H, W, C] -> [B, H, W, filters], stride 1.

    That convolution starts at zero, as in the paper: no offsets, and all masks 0.5 (a sigmoid). Its outputs are those
    of the released code: first the offsets, then the masks, as `deform_conv2d` takes them. The kernel starts as there
    as well, uniform in +-1/sqrt(fan in).

    Args:
        filters: output channels.
        kernel_size: taps along each side, odd.
    Raises:
        TfdetError: Keras computes with another backend.
    """

    use_bias = True  # `load_torch` asks for it

    def __init__(self, filters, kernel_size=3, **kwargs):
        require_tensorflow("a deformable convolution")
        super().__init__(**kwargs)
        self.filters, self.kernel_size = filters, kernel_size
        self.offset_convolution = keras.layers.Conv2D(
            3 * kernel_size**2,
            kernel_size,
            padding="same",
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="offset_convolution",
        )
        self.supports_jit = False  # the sparse product has no XLA kernel

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        self.kernel = self.add_weight(shape=shape, initializer=uniform, name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
        self.offset_convolution.build(input_shape)

    def call(self, inputs):
        offsets, mask = tf.split(
            self.offset_convolution(inputs), [2 * self.kernel_size**2, self.kernel_size**2], axis=-1
        )
        return deform_conv2d(inputs, offsets, tf.sigmoid(mask), self.kernel, self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}
