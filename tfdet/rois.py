"""Regions of interest: which level of a pyramid a box is cut from, and RoIAlign, which cuts it.

RoIAlign (He et al. 2017, section 3) lays output_size x output_size bins over a box, reads the feature map at regular
points of each bin by bilinear interpolation and averages what it read. That is linear in the features, and the map's
rows and columns take part independently: the weight of the pixel in row i and column j is w_i * w_j. So all bins of
all boxes are one product of a sparse matrix, a row for each bin, with the table of all pixels; its transpose gives the
gradient. Boxes of several levels and images differ only in where in the table their pixels are.

The product has no XLA kernel (see sparse.py).
(`tf.image.crop_and_resize` is about as fast, but on a CPU its gradient loses sums when two threads meet in a pixel.)
"""

import tensorflow as tf
from keras import ops

from tfdet import boxes as box_ops
from tfdet import sparse


def roi_levels(boxes, k0=4, canonical=224, min_level=2, max_level=5):
    """Level of the pyramid for each box, int32 [...] for boxes [..., 4]: k0 + log2(sqrt(width * height) / canonical).

    Rounded down and cut to min_level .. max_level (Lin et al. 2017, eq. 1); a box without area has `min_level`. As in
    torchvision 1e-6 is added before rounding, so that a box of 112 x 112 pixels is of level 3 however it is computed;
    one of 111.99999 is as well.
    """
    side = ops.sqrt(box_ops.area(boxes))
    side = ops.where(side > 1e-6, side, 1e-6)  # the logarithm of 0 is none; NaN goes the same way
    level = ops.floor(k0 + ops.log2(side / canonical) + 1e-6)
    return ops.cast(ops.clip(level, min_level, max_level), "int32")


def roi_align(features, boxes, output_size, stride, sampling_ratio, aligned):
    """What a feature map holds inside each box, brought to one size.

    As torchvision's and detectron2's operator: a point up to one pixel outside the map reads the map's edge, one beyond
    that reads 0. Coordinates are float32; the result has the dtype of the features, and is computed in no less than
    float32. There is a gradient for the features, none for the boxes. Padded boxes (all 0) are legal.

    Args:
        features: [B, H, W, C].
        boxes: [B, R, 4] xyxy in pixels of the image; B = 0 and R = 0 are legal.
        output_size: bins along each side.
        stride: pixels of the image between two pixels of the map.
        sampling_ratio: points along each side of a bin. 0 (or None, or torchvision's -1) for as many as keep them at
            most one pixel of the map apart: this takes memory in proportion to the boxes' areas, so clip them first.
        aligned: True for pixels whose centre is half a pixel from their corner. False for the first implementations'
            rule, torchvision's in Faster R-CNN: no such shift, and no box is smaller than one pixel of the map.
    Returns:
        [B, R, output_size, output_size, C].
    """
    level = tf.zeros(tf.shape(boxes)[:2], tf.int32)
    return _align([features], [stride], level, boxes, output_size, sampling_ratio, aligned)


def multilevel_roi_align(pyramid, boxes, output_size, sampling_ratio, aligned, min_level=2, max_level=5):
    """`roi_align`, each box in the level of the pyramid that `roi_levels` gives it.

    Args:
        pyramid: {"P2": [B, H, W, C], ...}, the stride of "Pk" is 2**k; levels beyond `max_level` (P6) are not read.
        The others are those of `roi_align`.
    Returns:
        [B, R, output_size, output_size, C], in the order of the boxes.
    """
    numbers = range(min_level, max_level + 1)
    level = roi_levels(boxes, min_level=min_level, max_level=max_level) - min_level
    maps, strides = [pyramid[f"P{k}"] for k in numbers], [2**k for k in numbers]
    return _align(maps, strides, level, boxes, output_size, sampling_ratio, aligned)


def image_by_image(function, batch, shapes):
    """function(*batch) of one image after the other, where all at once would take much memory.

    Args:
        function: tensors [1, ...] -> {name: float32 [1, *shapes[name]]}.
        batch: its arguments, tensors [B, ...] or structures of them; B = 0 is legal in a graph.
        shapes: {name: shape}, None for a side that only the graph knows.
    Returns:
        {name: float32 [B, *shapes[name]]}.
    """

    def of_one(image):
        answers = function(*tf.nest.map_structure(lambda part: part[None], image))
        return {name: answer[0] for name, answer in answers.items()}

    signature = {name: tf.TensorSpec(shape, tf.float32) for name, shape in shapes.items()}
    return tf.map_fn(of_one, batch, fn_output_signature=signature, parallel_iterations=1)


def _align(maps, strides, level, boxes, bins, sampling_ratio, aligned):
    """RoIAlign of boxes [B, R, 4], each in maps[level], level int32 [B, R]; `maps` differ in height and width only."""
    maps = [tf.convert_to_tensor(features) for features in maps]
    dtype, channels = maps[0].dtype, maps[0].shape[-1]
    table_dtype = tf.float64 if dtype == tf.float64 else tf.float32
    table = tf.concat([tf.reshape(tf.cast(features, table_dtype), [-1, channels]) for features in maps], axis=0)

    # N = B * R boxes, each with its map's size and the place of that map's first pixel in the table.
    batch, count = tf.unstack(tf.shape(boxes)[:2])
    level = tf.reshape(level, [-1])
    heights, widths = (tf.stack([tf.shape(features)[axis] for features in maps]) for axis in (1, 2))
    height, width = tf.gather(heights, level), tf.gather(widths, level)
    first_pixel = tf.gather(tf.cumsum(batch * heights * widths, exclusive=True), level)
    first_pixel += tf.repeat(tf.range(batch), count) * height * width

    boxes = tf.reshape(tf.stop_gradient(tf.cast(boxes, tf.float32)), [-1, 4])
    boxes = boxes / tf.gather(tf.constant(strides, tf.float32), level)[:, None] - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    rows, row_weights, row_counts = _interpolation(y1, y2, height, bins, sampling_ratio, aligned)
    columns, column_weights, column_counts = _interpolation(x1, x2, width, bins, sampling_ratio, aligned)
    row_pixels = first_pixel[:, None, None] + rows * width[:, None, None]

    # A bin reads every pair of its rows and columns. The pairs of all bins, bin after bin, are the matrix's entries.
    pairs = tf.repeat(row_counts * column_counts, bins**2)
    ends, total = tf.cumsum(pairs), tf.reduce_sum(pairs)
    # The bin of each entry. tf.repeat gives the same, but fills a table of bins by the most pairs of any bin.
    bin_of = tf.cumsum(tf.math.bincount(ends)[:total])
    box = bin_of // bins**2
    pair = tf.range(total) - tf.gather(ends - pairs, bin_of)
    across = tf.gather(column_counts, box)
    row = bin_of // bins * tf.shape(rows)[-1] + pair // across
    column = (box * bins + bin_of % bins) * tf.shape(columns)[-1] + pair % across
    pixel = _pick(row_pixels, row) + _pick(columns, column)
    weight = _pick(row_weights, row) * _pick(column_weights, column)

    shape = tf.cast([tf.size(pairs), tf.shape(table)[0]], tf.int64)
    indices = tf.cast(tf.stack([bin_of, pixel], axis=-1), tf.int64)
    pooled = _sparse_matmul(indices, tf.cast(weight, table_dtype), shape, table)
    return tf.cast(tf.reshape(pooled, [batch, count, bins, bins, channels]), dtype)


def _interpolation(low, high, length, bins, sampling_ratio, aligned):
    """What the bins of N boxes read along one side of the map.

    Args:
        low, high: float32 [N], where the boxes begin and end, in pixels of the map.
        length: int32 [N], the map's side.
    Returns:
        int32 [N, bins, T], the rows (or columns) that are read; float32 [N, bins, T], their weights; int32 [N], how
        many of the T the bins of this box need.
    """
    low, high, length = (tf.cast(value, tf.float32)[:, None, None] for value in (low, high, length))
    size = (high - low if aligned else tf.maximum(high - low, 1.0)) / bins
    # Far apart, each point reads two pixels of its own. At most a pixel apart, a bin's points read one run of pixels.
    if (sampling_ratio or 0) > 0:
        points = tf.fill(tf.shape(size), float(sampling_ratio))
        runs, run = sampling_ratio, 1
        needed = 2 * points
    else:
        points = tf.where(size > 0, tf.math.ceil(size), 0.0)  # none in an aligned box without area
        runs, run = 1, tf.cast(tf.maximum(tf.reduce_max(points), 1.0), tf.int32)
        needed = tf.minimum(points + 1, length)  # however large the box
    number = tf.cast(tf.range(runs * run), tf.float32)
    point = low + tf.range(bins, dtype=tf.float32)[:, None] * size + (number + 0.5) * size / tf.maximum(points, 1.0)
    inside = (number < points) & (point >= -1.0) & (point <= length)
    share = tf.where(inside, 1 / tf.maximum(points, 1.0), 0.0)
    point = tf.clip_by_value(tf.where(inside, point, 0.0), 0.0, length - 1)

    shape = tf.concat([tf.shape(point)[:2], [runs, run, 1]], axis=0)
    point, share = tf.reshape(point, shape), tf.reshape(share, shape)
    pixel = tf.floor(point[:, :, :, :1]) + tf.range(tf.cast(run + 1, tf.float32))  # [N, bins, runs, 1, run + 1]
    weight = tf.reduce_sum(share * tf.nn.relu(1 - tf.abs(pixel - point)), axis=3)
    pixel = tf.minimum(pixel, length[..., None, None] - 1)  # one beyond the map has weight 0
    shape = [-1, bins, runs * (run + 1)]
    return (tf.reshape(tf.cast(pixel, tf.int32), shape), tf.reshape(weight, shape), tf.cast(needed[:, 0, 0], tf.int32))


def _pick(values, index):
    return tf.gather(tf.reshape(values, [-1]), index)


@tf.custom_gradient  # TensorFlow's own would compute one for the matrix as well
def _sparse_matmul(indices, values, shape, table):
    """`sparse.matmul` of a matrix [E, P] with table [P, C]; has a gradient for the table only."""

    def gradient(upstream):
        return None, None, None, sparse.matmul(indices, values, shape, upstream, transposed=True)

    return sparse.matmul(indices, values, shape, table), gradient
