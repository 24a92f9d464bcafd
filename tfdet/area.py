"""Shrinking an image, or any number of squares of it, by averaging pixels: both are look-ups in one table.

Each pixel of the result is the mean of the pixels of the image that it touches, whole pixels: along a side, bin i of n
covers pixels floor(i * length / n) to ceil((i + 1) * length / n), as in PyTorch's interpolate(mode="area"). In a table
of the sums of everything above and to the left of each pixel (Crow 1984, Viola and Jones 2001) the sum of a rectangle
of any size takes four look-ups.
"""

import tensorflow as tf


class AreaTable:
    """What an image [H, W, 3], 0..255, looks like in other sizes. Its pixels are rounded to whole numbers."""

    def __init__(self, image):
        # Sums of large images do not fit into 32 bits, but their differences come out right nevertheless, as far as
        # they do: up to 8 million white pixels.
        sums = _running_sums(tf.cast(tf.round(image), tf.int32))
        sums = tf.transpose(_running_sums(tf.transpose(sums, [1, 0, 2])), [1, 0, 2])
        self.sums = tf.pad(sums, [[1, 0], [1, 0], [0, 0]])
        self.height, self.width = tf.unstack(tf.shape(image)[:2])

    def resized(self, height, width):
        """The whole image -> float32 [height, width, 3]."""
        top, bottom = _bins(0, self.height, height)
        left, right = _bins(0, self.width, width)
        strips = tf.gather(self.sums, bottom) - tf.gather(self.sums, top)
        sums = tf.gather(strips, right, axis=1) - tf.gather(strips, left, axis=1)
        return _mean(sums, bottom - top, right - left)

    def crops(self, corners, sizes, side):
        """Rectangles of the image, which is black all around -> float32 [N, side, side, 3].

        Args:
            corners: int32 [N, 2], the first pixel's x and y. sizes: int32 [N, 2], width and height, at least 1.
        """
        left, right = _bins(corners[:, 0], sizes[:, 0], side)
        top, bottom = _bins(corners[:, 1], sizes[:, 1], side)
        table = tf.reshape(self.sums, [-1, 3])

        def sums(rows, columns):
            rows, columns = tf.clip_by_value(rows, 0, self.height), tf.clip_by_value(columns, 0, self.width)
            return tf.gather(table, rows[:, :, None] * (self.width + 1) + columns[:, None, :])

        sums = sums(bottom, right) - sums(bottom, left) - sums(top, right) + sums(top, left)
        return _mean(sums, bottom - top, right - left)


def _running_sums(values, block=32):
    """tf.cumsum along the first axis of [N, M, 3], in a third of its time: it adds one number after the other.

    Here whole rows are added, those of all blocks at once, and at last to each block what the ones before it make.
    """
    shape = tf.shape(values)
    blocks = -(-shape[0] // block)
    values = tf.pad(values, [[0, blocks * block - shape[0]], [0, 0], [0, 0]])
    rows = tf.unstack(tf.reshape(values, [blocks, block, shape[1] * shape[2]]), axis=1)
    for i in range(1, block):
        rows[i] += rows[i - 1]
    before = tf.cumsum(rows[-1], axis=0, exclusive=True)
    sums = tf.stack([row + before for row in rows], axis=1)
    return tf.reshape(sums, [-1, shape[1], shape[2]])[: shape[0]]


def _bins(first, length, count):
    """Where each of `count` bins begins and ends: int32 [..., count], for pixels first .. first + length - 1."""
    first, length = (tf.convert_to_tensor(value)[..., None] for value in (first, length))
    number = tf.range(count)
    return first + number * length // count, first - -(number + 1) * length // count


def _mean(sums, heights, widths):
    """Sums int32 [..., h, w, 3] over bins of heights [..., h] and widths [..., w] -> their means, float32."""
    area = heights[..., :, None] * widths[..., None, :]
    return tf.cast(sums, tf.float32) / tf.cast(area, tf.float32)[..., None]
