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
