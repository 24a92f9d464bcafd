import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet import assigners
from tfdet import boxes as box_ops


def strip(*ranges):
    """Boxes that are 10 high and go from x1 to x2, so that an IoU is that of two intervals."""
    return np.array([(x1, 0, x2, 10) for x1, x2 in ranges], np.float32).reshape(-1, 4)


# priors, boxes, expected
SSD_CASES = {
    # Box 0 has IoU 0.9 with prior 0 and box 1 has 0.69: box 1 must take prior 1, with 0.16.
    "two boxes want one prior": (strip((0, 10), (10, 20)), strip((0, 9), (1, 13)), [0, 1]),
    "two boxes want one prior, the other way round": (strip((0, 10), (10, 20)), strip((1, 13), (0, 9)), [1, 0]),
    # Priors 0, 1, 2 have IoU 1, 0.8 and 0.6 with three boxes alike.
    "three boxes alike": (strip((0, 10), (0, 8), (0, 6)), strip(*[(0, 10)] * 3), [0, 1, 2]),
    "two boxes alike": (strip((0, 8), (0, 10), (0, 6)), strip((0, 10), (0, 10)), [1, 0, 0]),
    # 0: 0.9 and 0.6; 1: 0.8 and 0.75. Box 0 takes prior 0, box 1 is left with prior 1.
    "the greatest pair goes first": (strip((0, 90), (0, 72)), strip((0, 100), (0, 54)), [0, 1]),
    # Box 2 prefers prior 1, which box 1 takes, whom box 0 drove from prior 0.
    "a chain of displaced boxes": (
        strip((0, 100), (10, 110), (200, 300)),
        strip((0, 99), (2, 102), (14, 210)),
        [0, 1, 2],
    ),
    "more boxes than priors": (strip((0, 10)), strip((0, 5), (0, 9), (0, 7)), [1]),
    "overlap below the threshold still gets a prior": (strip((0, 10), (50, 60)), strip((8, 30)), [0, -1]),
    "the threshold itself is enough": (strip((0, 20), (0, 10), (0, 9.99)), strip((0, 20)), [0, 0, -1]),
    "the best of several boxes": (strip((0, 40), (0, 50), (0, 45)), strip((0, 50), (0, 40)), [1, 0, 0]),
    "a box that overlaps nothing gets none": (strip((0, 10), (10, 20)), strip((30, 40), (10, 20)), [-1, 1]),
    "a box of zero area gets none": (strip((0, 10), (10, 20)), strip((5, 5), (12, 20)), [-1, 1]),
    "a touching box gets none": (strip((0, 10), (20, 30)), strip((10, 20)), [-1, -1]),
    "no boxes": (strip((0, 10), (10, 20)), strip(), [-1, -1]),
    # All four pairs have IoU 1/3: the lower prior goes to the lower box.
    "ties": (strip((0, 10), (20, 30)), strip((5, 15), (15, 25), (5, 15)), [0, 1]),
    "a tie between two boxes goes to the first": (strip((0, 10), (0, 10), (0, 10)), strip((0, 8), (2, 10)), [0, 1, 0]),
}


@pytest.mark.parametrize(("priors", "boxes", "expected"), SSD_CASES.values(), ids=SSD_CASES)
def test_ssd_by_hand(priors, boxes, expected):
    matched = assigners.ssd(priors, boxes)
    assert matched.dtype == tf.int32
    np.testing.assert_array_equal(matched, expected)


@pytest.mark.parametrize(("iou", "expected"), [(0.5, [0, -1, -1]), (0.4, [0, 0, -1]), (0.25, [0, 0, 0])])
def test_ssd_threshold_is_an_argument(iou, expected):
    np.testing.assert_array_equal(assigners.ssd(strip((0, 16), (0, 7), (0, 4)), strip((0, 16)), iou), expected)


@pytest.mark.parametrize(("side", "expected"), [(500, 0), (2000, -1)])  # IoU 4e-6 and 2.5e-7
def test_ssd_a_box_needs_an_iou_above_a_millionth(side, expected):
    assert assigners.ssd([[0.0, 0, 1, 1]], [[0.0, 0, side, side]]) == [expected]


def greedy_reference(priors, boxes, threshold=0.5):
    """As in the released code: the greatest pair of all, again and again; then everybody else by overlap."""
    overlaps = np.array(box_ops.iou(priors, boxes))
    matched = np.full(len(priors), -1)
    pairs = [(-overlaps[p, m], p, m) for p in range(len(priors)) for m in range(len(boxes)) if overlaps[p, m] > 1e-6]
    owners = {}
    for _, p, m in sorted(pairs):
        if matched[p] < 0 and m not in owners:
            matched[p], owners[m] = m, p
    for p in range(len(priors)):
        if matched[p] < 0 and len(boxes) and overlaps[p].max() >= threshold:
            matched[p] = overlaps[p].argmax()
    return matched, owners


def lists_of_boxes(max_size):
    """On a coarse grid: clusters, duplicates, ties and empty boxes are common."""
    box = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 10), st.integers(0, 10))
    return st.lists(box, max_size=max_size).map(
        lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
    )


@settings(max_examples=60, deadline=None)
@given(lists_of_boxes(12).filter(len), lists_of_boxes(8), st.sampled_from([0.3, 0.5, 0.7]))
def test_ssd_equals_the_greedy_loop(priors, boxes, threshold):
    expected, _ = greedy_reference(priors, boxes, threshold)
    np.testing.assert_array_equal(assigners.ssd(priors, boxes, threshold), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.booleans())
def test_ssd_gives_every_box_its_own_prior(seed, num_boxes, clustered):
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2) * 8.0
    priors = np.concatenate([np.hstack([grid - side / 2, grid + side / 2]) for side in (12, 20)]).astype(np.float32)
    centres = random.uniform(28, 34, (num_boxes, 2)) if clustered else random.uniform(12, 48, (num_boxes, 2))
    sides = random.uniform(16, 40, (num_boxes, 2))
    boxes = np.hstack([centres - sides / 2, centres + sides / 2]).astype(np.float32)
    matched = np.array(assigners.ssd(priors, boxes))
    # Each overlaps so many priors that the others cannot take them all.
    assert (np.array(box_ops.iou(boxes, priors)) > 1e-6).sum(axis=1).min() >= num_boxes
    expected, owners = greedy_reference(priors, boxes)
    np.testing.assert_array_equal(matched, expected)
    assert len(owners) == num_boxes
    assert set(matched) >= set(range(num_boxes))


def test_ssd_in_a_graph_that_does_not_know_how_many_boxes_come():
    priors = strip((0, 10), (10, 20), (0, 20))
    graph = tf.function(lambda boxes: assigners.ssd(priors, boxes), [tf.TensorSpec([None, 4])])
    for boxes in (strip(), strip((0, 10)), strip((0, 9), (1, 13), (2, 20), (0, 0))):
        np.testing.assert_array_equal(graph(boxes), assigners.ssd(priors, boxes))
        assert graph(boxes).shape == (3,)


RPN = {"pos_iou": 0.7, "neg_iou": 0.3, "min_pos_iou": 0.3}
ROI = {"pos_iou": 0.5, "neg_iou": 0.5, "match_low_quality": False}
RETINANET = {"pos_iou": 0.5, "neg_iou": 0.4}

# anchors, boxes, arguments, expected. Boxes begin where anchors begin, so that IoU is the shorter by the longer.
MAX_IOU_CASES = {
    "at least pos is positive, below neg negative": (
        strip((0, 100), (0, 70), (0, 69), (0, 30), (0, 29), (200, 210)),
        strip((0, 100)),
        RPN,
        [0, 0, -2, -2, -1, -1],
    ),
    "nothing is ignored where both are the same": (strip((0, 50), (0, 49)), strip((0, 100)), ROI, [0, -1]),
    "RetinaNet": (strip((0, 50), (0, 49), (0, 40), (0, 39)), strip((0, 100)), RETINANET, [0, -2, -2, -1]),
    "the best of several boxes": (strip((0, 80), (0, 96), (0, 89)), strip((0, 100), (0, 80)), ROI, [1, 0, 1]),
    "the first of boxes alike": (strip((0, 100)), strip((0, 90), (0, 90)), ROI, [0]),
    "the best anchor of a box, however low": (strip((0, 40), (0, 35), (0, 20)), strip((0, 100)), RPN, [0, -2, -1]),
    "also from among the negatives": (strip((0, 10), (0, 9)), strip((0, 100)), RETINANET, [0, -1]),
    "min_pos itself is enough": (strip((0, 30), (0, 20)), strip((0, 100)), RPN, [0, -1]),
    "below min_pos it is not": (strip((0, 29), (0, 20)), strip((0, 100)), RPN, [-1, -1]),
    "below min_pos an ignored one stays ignored": (
        strip((0, 40)),
        strip((0, 100)),
        {**RPN, "min_pos_iou": 0.41},
        [-2],
    ),
    "no low quality": (strip((0, 40), (0, 20)), strip((0, 100)), {**RPN, "match_low_quality": False}, [-2, -1]),
    "all anchors that are equally good": (
        strip((0, 40), (60, 100), (5, 45), (0, 20)),
        strip((0, 100)),
        RPN,
        [0, 0, 0, -1],
    ),
    "the first of them only": (
        strip((0, 40), (60, 100), (5, 25), (0, 20)),
        strip((0, 100)),
        {**RPN, "gt_max_assign_all": False},
        [0, -2, -1, -1],
    ),
    "the first of them only, and those above pos": (
        strip((0, 80), (20, 100), (0, 70)),
        strip((0, 100)),
        {**RPN, "gt_max_assign_all": False},
        [0, 0, 0],
    ),
    # Anchor 0 has IoU 0.8 with box 0 and 0.4 with box 1, whose best it is.
    "low quality takes an anchor from a better match": (strip((0, 100)), strip((0, 80), (0, 40)), RPN, [1]),
    "unless it is too low": (strip((0, 100)), strip((0, 80), (0, 29)), RPN, [0]),
    "the last of the boxes that want an anchor": (strip((0, 100)), strip((0, 40), (0, 40), (0, 35)), RPN, [2]),
    # Otherwise box 0 would take the anchor from box 1.
    "a box above pos takes part in low quality": (strip((0, 100)), strip((0, 40), (0, 90)), RPN, [1]),
    "a box of no area gets nothing": (strip((0, 10), (10, 20)), strip((5, 5), (0, 0)), RETINANET, [-1, -1]),
    "a box that overlaps nothing gets nothing": (strip((0, 10), (10, 20)), strip((30, 40)), RETINANET, [-1, -1]),
    "an anchor of no area": (strip((5, 5), (0, 9)), strip((0, 10), (5, 5)), RETINANET, [-1, 0]),
    "no boxes": (strip((0, 10), (10, 20)), strip(), RETINANET, [-1, -1]),
    "no boxes, no low quality": (strip((0, 10), (10, 20)), strip(), ROI, [-1, -1]),
    "no boxes, the first only": (strip((0, 9)), strip(), {**RPN, "gt_max_assign_all": False}, [-1]),
}


@pytest.mark.parametrize(("anchors", "boxes", "arguments", "expected"), MAX_IOU_CASES.values(), ids=MAX_IOU_CASES)
def test_max_iou_by_hand(anchors, boxes, arguments, expected):
    matched = assigners.max_iou(anchors, boxes, **arguments)
    assert matched.dtype == tf.int32
    np.testing.assert_array_equal(matched, expected)


# anchors, boxes, which are crowds, expected
CROWD_CASES = {
    "nothing serves a crowd": (strip((0, 100), (200, 300)), strip((0, 100)), [True], [-2, -1]),
    "half of the anchor is enough": (strip((50, 150), (51, 151)), strip((0, 100)), [True], [-2, -1]),
    "of the anchor and not of the crowd": (strip((0, 10), (90, 102)), strip((0, 100)), [True], [-2, -2]),
    "an anchor larger than the crowd": (strip((0, 201), (0, 200)), strip((0, 100)), [True], [-1, -2]),
    "in two crowds a little": (strip((0, 100)), strip((0, 49), (51, 100)), [True, True], [-1]),
    "positive is positive": (strip((0, 100), (0, 20)), strip((0, 100), (0, 100)), [True, False], [1, -2]),
    "indices count the crowds": (strip((0, 100), (200, 300)), strip((0, 100), (200, 290)), [True, False], [-2, 1]),
    "ignored by overlap anyway": (strip((0, 60), (0, 100)), strip((0, 100), (200, 300)), [False, True], [-2, 0]),
    "an anchor of no area": (strip((5, 5)), strip((0, 100)), [True], [-1]),
    "no crowd": (strip((0, 100), (0, 20)), strip((0, 100)), [False], [0, -1]),
    "no boxes": (strip((0, 10)), strip(), [], [-1]),
}


@pytest.mark.parametrize(("anchors", "boxes", "crowd", "expected"), CROWD_CASES.values(), ids=CROWD_CASES)
def test_max_iou_ignores_what_lies_in_crowds(anchors, boxes, crowd, expected):
    matched = assigners.max_iou(anchors, boxes, **RPN, crowd=np.array(crowd, bool))
    np.testing.assert_array_equal(matched, expected)


def max_iou_reference(anchors, boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality, gt_max_assign_all, crowd):
    overlaps = np.array(box_ops.iou(anchors, boxes))
    overlaps[:, crowd] = 0
    matched = np.empty(len(anchors), int)
    for n, row in enumerate(overlaps):
        best = row.max(initial=0)
        matched[n] = row.argmax() if best >= np.float32(pos_iou) else -1 if best < np.float32(neg_iou) else -2
    for m, column in enumerate(overlaps.T if match_low_quality else []):
        if column.max() > 0 and column.max() >= np.float32(min_pos_iou):
            same = np.flatnonzero(column == column.max())
            matched[same if gt_max_assign_all else same[:1]] = m
    for n, (x1, y1, x2, y2) in enumerate(anchors):
        for cx1, cy1, cx2, cy2 in boxes[crowd]:
            inside = max(min(x2, cx2) - max(x1, cx1), 0) * max(min(y2, cy2) - max(y1, cy1), 0)
            if matched[n] == -1 and inside > 0 and inside >= 0.5 * (x2 - x1) * (y2 - y1):
                matched[n] = -2
    return matched


@settings(max_examples=80, deadline=None)
@given(
    lists_of_boxes(12).filter(len),
    lists_of_boxes(6),
    st.sampled_from([(0.7, 0.3, 0.3), (0.5, 0.4, 0.0), (0.5, 0.5, 0.5), (0.25, 0.2, 0.1)]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_max_iou_equals_the_loop(anchors, boxes, thresholds, match_low_quality, gt_max_assign_all, data):
    crowd = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    arguments = (anchors, boxes, *thresholds, match_low_quality, gt_max_assign_all)
    expected = max_iou_reference(*arguments, np.zeros(len(boxes), bool))
    np.testing.assert_array_equal(assigners.max_iou(*arguments), expected)
    np.testing.assert_array_equal(assigners.max_iou(*arguments, crowd), max_iou_reference(*arguments, crowd))


def test_max_iou_in_a_graph_that_does_not_know_how_many_boxes_come():
    anchors = strip((0, 10), (10, 20), (0, 20))
    specs = [tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.bool)]
    graph = tf.function(lambda boxes, crowd: assigners.max_iou(anchors, boxes, **RPN, crowd=crowd), specs)
    for boxes in (strip(), strip((0, 10)), strip((0, 9), (1, 13), (2, 20), (0, 0))):
        crowd = np.arange(len(boxes)) == 1
        matched = graph(boxes, crowd)
        np.testing.assert_array_equal(matched, assigners.max_iou(anchors, boxes, **RPN, crowd=crowd))
        assert matched.shape == (3,)


def test_max_iou_of_a_batch_in_a_compiled_step():
    """The second stage's way: proposals of each image, boxes padded with such of no area."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 50, (2, 40, 2))
    proposals = np.concatenate([corners, corners + random.uniform(10, 50, (2, 40, 2))], axis=-1).astype(np.float32)
    boxes = proposals[:, :6] + random.uniform(-2, 2, (2, 6, 4)).astype(np.float32)
    boxes[1, 3:] = 0

    def match(pair):
        return assigners.max_iou(*pair, **ROI)

    compiled = tf.function(lambda *pair: keras.ops.vectorized_map(match, pair), jit_compile=True)(proposals, boxes)
    for image, count in enumerate((6, 3)):
        expected = assigners.max_iou(proposals[image], boxes[image, :count], **ROI)
        assert set(range(count)) <= set(np.array(expected))
        np.testing.assert_array_equal(compiled[image], expected)


def row(*places, y=5, stride=4):
    """Points of one row: x, y and stride."""
    return np.array([(x, y, stride) for x in places], np.float32).reshape(-1, 3)


FAR = (0, 1000)
CENTRE = {"radius": 1.5}
TALL = np.float32([(0, 0, 4, 40)])
SQUARE = np.float32([(0, 0, 40, 40)])

# points, range of all or of each, boxes, arguments, expected. Boxes of a strip are 10 high.
FCOS_CASES = {
    "inside, and not on the edge": (row(-1, 0, 1, 9, 10, 11), FAR, strip((0, 10)), {}, [-1, -1, 0, 0, -1, -1]),
    "not on the upper or lower edge": (
        np.float32([(5, 0, 4), (5, 1, 4), (5, 9, 4), (5, 10, 4)]),
        FAR,
        strip((0, 10)),
        {},
        [-1, 0, 0, -1],
    ),
    "both ends of a range": (
        row(10, 10, 10, 10),
        [(0, 10), (0, 9.5), (10, 20), (10.5, 20)],
        strip((0, 20)),
        {},
        [0, -1, 0, -1],
    ),
    "the furthest side counts": (row(4, 4, 16), [(0, 15), (16, 30), (16, 30)], strip((0, 20)), {}, [-1, 0, 0]),
    "also the lower one": (row(2, 2), [(0, 34), (0, 35)], TALL, {}, [-1, 0]),
    "and the upper one": (row(2, 2, y=30), [(0, 29), (0, 30)], TALL, {}, [-1, 0]),
    "of several the smallest": (row(3, 10, 30), FAR, strip((0, 40), (5, 20), (0, 45)), {}, [0, 1, 0]),
    "small is the area": (row(3), FAR, np.float32([(0, 0, 6, 100), (0, 0, 50, 10)]), {}, [1]),
    "the first of boxes alike": (row(5), FAR, strip((0, 12), (0, 10), (0, 10)), {}, [1]),
    "only of those in range": (row(10, 10), [(25, 40), (0, 40)], strip((0, 40), (0, 30)), {}, [0, 1]),
    "between the points": (row(10, 15), FAR, strip((11, 14)), {}, [-1, -1]),
    "no area": (row(5, 7), FAR, strip((5, 5), (0, 0), (9, 3)), {}, [-1, -1]),
    "no boxes": (row(5, 7), FAR, strip(), {}, [-1, -1]),
    "no boxes, a radius and crowds": (row(5), FAR, strip(), {**CENTRE, "crowd": np.zeros(0, bool)}, [-1]),
    "points without a stride": (row(1, 12)[:, :2], FAR, strip((0, 10)), {}, [0, -1]),
    "near the centre": (row(14, 14.5, 25.5, 26), FAR, strip((0, 40)), CENTRE, [-1, 0, 0, -1]),
    "a radius of 0 is none": (row(1, 14), FAR, strip((0, 40)), {"radius": 0}, [0, 0]),
    "the stride is each point's own": (
        np.concatenate([row(14, stride=4), row(14, stride=8), row(7, stride=8)]),
        FAR,
        strip((0, 40)),
        CENTRE,
        [-1, 0, -1],
    ),
    "the centre is cut to the box": (row(20, y=11), FAR, strip((0, 40)), CENTRE, [-1]),
    "the range counts as well": (row(20, 20), [(0, 19), (20, 30)], strip((0, 40)), CENTRE, [-1, 0]),
    "a larger box by its centre": (row(20, 6), FAR, strip((0, 40), (0, 12)), CENTRE, [0, 1]),
    "a square": (
        np.float32([(25, 25, 4), (24, 24, 4), (26, 20, 4), (20, 14, 4)]),
        FAR,
        SQUARE,
        CENTRE,
        [0, 0, -1, -1],
    ),
    "a circle": (  # of radius 6
        np.float32([(25, 25, 4), (24, 24, 4), (26, 20, 4), (20, 14.5, 4)]),
        FAR,
        SQUARE,
        {**CENTRE, "shape": "circle"},
        [-1, 0, -1, 0],
    ),
    "in a crowd": (row(5, 15), FAR, strip((0, 10)), {"crowd": [True]}, [-2, -1]),
    "not on its edge": (row(0, 10), FAR, strip((0, 10)), {"crowd": [True]}, [-1, -1]),
    "anywhere in a crowd": (row(1), (50, 60), strip((0, 40)), {**CENTRE, "crowd": [True]}, [-2]),
    "an object in a crowd": (row(5, 15), FAR, strip((0, 10), (0, 20)), {"crowd": [False, True]}, [0, -2]),
    "a crowd in an object": (row(5, 15), FAR, strip((0, 10), (0, 20)), {"crowd": [True, False]}, [1, 1]),
    "indices count the crowds": (row(5, 25), FAR, strip((0, 10), (20, 30)), {"crowd": [True, False]}, [-2, 1]),
    "several crowds": (row(5, 25, 15), FAR, strip((0, 10), (20, 30)), {"crowd": [True, True]}, [-2, -2, -1]),
    "no crowd": (row(5, 15), FAR, strip((0, 10)), {"crowd": [False]}, [0, -1]),
}


@pytest.mark.parametrize(("points", "ranges", "boxes", "arguments", "expected"), FCOS_CASES.values(), ids=FCOS_CASES)
def test_fcos_points_by_hand(points, ranges, boxes, arguments, expected):
    arguments = {name: np.array(value) if name == "crowd" else value for name, value in arguments.items()}
    matched = assigners.fcos_points(points, np.broadcast_to(np.float32(ranges), (len(points), 2)), boxes, **arguments)
    assert matched.dtype == tf.int32
    np.testing.assert_array_equal(matched, expected)


@pytest.mark.parametrize(
    ("points", "arguments"),
    [(row(5)[:, :2], CENTRE), (row(5), {**CENTRE, "shape": "ellipse"})],
    ids=["no stride", "another shape"],
)
def test_fcos_points_refuses_a_centre_that_it_cannot_tell(points, arguments):
    with pytest.raises(ValueError, match="a radius needs points"):
        assigners.fcos_points(points, np.float32([FAR]), strip((0, 10)), **arguments)


def fcos_reference(points, ranges, boxes, radius, shape, crowd):
    matched = np.full(len(points), -1)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    for n, ((x, y, stride), (least, greatest)) in enumerate(zip(points, ranges, strict=True)):
        smallest = np.inf
        for m, (x1, y1, x2, y2) in enumerate(boxes):
            if not (x1 < x < x2 and y1 < y < y2):
                continue
            if crowd[m]:
                matched[n] = -2 if matched[n] == -1 else matched[n]
                continue
            across, down = abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)
            far = max(across, down) if shape == "square" else (across**2 + down**2) ** 0.5
            in_range = least <= max(x - x1, y - y1, x2 - x, y2 - y) <= greatest
            if in_range and (not radius or far < radius * stride) and areas[m] < smallest:
                matched[n], smallest = m, areas[m]
    return matched


@settings(max_examples=40, deadline=None)
@given(lists_of_boxes(9), st.sampled_from([None, 0.5, 1.5]), st.sampled_from(["square", "circle"]), st.data())
def test_fcos_points_equal_the_loop(boxes, radius, shape, data):
    crowd = np.array(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))), bool)
    levels = [(2, 0, 6), (4, 6, 12), (8, 12, 1e8)]
    places = [(x, y, *level) for level in levels for y in range(0, 24, level[0]) for x in range(0, 24, level[0])]
    points, ranges = np.split(np.float32(places), [3], axis=1)
    for some in (None, crowd):
        expected = fcos_reference(points, ranges, boxes, radius, shape, crowd & (some is not None))
        np.testing.assert_array_equal(assigners.fcos_points(points, ranges, boxes, radius, shape, some), expected)


def test_fcos_points_in_a_graph_that_does_not_know_how_many_boxes_come():
    points, ranges = row(*range(0, 40, 4)), np.float32([FAR] * 10)

    def match(boxes, crowd):
        return assigners.fcos_points(points, ranges, boxes, 1.5, crowd=crowd)

    graph = tf.function(match, [tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.bool)])
    for boxes in (strip(), strip((0, 10)), strip((0, 39), (3, 17), (12, 20), (0, 0))):
        crowd = np.arange(len(boxes)) == 2
        np.testing.assert_array_equal(graph(boxes, crowd), match(boxes, crowd))
        assert graph(boxes, crowd).shape == (10,)
