"""How a box is written down relative to the anchor or point that answers for it, and read back."""

import math

from keras import ops


class _Coder:
    """What coders share; a subclass has `encode`."""

    def encode_matched(self, anchors, boxes, matched):
        """`encode` [N, 4] of the anchors or points [N, ...] that serve a box of boxes [M, 4]; 0 for the others.

        matched: int [N], index of the box, or below 0 (see tfdet.assigners). Few serve one, so only they are computed;
        the shapes inside are known at run time only, as in an input pipeline.
        """
        places = ops.nonzero(matched >= 0)[0]
        own = ops.take(boxes, ops.take(matched, places), axis=0)
        deltas = self.encode(ops.take(anchors, places, axis=0), own)
        return ops.scatter(places[:, None], deltas, (ops.shape(matched)[0], 4))


class DeltaXYWH(_Coder):
    """Shift of the centre in anchor sizes and log ratio of the sizes, each divided by its standard deviation.

    encode: ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)) / stds, with x, y the centres (R-CNN, SSD; SSD's
    "variances" are these stds). Sizes are held above 1e-6 pixels so that a box of no area encodes to finite numbers.

    Args:
        stds: of the four deltas; (0.1, 0.1, 0.2, 0.2) in SSD.
        max_ratio: how many times larger than its anchor a decoded box may get. An untrained network's exp() overflows
            without a bound; 1000 / 16 is Detectron's.
    """

    def __init__(self, stds=(1.0, 1.0, 1.0, 1.0), max_ratio=1000 / 16):
        self.stds = tuple(stds)
        self.max_ratio = max_ratio

    def encode(self, anchors, boxes):
        """anchors [..., 4] and boxes [..., 4] of broadcastable shapes, xyxy pixels -> deltas [..., 4]."""
        centre_a, size_a = self._centre_and_size(anchors)
        centre, size = self._centre_and_size(boxes)
        deltas = ops.concatenate([(centre - centre_a) / size_a, ops.log(size / size_a)], axis=-1)
        return deltas / ops.convert_to_tensor(self.stds, "float32")

    def decode(self, anchors, deltas):
        """anchors [..., 4] xyxy pixels and deltas [..., 4] of broadcastable shapes -> boxes [..., 4] xyxy pixels."""
        centre, size = self._centre_and_size(anchors)
        deltas = ops.cast(deltas, "float32") * ops.convert_to_tensor(self.stds, "float32")
        centre = centre + deltas[..., :2] * size
        half = ops.exp(ops.minimum(deltas[..., 2:], math.log(self.max_ratio))) * size / 2
        return ops.concatenate([centre - half, centre + half], axis=-1)

    def _centre_and_size(self, boxes):
        boxes = ops.cast(boxes, "float32")
        corner, opposite = boxes[..., :2], boxes[..., 2:]
        return (corner + opposite) / 2, ops.maximum(opposite - corner, 1e-6)


class LTRB(_Coder):
    """Distances from a point to the left, upper, right and lower side of its box (FCOS, eq. 1).

    In pixels, or in strides where the points [..., 3] bring the stride of their level: x, y and stride, as those of
    tfdet.anchors.PointGenerator.

    Args:
        in_strides: the distances are divided by the stride (the released code's NORM_REG_TARGETS).
    """

    def __init__(self, in_strides=False):
        self.in_strides = in_strides

    def encode(self, points, boxes):
        """points [..., 2 or 3] and boxes [..., 4] of broadcastable shapes, xyxy pixels -> distances [..., 4].

        Some are negative where the point lies outside.
        """
        points, boxes = ops.cast(points, "float32"), ops.cast(boxes, "float32")
        distances = ops.concatenate([points[..., :2] - boxes[..., :2], boxes[..., 2:] - points[..., :2]], axis=-1)
        return distances / points[..., 2:3] if self.in_strides else distances

    def decode(self, points, distances):
        """points [..., 2 or 3] and distances [..., 4] of broadcastable shapes -> boxes [..., 4] xyxy pixels."""
        points, distances = ops.cast(points, "float32"), ops.cast(distances, "float32")
        if self.in_strides:
            distances = distances * points[..., 2:3]
        return ops.concatenate([points[..., :2] - distances[..., :2], points[..., :2] + distances[..., 2:]], axis=-1)
