"""How a box is written down relative to the anchor or point that answers for it, and read back."""

import math

from keras import ops

from tfdet import boxes as box_ops


class DeltaXYWH:
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
        xa, ya, wa, ha = self._centre_and_size(anchors)
        x, y, w, h = self._centre_and_size(boxes)
        deltas = ops.stack([(x - xa) / wa, (y - ya) / ha, ops.log(w / wa), ops.log(h / ha)], axis=-1)
        return deltas / ops.convert_to_tensor(self.stds, "float32")

    def decode(self, anchors, deltas):
        """anchors [..., 4] xyxy pixels and deltas [..., 4] of broadcastable shapes -> boxes [..., 4] xyxy pixels."""
        xa, ya, wa, ha = self._centre_and_size(anchors)
        deltas = ops.cast(deltas, "float32") * ops.convert_to_tensor(self.stds, "float32")
        dx, dy, dw, dh = ops.unstack(deltas, 4, axis=-1)
        limit = math.log(self.max_ratio)
        x, y = xa + dx * wa, ya + dy * ha
        half_w, half_h = ops.exp(ops.minimum(dw, limit)) * wa / 2, ops.exp(ops.minimum(dh, limit)) * ha / 2
        return ops.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)

    def _centre_and_size(self, boxes):
        x, y, w, h = ops.unstack(box_ops.convert(boxes, "xyxy", "cxcywh"), 4, axis=-1)
        return x, y, ops.maximum(w, 1e-6), ops.maximum(h, 1e-6)
