"""From an image of any size to the one a detector is fed. The same object serves training, prediction and serving.

Images of one batch may differ in size. They are padded with NaN, which no pixel is: so a batch itself tells what of it
is image, and every detector takes one tensor. `without_padding` reads it back inside the detector.
"""

import tensorflow as tf
from keras import ops

from tfdet.backbones.vgg import TORCH_MEAN


class Warp:
    """Resize to `size` x `size`, the aspect ratio not kept (SSD). Bilinear, pixel centres at halves, no antialias."""

    def __init__(self, size):
        self.size = size

    def __call__(self, images):
        """images [..., H, W, 3] of any dtype, 0..255 -> float32 [..., size, size, 3]."""
        return ops.image.resize(
            ops.cast(images, "float32"), (self.size, self.size), interpolation="bilinear", data_format="channels_last"
        )

    def scale(self, height, width):
        """What box coordinates xyxy are multiplied by: sizes [...] of the original in pixels -> float32 [..., 4]."""
        return _scale(height, width, self.size, self.size)


class ShortSide:
    """Resize so that the short side has `short` pixels, but the long one no more than `long`; then pad (R-CNN family).

    Both sides keep their ratio, rounded down as torchvision does, and are padded at the right and at the bottom to a
    multiple of the stride of a backbone. Bilinear, pixel centres at halves, no antialias.

    Args:
        short, long: pixels.
        remainder: what the padded sides leave when they are divided by the multiple, in pixels.
    """

    def __init__(self, short, long, multiple=32, remainder=0):
        self.short, self.long, self.multiple, self.remainder = short, long, multiple, remainder

    def __call__(self, images):
        """images [..., H, W, 3] of any dtype, 0..255 -> float32 [..., h, w, 3], NaN where there is no image."""
        # keras.ops cannot resize to a size that only the graph knows.
        height, width = self.size(*tf.unstack(tf.shape(images)[-3:-1]))
        return _pad(
            tf.image.resize(tf.cast(images, tf.float32), tf.stack([height, width])), self.multiple, self.remainder
        )

    def size(self, height, width):
        """Height and width of an image after resizing, without the padding: int32."""
        height, width = ops.cast(height, "int32"), ops.cast(width, "int32")
        shorter, longer = ops.minimum(height, width), ops.maximum(height, width)
        # In whole numbers: floating point would make 479 of 480 * (800 / 480) * ... now and then.
        short_fits = self.short * longer <= self.long * shorter
        target, source = ops.where(short_fits, self.short, self.long), ops.where(short_fits, shorter, longer)
        return ops.maximum(height * target // source, 1), ops.maximum(width * target // source, 1)

    def scale(self, height, width):
        """As that of `Warp`."""
        return _scale(height, width, *self.size(height, width))


class KeepSize:
    """Every image in its own size, padded as `ShortSide` does (CenterNet's test on COCO).

    Args:
        multiple, remainder: as those of `ShortSide`.
    """

    def __init__(self, multiple=32, remainder=0):
        self.multiple, self.remainder = multiple, remainder

    def __call__(self, images):
        """As `ShortSide`."""
        return _pad(tf.cast(images, tf.float32), self.multiple, self.remainder)

    def scale(self, height, width):
        """As that of `Warp`."""
        return _scale(height, width, height, width)


def rescale(images, factor, multiple, remainder=0):
    """Fed images [..., H, W, 3] at `factor` times their size: [..., h, w, 3], padded again as `ShortSide` does."""
    sides = tf.cast(tf.round(factor * tf.cast(tf.shape(images)[-3:-1], tf.float32)), tf.int32)
    padding = tf.math.is_nan(images)
    # Apart from each other: interpolation would let the padding eat into the image.
    resized = tf.image.resize(tf.where(padding, 0.0, images), sides)
    padding = tf.image.resize(tf.cast(padding, tf.uint8), sides, "nearest") > 0
    return _pad(tf.where(padding, float("nan"), resized), multiple, remainder)


def without_padding(images, colour=255 * TORCH_MEAN):
    """Fed images [B, H, W, 3] -> the same with a colour where the padding was, and their sizes, float32 [B, 2].

    The mean colour becomes 0 in a backbone that subtracts it, which is what the R-CNN family is trained with.
    """
    sizes = ops.cast(ops.stack(size_without_padding(images), axis=-1), "float32")
    return ops.where(ops.isnan(images), ops.cast(colour, images.dtype), images), sizes


def size_without_padding(images):
    """Fed images [..., H, W, 3] -> height and width of what is not padding, each int32 [...]."""
    real = ops.cast(ops.logical_not(ops.isnan(images[..., 0])), "int32")
    return ops.sum(real[..., :, 0], axis=-1), ops.sum(real[..., 0, :], axis=-1)


def _pad(images, multiple, remainder):
    """NaN at the right and at the bottom, up to a multiple of so many pixels and a remainder."""
    height, width = tf.unstack(tf.shape(images)[-3:-1])
    padding = [[0, (remainder - height) % multiple], [0, (remainder - width) % multiple], [0, 0]]
    return tf.pad(images, [[0, 0]] * (len(images.shape) - 3) + padding, constant_values=float("nan"))


def _scale(height, width, new_height, new_width):
    x = ops.cast(new_width, "float32") / ops.cast(width, "float32")
    y = ops.cast(new_height, "float32") / ops.cast(height, "float32")
    return ops.stack([x, y, x, y], axis=-1)
