"""Which samples are positive, which negative, which ignored: one function an algorithm.

Each returns int32 [N], for every anchor, prior or point the index of the ground-truth box that it serves,
or NEGATIVE, or IGNORED.
"""

from keras import ops

from tfdet import boxes as box_ops

NEGATIVE = -1
IGNORED = -2


def ssd(priors, boxes, iou=0.5):
    """SSD's matching (weiliu89/caffe, bbox_util.cpp MatchBBox): first every box gets a prior of its own, then overlap.

    1. Bipartite: the pair with the greatest IoU of all is matched and both leave the contest, and so on until no box
       is left that overlaps a free prior (IoU > 1e-6). So every box gets a prior, also when several want the same one;
       a box that overlaps nothing gets none.
    2. Every other prior serves the box it overlaps most if that IoU is at least `iou`.
    The rest is negative; SSD ignores nothing. (The max-IoU assigner with which some re-implementations replace step 1
    gives a contested prior to the last of its boxes and loses the others.)

    Args:
        priors: [N, 4]; boxes: [M, 4], M = 0 is legal; both xyxy pixels.
    Returns:
        int32 [N]: index of the matched box, or NEGATIVE.
    """
    # A box of no area, behind the others, stands for "no box", so that a reduction over no boxes is defined.
    boxes = ops.pad(ops.cast(boxes, "float32"), [[0, 1], [0, 0]])
    overlaps = box_ops.iou(boxes, priors)  # [M + 1, N]: a few long rows, the fast way round
    num_rows, num_priors = ops.shape(overlaps)
    by_overlap = ops.where(ops.max(overlaps, axis=0) >= iou, _first_best(overlaps), NEGATIVE)

    owners = _bipartite(overlaps)  # [M + 1]: the prior of each box, or -1; "no box" gets none
    # Scatter box m to its prior; boxes without one write to a place behind the last prior.
    targets = ops.where(owners >= 0, owners, num_priors)
    numbers = ops.arange(1, num_rows + 1, dtype="int32")
    scattered = ops.scatter(targets[:, None], numbers, (num_priors + 1,))[:num_priors] - 1
    return ops.where(scattered >= 0, scattered, by_overlap)


def max_iou(
    anchors,
    boxes,
    pos_iou,
    neg_iou,
    min_pos_iou=0.0,
    match_low_quality=True,
    gt_max_assign_all=True,
    crowd=None,
):
    """Matching by the greatest IoU (py-faster-rcnn, anchor_target_layer.py; mmdetection, MaxIoUAssigner).

    1. An anchor whose greatest IoU with any box is at least `pos_iou` serves that box (the first of several alike); one
       whose greatest IoU is below `neg_iou` is negative; in between it is ignored.
    2. Low quality: every box whose greatest IoU with any anchor is at least `min_pos_iou`, and above 0, gets the
       anchors that have exactly this IoU, however low it is and whomever they serve by rule 1. Of several boxes
       that want an anchor the last one gets it. Boxes that rule 1 has served already take part. (detectron2 and
       torchvision make such an anchor positive too, but leave it with the box that it overlaps most.)
    3. An anchor that lies with at least half of its own area in one crowd region is ignored, unless it is positive.

                          pos_iou  neg_iou  min_pos_iou  match_low_quality
        RPN                 0.7      0.3        0.3            True
        RoI stage           0.5      0.5                       False
        RetinaNet           0.5      0.4        0              True

    With `match_low_quality` or `crowd` some shapes inside are known at run time only, as an input pipeline allows.
    Without them all are fixed by the arguments', so that a compiled step and `ops.vectorized_map` take it as well.

    Args:
        anchors: [N, 4]; boxes: [M, 4], M = 0 is legal; both xyxy pixels. A box of no area matches nothing, so it does
            for padding.
        gt_max_assign_all: whether a box gets all anchors of the same greatest IoU by rule 2, or the first only.
        crowd: bool [M], which boxes are regions of many objects; no anchor serves them. None means no box.
    Returns:
        int32 [N]: index of the matched box, or NEGATIVE, or IGNORED.
    """
    boxes = ops.cast(boxes, "float32")
    if crowd is not None:
        regions = ops.take(boxes, ops.nonzero(crowd)[0], axis=0)
        boxes = ops.where(ops.expand_dims(crowd, -1), 0.0, boxes)
    overlaps = box_ops.iou(boxes, anchors)  # [M, N]: a few long rows, which is the fast way round
    best = ops.max(overlaps, axis=0, initial=0.0)  # initial: also when there is no box
    matched = ops.where(best < neg_iou, NEGATIVE, IGNORED)
    if match_low_quality:
        wanted = ops.max(overlaps, axis=1, keepdims=True, initial=0.0)  # [M, 1]
        wanted = ops.where(ops.logical_and(wanted > 0, wanted >= min_pos_iou), wanted, float("inf"))
        claimed = ops.max(overlaps - wanted, axis=0, initial=-1.0) >= 0
        # Few anchors get a box; which one, is looked up in their columns only.
        places = ops.nonzero(ops.logical_or(best >= pos_iou, claimed))[0]
        columns = ops.take(overlaps, places, axis=1)
        claims = columns == wanted
        if not gt_max_assign_all:
            first = ops.cast(ops.argmax(overlaps, axis=1), "int32")
            claims = ops.logical_and(claims, places == first[:, None])
        numbers = ops.arange(ops.shape(columns)[0], dtype="int32")[:, None]
        last = ops.max(ops.where(claims, numbers, -1), axis=0, initial=-1)
        chosen = ops.where(ops.take(best, places) >= pos_iou, _first_best(columns), ops.take(matched, places))
        chosen = ops.where(last >= 0, last, chosen)
        matched = ops.scatter_update(matched, places[:, None], chosen)
    else:
        matched = ops.where(best >= pos_iou, _first_best(overlaps), matched)
    if crowd is not None:
        intersection, _ = box_ops.intersection_and_union(regions, anchors)
        share = ops.max(intersection / ops.maximum(box_ops.area(anchors), 1e-12), axis=0, initial=0.0)
        matched = ops.where(ops.logical_and(matched == NEGATIVE, share >= 0.5), IGNORED, matched)
    return matched


def fcos_points(points, ranges, boxes, radius=None, shape="square", crowd=None):
    """FCOS's rule (tianzhi0549/FCOS, modeling/rpn/fcos/loss.py): a location serves the smallest box that it lies in.

    1. It must lie inside the box, not on its edge, and with a `radius` (centre sampling) also near the box's centre.
    2. Its greatest distance to a side of the box must be in the range of its level, both ends included. So each level
       answers for boxes of one order of size.
    3. Of several boxes the smallest gets it, of equally small ones the first. (The released code adds a pixel to both
       sides before it multiplies them.)
    The rest is negative. A box has no positive at all if smaller ones take all of its locations, or if it lies between
    them.

    The centre is the released code's: a square of `radius` strides to each side, which is cut to the box. It is
    often described as a circle, which is the other `shape`.

    Args:
        points: [N, 2], x and y in pixels; [N, 3] with the level's stride in pixels, which a radius needs.
        ranges: [N, 2], least and greatest distance in pixels.
        boxes: [M, 4] xyxy pixels, M = 0 is legal. A box of no area gets nothing, so it does for padding.
        radius: in strides; None or 0: anywhere in the box.
        shape: of the centre, "square" or "circle".
        crowd: bool [M], which boxes are regions of many objects. No location serves them, and one that lies in them is
            ignored, unless it is positive. None means no box. (The released code leaves such regions out, so that what
            lies in them is negative.)

    Some shapes inside are known at run time only, as an input pipeline allows.

    Returns:
        int32 [N]: index of the matched box, or NEGATIVE, or IGNORED.
    Raises:
        ValueError: a radius without strides, or a shape that is neither.
    """
    points, ranges = ops.cast(points, "float32"), ops.cast(ranges, "float32")
    boxes = ops.cast(boxes, "float32")
    if radius and (points.shape[-1] != 3 or shape not in ("square", "circle")):
        raise ValueError("a radius needs points [N, 3], with the stride, and the shape square or circle")
    areas = box_ops.area(boxes)
    if crowd is not None:
        areas = ops.where(crowd, float("inf"), areas)
    # The largest first, crowds before all: the last of the boxes that want a location gets it.
    order = ops.flip(ops.cast(ops.argsort(areas), "int32"))
    owners = order if crowd is None else ops.where(ops.take(crowd, order), IGNORED, order)
    boxes = ops.take(boxes, order, axis=0)

    box, place, in_range, near = fcos_pairs(points, ranges, boxes, radius, shape)
    serves = in_range & near
    if crowd is not None:
        serves = serves | (ops.take(owners, box) == IGNORED)
    ranks = ops.where(serves, ops.cast(box, "int32") + 1, 0)
    best = ops.maximum(ops.segment_max(ranks, place, num_segments=ops.shape(points)[0]), 0)
    return ops.take(ops.pad(owners, [[1, 0]], constant_values=NEGATIVE), best)


def fcos_pairs(points, ranges, boxes, radius=None, shape="square"):
    """Every pair of a box and a location that lies inside it; arguments as `fcos_points`.

    Returns:
        [P] box, [P] location, and what else there is to ask before it may serve the box, each bool [P]: is its greatest
        distance to a side in the range of its level, and is it near the centre?
    """
    # A few long rows, which is the fast way round; and only of the pairs inside is more than that computed.
    x, y = points[:, 0], points[:, 1]
    x1, y1, x2, y2 = (column[:, None] for column in ops.unstack(boxes, 4, axis=-1))
    box, place = ops.nonzero((x > x1) & (y > y1) & (x < x2) & (y < y2))
    points_inside, boxes_around = ops.take(points, place, axis=0), ops.take(boxes, box, axis=0)
    least, greatest = ops.unstack(ops.take(ranges, place, axis=0), 2, axis=-1)
    before, behind = points_inside[:, :2] - boxes_around[:, :2], boxes_around[:, 2:] - points_inside[:, :2]
    furthest = ops.max(ops.maximum(before, behind), axis=-1, initial=0.0)  # initial: also when there is no pair
    in_range = (furthest >= least) & (furthest <= greatest)
    if not radius:
        return box, place, in_range, ops.ones_like(in_range)
    from_centre = ops.abs(before - behind) / 2
    if shape == "square":
        from_centre = ops.max(from_centre, axis=-1, initial=0.0)
    else:
        from_centre = ops.sqrt(ops.sum(from_centre * from_centre, axis=-1))
    return box, place, in_range, from_centre < radius * points_inside[:, 2]


def _first_best(overlaps):
    """overlaps [M, N] -> int32 [N], the first row with the greatest value; 0 when there is no row.

    What ops.argmax gives, which takes four times as long: it minds negative zeros, and goes down one column at a time.
    """
    num_rows = ops.shape(overlaps)[0]
    rows = ops.arange(num_rows, dtype="int32")[:, None]
    is_best = overlaps == ops.max(overlaps, axis=0, keepdims=True, initial=0.0)
    return ops.min(ops.where(is_best, rows, num_rows), axis=0, initial=num_rows)


def _bipartite(overlaps):
    """Greedy matching by the greatest IoU first: overlaps [M, N] -> int32 [M], the prior of each box, or -1.

    Instead of one pair at a time, each round matches every pair whose two sides prefer each other: the greatest pair
    of all is among them, and no later choice could part any of them, so the result is the same after fewer rounds
    (one, unless boxes contend). Ties go to the lower prior, then to the lower box, in both ways of counting.
    """
    num_boxes, num_priors = ops.shape(overlaps)
    rows = ops.arange(num_boxes, dtype="int32")

    def contenders_left(owners, contending, overlaps):
        return ops.any(contending)

    def match_mutual_favourites(owners, contending, overlaps):
        best, favourite = (column[:, 0] for column in ops.top_k(overlaps, 1))  # [M], of each box
        contending = ops.logical_and(contending, best > 1e-6)
        # [M, M]: what every contender has with each favourite.
        among = ops.where(contending[:, None], ops.take(overlaps, favourite, axis=1), 0.0)
        matched = ops.logical_and(contending, _first_best(among) == rows)
        owners = ops.where(matched, favourite, owners)
        # Who is matched contends no more, and a prior that is taken is out of reach of the others.
        taken = ops.scatter(favourite[:, None], ops.cast(matched, "int32"), (num_priors,)) > 0
        return owners, ops.logical_and(contending, ~matched), ops.where(taken, 0.0, overlaps)

    nobody, everybody = ops.full((num_boxes,), -1, dtype="int32"), ops.ones((num_boxes,), dtype="bool")
    owners, _, _ = ops.while_loop(contenders_left, match_mutual_favourites, (nobody, everybody, overlaps))
    return owners
