"""Heatmaps of keypoints, one for each class: drawn for training, read for detection (CornerNet, CenterNet, ExtremeNet).

A point lies in a cell (row, column) of the map. It is drawn as 1 there, surrounded by a Gaussian that tells the loss
which cells would be nearly right.
"""

from keras import ops

from tfdet import boxes as box_ops

LOWEST = -3e38  # of float32, but for infinity


def gaussian_radius(height, width, min_overlap, legacy=True):
    """How many cells the corners of a box may move so that it still has IoU `min_overlap` with where it was.

    The least of three cases: both corners move inwards, both outwards, or one in and one out. Each is a root of a
    quadratic equation a r^2 - b r + c = 0.

    Args:
        height, width: of boxes, in cells, any shape [...]; the released codes round them up first.
        legacy: (b + sqrt(b^2 - 4 a c)) / 2 in each case, which is no root, as CornerNet was first released, and as
            CenterNet and ExtremeNet still do it. False: CornerNet's later correction. The wrong one is larger: for a
            square of side s and an overlap of 0.7 it is 0.273 s instead of 0.082 s.
    Returns:
        float32 [...].
    """
    height, width = ops.cast(height, "float32"), ops.cast(width, "float32")
    half, area = height + width, height * width

    def root(a, b, c, sign):
        return (b + sign * ops.sqrt(b * b - 4 * a * c)) / (2 if legacy else 2 * a)

    smaller = 1 if legacy else -1
    both_in = root(4, 2 * half, area * (1 - min_overlap), smaller)
    both_out = root(4 * min_overlap, -2 * min_overlap * half, area * (min_overlap - 1), 1)
    in_and_out = root(1, half, area * (1 - min_overlap) / (1 + min_overlap), smaller)
    return ops.minimum(ops.minimum(both_in, both_out), in_and_out)


def place(boxes, labels, height, width, min_overlap):
    """Where the centres of objects lie on a map of `height` x `width` cells (CenterNet).

    Boxes are cut where the last row and column of cells begin (released code); what then has no area is no object.

    Args:
        boxes: float32 [M, 4] xyxy in units of cells; labels: int [M], negative for what is no object either.
    Returns:
        cells int32 [M, 2], row and column of the centre, and radii int32 [M] of the Gaussians, both -1 for what is no
        object; sizes float32 [M, 2], width and height; offsets float32 [M, 2], where in its cell the centre lies, x
        and y.
    """
    boxes = box_ops.clip(boxes, ops.cast(height - 1, "float32"), ops.cast(width - 1, "float32"))
    sizes, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    real = ops.all(sizes > 0, axis=-1) & (labels >= 0)
    cells = ops.where(real[:, None], ops.flip(ops.cast(ops.floor(centres), "int32"), axis=-1), -1)
    columns, rows = ops.unstack(ops.ceil(sizes), 2, axis=-1)
    radii = ops.cast(gaussian_radius(rows, columns, min_overlap), "int32")
    return cells, ops.where(real, radii, -1), sizes, centres - ops.floor(centres)


def cells(points, real):
    """Row and column int32 [M, ..., 2] of the cells in which points [M, ..., 2] lie, x and y in units of cells; -1 for
    those of rows that are not `real`, bool [M]."""
    index = ops.flip(ops.cast(ops.floor(points), "int32"), axis=-1)
    return ops.where(ops.reshape(real, (-1, *[1] * (len(points.shape) - 1))), index, -1)


def first_rows(values, count, padding):
    """The first `count` of [M, ...], filled up where there are fewer: targets of every image have one shape."""
    values = ops.pad(values, [[0, count]] + [[0, 0]] * (len(values.shape) - 1), constant_values=padding)
    return ops.reshape(values[:count], (count, *values.shape[1:]))


def draw_gaussians(shape, cells, radii, labels):
    """A Gaussian around each of M points; where two of one class overlap, the larger value counts.

    exp(-(dy^2 + dx^2) / (2 sigma^2)) with sigma = (2 r + 1) / 6, and 0 beyond the square of 2 r + 1 cells.

    Args:
        shape: (H, W, C) of the heatmap.
        cells: int32 [M, 2], row and column. M = 0 is legal.
        radii: int32 [M], r in cells; what is negative is not drawn.
        labels: int32 [M], 0 .. C-1, also of what is not drawn.
    Returns:
        float32 [H, W, C] in [0, 1]; a cell with a point is exactly 1.
    """
    height, width, classes = shape
    # The Gaussian of a square is the product of one along each side.
    rows, columns = (_gaussians(length, cells[:, axis], radii) for axis, length in enumerate((height, width)))
    maps = ops.reshape(rows[:, :, None] * columns[:, None, :], (-1, height * width))
    heatmap = ops.segment_max(maps, labels, classes)  # the lowest number of float32 for a class without points
    return ops.reshape(ops.transpose(ops.maximum(heatmap, 0.0)), (height, width, classes))


def _gaussians(length, centres, radii):
    """Along a line of cells: [M, length]."""
    distance = ops.arange(length, dtype="int32") - centres[:, None]
    sigma = (2 * ops.cast(radii, "float32") + 1) / 6
    values = ops.exp(-ops.square(ops.cast(distance, "float32")) / (2 * sigma * sigma)[:, None])
    return ops.where(ops.abs(distance) <= radii[:, None], values, 0.0)


def at(maps, cells):
    """What maps [B, H, W, N] say in cells int32 [B, K, 2] -> [B, K, N]; where those are negative, something."""
    _, height, width, channels = ops.shape(maps)
    index = ops.maximum(cells[..., 0] * width + cells[..., 1], 0)
    return ops.take_along_axis(ops.reshape(maps, (-1, height * width, channels)), index[..., None], axis=1)


def corners(cells):
    """x and y, float32 [..., 2] in units of cells, where the cells int32 [..., 2] (row and column) begin."""
    return ops.cast(ops.flip(cells, axis=-1), "float32")


def mean(logits, others):
    """The logits of the mean of two heatmaps' probabilities."""
    probability = (ops.sigmoid(logits) + ops.sigmoid(others)) / 2
    return ops.log(probability) - ops.log1p(-probability)


def peaks(heatmap, k):
    """The k best cells that are not below any of their eight neighbours, over all classes: what NMS is elsewhere.

    One cell may be a peak of several classes. Equal neighbours are all peaks.

    Args:
        heatmap: float32 [B, H, W, C], probabilities or logits.
    Returns:
        scores float32 [B, k], labels int32 [B, k], rows int32 [B, k], columns int32 [B, k], best first. Where there
        are fewer peaks, the rest has the score `LOWEST`, and cells that mean nothing.
    """
    batch, height, width, classes = ops.shape(heatmap)
    around = ops.max_pool(heatmap, 3, 1, "same", "channels_last")
    heatmap = ops.where(heatmap == around, heatmap, LOWEST)
    # In two steps, for a tenth of the time: the k best pairs of a cell and a class are in those k cells whose best
    # class is best.
    count = ops.minimum(k, height * width)
    best = ops.reshape(ops.max(heatmap, axis=-1), (-1, height * width))
    _, cells = ops.top_k(best, count)
    in_batch = cells + height * width * ops.arange(batch, dtype="int32")[:, None]
    pairs = ops.take(ops.reshape(heatmap, (-1, classes)), in_batch, axis=0)
    pairs = ops.reshape(pairs, (-1, count * classes))
    scores, chosen = ops.top_k(ops.pad(pairs, [[0, 0], [0, k]], constant_values=LOWEST), k)
    cells = ops.take_along_axis(cells, ops.minimum(chosen // classes, count - 1), axis=1)
    return scores, chosen % classes, cells // width, cells % width
