"""Boxes are xyxy, float32, in pixels: (x1, y1) is the upper left corner, (x2, y2) the lower right, width is x2 - x1.

Every function takes any number of boxes, zero included, and computes in float32 whatever the precision policy says.
"""

from keras import ops

FORMATS = ("xyxy", "yxyx", "xywh", "cxcywh", "rel_xyxy", "rel_yxyx", "rel_xywh", "rel_cxcywh")


def convert(boxes, source, target, image_size=None):
    """Change the format of boxes [..., 4]; only readers and writers need it.

    Formats: "xyxy", "yxyx" (TensorFlow's order), "xywh" (COCO: upper left corner and size), "cxcywh" (centre and
    size), and each of them with "rel_" before it, in fractions of the image.

    Args:
        image_size: (height, width) in pixels, needed when exactly one of the formats is relative.
    Raises:
        ValueError: unknown format, or `image_size` is missing.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown box format {name!r}; there are {', '.join(FORMATS)}")
    boxes = ops.cast(boxes, "float32")
    a, b, c, d = ops.unstack(boxes, 4, axis=-1)
    # No match statement: AutoGraph, which reads what tf.data calls, warns that it does not know it.
    if source.endswith("xyxy"):
        x1, y1, x2, y2 = a, b, c, d
    elif source.endswith("yxyx"):
        x1, y1, x2, y2 = b, a, d, c
    elif source.endswith("cxcywh"):
        x1, y1, x2, y2 = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    else:  # xywh
        x1, y1, x2, y2 = a, b, a + c, b + d

    if source.startswith("rel_") != target.startswith("rel_"):
        if image_size is None:
            raise ValueError(f"from {source!r} to {target!r} needs image_size=(height, width)")
        height, width = (ops.cast(size, "float32") for size in image_size)
        if target.startswith("rel_"):
            height, width = 1 / height, 1 / width
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height

    if target.endswith("xyxy"):
        parts = x1, y1, x2, y2
    elif target.endswith("yxyx"):
        parts = y1, x1, y2, x2
    elif target.endswith("cxcywh"):
        parts = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    else:  # xywh
        parts = x1, y1, x2 - x1, y2 - y1
    return ops.stack(parts, axis=-1)


def area(boxes):
    """Areas [...] of boxes [..., 4] in square pixels; an inverted box has area 0."""
    x1, y1, x2, y2 = ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1)
    return ops.maximum(x2 - x1, 0.0) * ops.maximum(y2 - y1, 0.0)


def clip(boxes, height, width):
    """Boxes [..., 4] cut to an image of `height` x `width` pixels; one that lies outside becomes a box of area 0."""
    x1, y1, x2, y2 = ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1)
    return ops.stack(
        [ops.clip(x1, 0.0, width), ops.clip(y1, 0.0, height), ops.clip(x2, 0.0, width), ops.clip(y2, 0.0, height)],
        axis=-1,
    )


def iou(a, b):
    """Intersection over union of every pair: a [..., N, 4], b [..., M, 4] -> [..., N, M] in [0, 1].

    Where both areas are 0 it is 0, never NaN.
    """
    intersection, union = intersection_and_union(a, b)
    # Rounding can leave the union a last bit below the intersection.
    return ops.minimum(intersection / ops.maximum(union, 1e-12), 1.0)


def giou(a, b):
    """Generalised IoU of every pair: a [..., N, 4], b [..., M, 4] -> [..., N, M] in [-1, 1].

    IoU minus the share of the smallest enclosing box that neither covers (Rezatofighi et al. 2019, eq. 2).
    """
    _, union = intersection_and_union(a, b)
    ax1, ay1, ax2, ay2 = _columns(a)
    bx1, by1, bx2, by2 = _rows(b)
    width = ops.maximum(ax2, bx2) - ops.minimum(ax1, bx1)
    height = ops.maximum(ay2, by2) - ops.minimum(ay1, by1)
    enclosing = ops.maximum(ops.maximum(width, 0.0) * ops.maximum(height, 0.0), union)
    return iou(a, b) - ops.where(enclosing > 0, (enclosing - union) / ops.maximum(enclosing, 1e-12), 0.0)


def intersection_and_union(a, b):
    """Areas of what each pair shares and of what it covers: a [..., N, 4], b [..., M, 4] -> two of [..., N, M]."""
    ax1, ay1, ax2, ay2 = _columns(a)
    bx1, by1, bx2, by2 = _rows(b)
    width = ops.maximum(ops.minimum(ax2, bx2) - ops.maximum(ax1, bx1), 0.0)
    height = ops.maximum(ops.minimum(ay2, by2) - ops.maximum(ay1, by1), 0.0)
    intersection = width * height
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return intersection, union


def _columns(boxes):
    """The four coordinates of boxes [..., N, 4], each [..., N, 1]."""
    return [part[..., :, None] for part in ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1)]


def _rows(boxes):
    """The four coordinates of boxes [..., M, 4], each [..., 1, M]."""
    return [part[..., None, :] for part in ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1)]
