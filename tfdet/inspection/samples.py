"""The form in which every detector says which samples it has in an image.

A detector has a method `samples` beside `encode`. It computes them with the very functions that its target encoder
computes the targets with, so what is shown is what is trained on.
"""

import dataclasses

from keras import ops

from tfdet import boxes as box_ops
from tfdet.assigners import IGNORED, NEGATIVE

# Of one image, in the order of `counts`; "softened" and "..._drawn" are some of those before them.
COUNTS = ("positives", "negatives", "ignored", "softened", "positives_drawn", "negatives_drawn")

TOO_SMALL, TOO_LARGE = "too small for every anchor", "too large for every anchor"
MISFIT, CROWDED_OUT = "no anchor has its shape or place", "crowded out: others have its anchors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of one stage of a detector in one fed image, arrays of Keras' backend.

    Attributes:
        stage: what they are called.
        shape: "box", whose overlap with an object decides, or "point".
        boxes: float32 [N, 4] xyxy pixels of the fed image; of a point its cell.
        levels: int32 [N], the feature map, 0 being the finest.
        matched: int32 [N], as an assigner gives it: the object that it serves, or NEGATIVE, or IGNORED.
        drawn: bool [N], whether it enters the loss.
        why: int32 [M], why nobody serves an object, reasons[why - 1]; 0 for one that is served, and for a crowd region.
        reasons: text.
        collisions: those of the reasons that say that another object of the class has the cell.
        drawn_negatives: how many of the negatives enter the loss, where it depends on the network which; else None.
        unlisted: the number of negatives that are not among the N, all of which enter the loss: cells of heatmaps.
        softened: how many of those lie near a point and cost less.
        kinds, kind: names of kinds of points, and int32 [N] which it is.
        heatmaps: {kind: float32 [h, w, C]}, each over the whole fed image.
    """

    stage: str
    shape: str
    boxes: object
    levels: object
    matched: object
    drawn: object
    why: object
    reasons: tuple[str, ...]
    collisions: tuple[str, ...] = ()
    drawn_negatives: object = None
    unlisted: object = 0
    softened: object = 0
    kinds: tuple[str, ...] = ()
    kind: object = None
    heatmaps: dict = dataclasses.field(default_factory=dict)


def serving(matched, num_objects, counted=True):
    """How many samples, of those that are `counted` (bool [N]), serve each object: int32 [num_objects]."""
    counted = ops.logical_and(matched >= 0, counted)
    index = ops.where(counted, matched, num_objects)
    return ops.segment_sum(ops.cast(counted, "int32"), index, num_segments=num_objects + 1)[:num_objects]


def of_anchors(stage, boxes, labels, anchors, levels, matched, drawn, min_iou):
    """The `Samples` of a detector with anchors.

    Args:
        boxes: [M, 4], labels: int [M], the objects; -1 is a crowd region.
        anchors: [N, 4]; those that are out of reach have no area.
        levels, matched, drawn: see Samples.
        min_iou: what the best anchor of an object must reach to serve it.
    """
    count = ops.shape(boxes)[0]
    lost = ops.logical_and(serving(matched, count) == 0, labels >= 0)
    places = ops.nonzero(lost)[0]
    alone = ops.take(boxes, places, axis=0)
    best = ops.max(box_ops.iou(alone, anchors), axis=1, initial=0.0)
    areas, own = box_ops.area(anchors), box_ops.area(alone)
    smallest, largest = ops.min(ops.where(areas > 0, areas, float("inf"))), ops.max(areas)
    size = ops.where(own < smallest, 1, ops.where(own > largest, 2, 3))
    why = ops.where(ops.logical_and(best >= min_iou, best > 0), 4, size)
    return Samples(
        stage=stage,
        shape="box",
        boxes=anchors,
        levels=levels,
        matched=matched,
        drawn=drawn,
        why=ops.scatter(places[:, None], ops.cast(why, "int32"), (count,)),
        reasons=(TOO_SMALL, TOO_LARGE, MISFIT, CROWDED_OUT),
    )


def of_points(stage, points, heatmaps, labels, pixels, max_objects, nowhere="nothing of it is left on the map"):
    """The `Samples` of a detector with heatmaps: the cells of objects' points, of which an object may have several.

    The first object of a class whose point lies in a cell has it; the others are lost.

    Args:
        points: {kind: int32 [M, 2]}, row and column of the objects' cells, -1 for what is no object.
        heatmaps: {kind: float32 [h, w, C]}.
        labels: int [M].
        pixels: float32 [2], width and height of a cell in the fed image.
        max_objects: only so many regress anything.
        nowhere: the reason why an object has no cell.
    """
    count, kinds = ops.shape(labels)[0], tuple(points)
    numbers = ops.arange(count, dtype="int32")
    real = points[kinds[0]][:, 0] >= 0
    beyond = ops.logical_and(real, ops.cumsum(ops.cast(real, "int32")) > max_objects)
    why = ops.where(real, ops.where(beyond, len(kinds) + 2, 0), 1)
    boxes, matched = [], []
    for i, cells in reversed(list(enumerate(points.values()))):  # so that the first reason is the one that is told
        owner = first_in_cell(cells, labels)
        why = ops.where(ops.logical_and(real, owner < numbers), i + 2, why)
        places = ops.nonzero(ops.logical_and(real, owner == numbers))[0]
        corners = ops.cast(ops.flip(ops.take(cells, places, axis=0), axis=-1), "float32")
        boxes.insert(0, ops.concatenate([corners, corners + 1], axis=-1) * ops.tile(pixels, 2))
        matched.insert(0, ops.cast(places, "int32"))
    collisions = tuple(f"its cell ({kind}) is taken by another of its class" for kind in kinds)
    kind = ops.concatenate([ops.full_like(own, i) for i, own in enumerate(matched)])
    matched = ops.concatenate(matched)
    cells = sum(ops.size(heatmap) for heatmap in heatmaps.values())
    softened = (ops.logical_and(heatmap > 0, heatmap < 1) for heatmap in heatmaps.values())
    return Samples(
        stage=stage,
        shape="point",
        boxes=ops.concatenate(boxes),
        levels=ops.zeros_like(matched),
        matched=matched,
        drawn=ops.ones_like(matched, dtype="bool"),
        why=ops.where(labels >= 0, why, 0),
        reasons=(nowhere, *collisions, f"beyond the first {max_objects}, which alone learn more than the heatmap"),
        collisions=collisions,
        unlisted=cells - ops.size(matched),
        softened=sum(ops.sum(ops.cast(soft, "int32")) for soft in softened),
        kinds=kinds,
        kind=kind,
        heatmaps=heatmaps,
    )


def first_in_cell(cells, labels):
    """Of each point the first one of its class in its cell, maybe itself: int32 [M, 2] and [M] -> int32 [M]."""
    keys = ops.concatenate([cells, ops.cast(labels, "int32")[:, None]], axis=-1)
    alike = ops.cast(ops.all(keys[:, None] == keys[None], axis=-1), "int32")
    return ops.cast(ops.argmax(ops.pad(alike, [[0, 0], [0, 1]]), axis=-1), "int32")  # one more: also of no points


def counts(samples):
    """int32 [6] of the `Samples` of an image, see COUNTS."""
    positive, negative = samples.matched >= 0, samples.matched == NEGATIVE

    def number(mask):
        return ops.sum(ops.cast(mask, "int32"))

    drawn_negatives = samples.drawn_negatives
    if drawn_negatives is None:
        drawn_negatives = number(negative & samples.drawn) + samples.unlisted
    listed = number(positive), number(negative) + samples.unlisted, number(samples.matched == IGNORED)
    drawn = number(positive & samples.drawn), drawn_negatives
    return ops.stack([ops.cast(one, "int32") for one in (*listed, samples.softened, *drawn)])


def positives(samples, boxes):
    """Of the P samples that serve one of the objects [M, 4]: which they are, int [P], whom they serve, int32 [P], and
    their IoU with it, float32 [P]."""
    places = ops.nonzero(samples.matched >= 0)[0]
    own = ops.take(samples.matched, places)
    pairs = ops.take(samples.boxes, places, axis=0)[:, None], ops.take(boxes, own, axis=0)[:, None]
    return places, own, box_ops.iou(*pairs)[:, 0, 0]


def summary(samples, boxes):
    """What a table needs of the objects [M, 4] of an image and their `Samples`, small enough for a whole set.

    Returns:
        {"positives" int32 [M], how many serve each object, "drawn" int32 [M], how many of them enter the loss, "best"
        float32 [M], the best IoU of these anchors with it, 0 without any, "why" int32 [M], see Samples}.
    """
    count = ops.shape(boxes)[0]
    _, own, overlaps = positives(samples, boxes)
    best = ops.segment_max(overlaps, own, num_segments=count)
    return {
        "positives": serving(samples.matched, count),
        "drawn": serving(samples.matched, count, samples.drawn),
        "best": ops.maximum(best, 0.0),
        "why": samples.why,
    }
