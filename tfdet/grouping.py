"""ExtremeNet's way from heatmaps to objects (arXiv:1901.08043, sections 4.1 to 4.3).

An object is four extreme points and a centre, that fit: the centre of the box that the four span is on the heatmap of
centres, too. The number of such groups differs from image to image, so TensorFlow's own operations do this.
"""

import functools

import numpy as np
import tensorflow as tf

# Of the points top, left, bottom, right, by their numbers: no first one lies below, or right of, the second.
ABOVE = ((0, 1), (0, 2), (0, 3), (1, 2), (3, 2))
LEFT_OF = ((1, 0), (1, 2), (1, 3), (0, 3), (2, 3))


def aggregate_edge(heatmap, axis, weight=0.1):
    """Adds to each cell what lies beside it, on both sides, for as long as it falls away from it.

    The topmost point of a bus is anywhere on its roof: many weak neighbours, which together are a strong one.

    Args:
        heatmap: float32 [B, H, W, C], probabilities.
        axis: along which edges lie, 2 (x) for top and bottom points, 1 (y) for those at the left and the right.
        weight: of what is added.
    Returns:
        as the heatmap; it may exceed 1.
    """
    order = [axis, *(other for other in range(4) if other != axis)]
    lines = tf.transpose(heatmap, order)
    length, zeros = tf.shape(lines)[0], tf.zeros_like(lines[0])
    # Line by line from both ends at once: each is small enough to stay in the processor's cache.
    steps = tf.TensorArray(tf.float32, length, element_shape=zeros.shape, clear_after_read=False).unstack(lines)
    sums = [tf.TensorArray(tf.float32, length, element_shape=zeros.shape) for _ in range(2)]

    def step(i, sides):
        return i + 1, [_grow(steps, place, *side) for place, side in zip((i, length - 1 - i), sides, strict=True)]

    _, sides = tf.while_loop(lambda i, _: i < length, step, (0, [(zeros, zeros, one) for one in sums]))
    lines += weight * sum(side[-1].stack() for side in sides)
    return tf.transpose(lines, np.argsort(order))


def _grow(steps, place, before, total, sums):
    """One step: what rises up to here, without what is here, is written down."""
    now = steps.read(place)
    total = tf.where(now >= before, total, 0.0)
    return now, now + total, sums.write(place, total)


def quadruples(points, centres, point_threshold, centre_threshold, count):
    """The best groups of a top, a left, a bottom and a right point of one class, with the centre of their box.

    A group is one if no other of its points is above the top one, left of the left one, and so on, and if the cell in
    the middle is likely to be a centre.

    Args:
        points: for top, left, bottom and right in this order {"scores" float32 [B, K], "labels" int32 [B, K], "cells"
            int32 [B, K, 2], row and column}.
        centres: float32 [B, H, W, C], probabilities.
        point_threshold, centre_threshold: what each of these scores must be at least.
        count: N.
    Returns:
        scores float32 [B, N], best first, 0 where there are no more groups, (top + left + bottom + right + 2 centre) /
        6; and int32 [B, N, 4], which of each kind of points it is.
    """

    def of_image(image):
        *points, centres = image
        members = tf.cast(tf.where(_fitting(points, point_threshold)), tf.int32)

        def of(name, kind):
            return tf.gather(points[kind][name], members[:, kind])

        row = (of("cells", 0)[:, 0] + of("cells", 2)[:, 0]) // 2  # half way between top and bottom
        column = (of("cells", 1)[:, 1] + of("cells", 3)[:, 1]) // 2
        centre = tf.gather_nd(centres, tf.stack([row, column, of("labels", 0)], axis=-1))
        scores = (sum(of("scores", kind) for kind in range(4)) + 2 * centre) / 6
        scores = tf.where(centre >= centre_threshold, scores, 0.0)
        best, chosen = tf.math.top_k(tf.pad(scores, [[0, count]]), count)
        return best, tf.gather(tf.pad(members, [[0, count], [0, 0]]), chosen)

    # One image after the other: K^4 groups take memory.
    forms = tf.TensorSpec([count], tf.float32), tf.TensorSpec([count, 4], tf.int32)
    return tf.map_fn(of_image, (*points, centres), fn_output_signature=forms, parallel_iterations=1)


def _fitting(points, threshold):
    """Which quadruples of one image's points are one in class and place: bool [K, K, K, K]."""
    rows, columns, labels = [], [], []
    for kind, one in enumerate(points):
        along = [-1 if axis == kind else 1 for axis in range(4)]
        label = tf.where(one["scores"] >= threshold, one["labels"], -1 - kind)  # the unlikely ones fit nothing
        values = tf.reshape(one["cells"][:, 0], along), tf.reshape(one["cells"][:, 1], along), tf.reshape(label, along)
        for kinds, value in zip((rows, columns, labels), values, strict=True):
            kinds.append(value)

    def fit(kinds):
        first, *others = kinds
        conditions = [tf.equal(labels[first], labels[other]) for other in others]
        conditions += [rows[i] <= rows[j] for i, j in ABOVE if {i, j} <= kinds]
        conditions += [columns[i] <= columns[j] for i, j in LEFT_OF if {i, j} <= kinds]
        return functools.reduce(tf.logical_and, conditions)

    return fit({0, 1, 2}) & fit({0, 1, 3}) & fit({2, 3})  # all pairs; only two steps are of K^4


def suppress_ghosts(detections, score_threshold=0.2, ratio=3.0):
    """Halves the score of a large box that is made of the points of several small ones, if these were found, too.

    Args:
        detections: see Detector.
        score_threshold, ratio: a box is a ghost if its score is above the one, and the scores of all boxes of its class
            inside it, itself among them, add up to more than `ratio` times its own.
    Returns:
        the same, best first.
    """
    boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
    first, last = boxes[..., :2], boxes[..., 2:]
    inside = tf.reduce_all(first[:, None] >= first[:, :, None], -1) & tf.reduce_all(
        last[:, None] <= last[:, :, None], -1
    )
    inside &= labels[:, None] == labels[:, :, None]
    found = tf.linalg.matvec(tf.cast(inside, tf.float32), scores)
    ghosts = (scores > score_threshold) & (found > ratio * scores)
    scores = tf.where(ghosts, scores / 2, scores)
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    return {
        name: values if name == "num_detections" else tf.gather(values, order, batch_dims=1)
        for name, values in {**detections, "scores": scores}.items()
    }
