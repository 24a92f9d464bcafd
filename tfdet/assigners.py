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
    overlaps = box_ops.iou(boxes, priors)  # [M, N]
    num_boxes, num_priors = ops.shape(overlaps)[0], ops.shape(priors)[0]
    # An extra row of zeros stands for "no box", so that a reduction over no boxes is defined.
    padded = ops.concatenate([overlaps, ops.zeros((1, num_priors))], axis=0)
    best = ops.max(padded, axis=0)
    by_overlap = ops.where(best >= iou, ops.cast(ops.argmax(padded, axis=0), "int32"), NEGATIVE)

    owners = _bipartite(overlaps)  # [M], the prior of each box, or -1
    # Scatter box m to its prior; boxes without one write to a place behind the last prior.
    targets = ops.where(owners >= 0, owners, num_priors)
    numbers = ops.arange(1, num_boxes + 1, dtype="int32")
    scattered = ops.scatter(targets[:, None], numbers, (num_priors + 1,))[:num_priors] - 1
    return ops.where(scattered >= 0, scattered, by_overlap)


def _bipartite(overlaps):
    """Greedy matching by the greatest IoU first: overlaps [M, N] -> int32 [M], the prior of each box, or -1.

    Instead of one pair at a time, each round matches every pair whose two sides prefer each other: the greatest pair
    of all is among them, and no later choice could part any of them, so the result is the same after fewer rounds
    (one, unless boxes contend). Ties go to the lower prior, then to the lower box, in both ways of counting.
    """
    num_boxes = ops.shape(overlaps)[0]
    rows = ops.arange(num_boxes, dtype="int32")

    def contenders_left(owners, overlaps):
        return ops.any(overlaps > 1e-6)

    def match_mutual_favourites(owners, overlaps):
        favourite = ops.cast(ops.argmax(overlaps, axis=1), "int32")  # [M], of each box
        among = ops.take(overlaps, favourite, axis=1)  # [M, M]: what every box has with each favourite
        preferred = ops.cast(ops.argmax(among, axis=0), "int32") == rows
        matched = ops.logical_and(preferred, ops.max(overlaps, axis=1) > 1e-6)
        owners = ops.where(matched, favourite, owners)
        # Who is matched contends no more, and a prior that is taken is out of reach of the others.
        taken = ops.scatter(favourite[:, None], ops.cast(matched, "int32"), (ops.shape(overlaps)[1],)) > 0
        out = ops.logical_or(matched[:, None], taken[None, :])
        return owners, ops.where(out, 0.0, overlaps)

    owners = ops.full((num_boxes,), -1, dtype="int32")
    owners, _ = ops.while_loop(contenders_left, match_mutual_favourites, (owners, overlaps))
    return owners
