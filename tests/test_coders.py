import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet.coders import LTRB, DeltaXYWH

SSD_STDS = (0.1, 0.1, 0.2, 0.2)
ANCHOR = (0, 0, 10, 20)
LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("box", "deltas"),
    [
        (ANCHOR, (0, 0, 0, 0)),
        ((3, 0, 13, 20), (0.3, 0, 0, 0)),
        ((0, -5, 10, 15), (0, -0.25, 0, 0)),
        ((-5, 0, 15, 20), (0, 0, LOG2, 0)),
        ((0, 5, 10, 15), (0, 0, 0, -LOG2)),
        ((2, 4, 22, 14), (0.7, -0.05, LOG2, -LOG2)),
    ],
)
@pytest.mark.parametrize("stds", [(1, 1, 1, 1), SSD_STDS])
def test_by_hand(box, deltas, stds):
    coder = DeltaXYWH(stds)
    deltas = np.float32(deltas) / np.float32(stds)
    np.testing.assert_allclose(coder.encode([ANCHOR], [box]), [deltas], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(coder.decode([ANCHOR], [deltas]), [box], rtol=1e-5, atol=1e-5)


@st.composite
def boxes(draw):
    place, size = st.floats(-200, 600, width=32), st.floats(1, 600, width=32)
    x, y, w, h = draw(place), draw(place), draw(size), draw(size)
    return np.array([x, y, x + w, y + h], np.float32)


@settings(max_examples=50, deadline=None)
@given(boxes(), boxes(), st.sampled_from([(1, 1, 1, 1), SSD_STDS]))
def test_what_is_encoded_decodes_to_itself(anchor, box, stds):
    coder = DeltaXYWH(stds, max_ratio=1e4)
    back = coder.decode(anchor, coder.encode(anchor, box))
    np.testing.assert_allclose(back, box, rtol=1e-4, atol=1e-4 * max(abs(anchor).max(), abs(box).max()))


@pytest.mark.parametrize(("max_ratio", "width"), [(1000 / 16, 625), (2, 20)])
def test_a_decoded_box_grows_no_further_than_the_bound(max_ratio, width):
    coder = DeltaXYWH(SSD_STDS, max_ratio)
    x1, y1, x2, y2 = np.array(coder.decode(ANCHOR, [0.0, 0, 1e4, 1e4]))
    np.testing.assert_allclose((x2 - x1, y2 - y1), (width, 2 * width), rtol=1e-4)
    np.testing.assert_allclose((x1 + x2, y1 + y2), (10, 20), rtol=1e-3)


def test_the_bound_leaves_smaller_boxes_alone():
    decoded = DeltaXYWH(max_ratio=4).decode(ANCHOR, [0.0, 0, math.log(3), -10])
    np.testing.assert_allclose(decoded, (-10, 10 - 10 * math.exp(-10), 20, 10 + 10 * math.exp(-10)), rtol=1e-6)


def test_the_usual_bound_is_that_of_detectron():
    assert DeltaXYWH().max_ratio == 62.5


@pytest.mark.parametrize("deltas", [(1e30, 0, 0, 0), (0, 0, 1e30, 1e30), (0, 0, -1e30, -1e30)])
def test_decoded_boxes_are_finite(deltas):
    assert np.isfinite(DeltaXYWH().decode(ANCHOR, np.float32(deltas))).all()


@pytest.mark.parametrize(
    ("anchor", "box"), [(ANCHOR, (3, 3, 3, 3)), (ANCHOR, (9, 9, 3, 3)), ((3, 3, 3, 3), ANCHOR), ((0,) * 4, (0,) * 4)]
)
def test_encoding_without_an_area_is_finite(anchor, box):
    assert np.isfinite(DeltaXYWH(SSD_STDS).encode([anchor], [box])).all()


def test_shapes_broadcast():
    coder = DeltaXYWH(SSD_STDS)
    random = np.random.default_rng(0)
    anchors, boxes = (
        np.concatenate([corner, corner + random.uniform(5, 50, (n, 2))], axis=-1).astype(np.float32)
        for n in (3, 5)
        for corner in [random.uniform(0, 100, (n, 2))]
    )
    every = np.array(coder.encode(anchors[:, None], boxes))
    assert every.shape == (3, 5, 4)
    np.testing.assert_allclose(every[2, 4], coder.encode(anchors[2], boxes[4]), rtol=1e-6)
    deltas = random.normal(size=(2, 3, 4)).astype(np.float32)
    decoded = np.array(coder.decode(anchors, deltas))
    assert decoded.shape == (2, 3, 4)
    np.testing.assert_allclose(decoded[1, 2], coder.decode(anchors[2], deltas[1, 2]), rtol=1e-6)
    assert coder.encode(anchors[:0], boxes[:0]).shape == coder.decode(anchors[:0], deltas[0, :0]).shape == (0, 4)


def test_half_precision_is_left_at_once():
    coder = DeltaXYWH(SSD_STDS)
    anchor = np.float16([[1000, 1000, 1003, 1005]])
    deltas = np.float16([[0.1, 0.1, 0.1, 0.1]])
    exact = coder.decode(anchor.astype(np.float32), deltas.astype(np.float32))
    assert coder.encode(anchor, anchor).dtype == np.float32
    np.testing.assert_array_equal(coder.decode(anchor, deltas), exact)


ANCHORS = np.float32([ANCHOR, (100, 100, 120, 140), ANCHOR, (-5, -5, 5, 5)])
BOXES = np.float32([(0, 5, 10, 15), (2, 4, 22, 14), (100, 80, 120, 120)])
# Which box each anchor serves -> the deltas.
MATCHED = {
    "one each": ((1, 2, 0, -1), [(0.7, -0.05, LOG2, -LOG2), (0, -0.5, 0, 0), (0, 0, 0, -LOG2), (0, 0, 0, 0)]),
    "two that serve one box": ((0, -1, 0, -1), [(0, 0, 0, -LOG2), (0, 0, 0, 0), (0, 0, 0, -LOG2), (0, 0, 0, 0)]),
    "the last one alone": ((-1, -2, -1, 0), [(0, 0, 0, 0)] * 3 + [(0.5, 1, 0, 0)]),
    "negative and ignored": ((-1, -2, -2, -1), [(0, 0, 0, 0)] * 4),
}


@pytest.mark.parametrize(("matched", "deltas"), MATCHED.values(), ids=MATCHED)
@pytest.mark.parametrize("stds", [(1, 1, 1, 1), SSD_STDS])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_anchors_that_serve_a_box_by_hand(matched, deltas, stds, dtype):
    found = DeltaXYWH(stds).encode_matched(ANCHORS, BOXES, np.array(matched, dtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.float32(deltas) / np.float32(stds), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 5))
def test_anchors_that_serve_a_box_are_encoded_as_by_encode(seed, num_anchors, num_boxes):
    random = np.random.default_rng(seed)
    anchors, boxes = (
        np.concatenate([corner, corner + random.uniform(1, 50, (n, 2))], axis=-1).astype(np.float32)
        for n in (num_anchors, num_boxes)
        for corner in [random.uniform(-50, 100, (n, 2))]
    )
    matched = random.integers(-2, num_boxes, num_anchors)
    coder = DeltaXYWH(SSD_STDS)
    expected = np.where(matched[:, None] >= 0, coder.encode(anchors, boxes[np.maximum(matched, 0)]), 0)
    np.testing.assert_allclose(coder.encode_matched(anchors, boxes, matched), expected, rtol=1e-6)


@pytest.mark.parametrize("num_anchors", [0, 4])
def test_without_boxes_no_anchor_serves_one(num_anchors):
    matched = np.full(num_anchors, -1, np.int32)
    found = DeltaXYWH().encode_matched(ANCHORS[:num_anchors], BOXES[:0], matched)
    np.testing.assert_array_equal(found, np.zeros((num_anchors, 4)))


def test_served_boxes_without_an_area_are_finite():
    boxes = np.float32([(3, 3, 3, 3), (9, 9, 3, 3), (0, 0, 10, 0)])
    found = np.array(DeltaXYWH(SSD_STDS).encode_matched(ANCHORS, boxes, np.array([0, 1, 2, 0])))
    assert np.isfinite(found).all()
    assert (found[:, 3] < -50).all()  # a log of 1e-6 pixels


def test_in_a_graph_that_does_not_know_how_many_boxes_there_are():
    specs = [((None, 4), tf.float32), ((None, 4), tf.float32), ((None,), tf.int32)]
    encode = tf.function(DeltaXYWH().encode_matched, [tf.TensorSpec(*spec) for spec in specs])
    for count in (3, 0):
        matched = np.int32([count - 1, -1, -2, count - 1])
        expected = DeltaXYWH().encode_matched(ANCHORS, BOXES[:count], matched)
        np.testing.assert_array_equal(encode(ANCHORS, BOXES[:count], matched), expected)


# A point, a box around it, the distances to its sides in pixels.
LTRB_CASES = [
    ((10, 20, 8), (6, 4, 18, 28), (4, 16, 8, 8)),
    ((10, 20, 8), (10, 20, 10, 20), (0, 0, 0, 0)),
    ((10, 20, 8), (12, 4, 18, 16), (-2, 16, 8, -4)),
    ((4, 4, 8), (0.5, -2.5, 100.25, 8), (3.5, 6.5, 96.25, 4)),
]


@pytest.mark.parametrize(("point", "box", "distances"), LTRB_CASES)
@pytest.mark.parametrize(("in_strides", "unit"), [(False, 1), (True, 8)])
def test_distances_by_hand(point, box, distances, in_strides, unit):
    coder, distances = LTRB(in_strides), np.float32([distances]) / unit
    found = coder.encode([point], [box])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, distances)
    np.testing.assert_array_equal(coder.decode([point], distances), [box])


def test_distances_in_pixels_need_no_stride():
    np.testing.assert_array_equal(LTRB().encode([(10, 20)], [(6, 4, 18, 28)]), [(4, 16, 8, 8)])
    np.testing.assert_array_equal(LTRB().decode([(10, 20)], [(4, 16, 8, 8)]), [(6, 4, 18, 28)])


def test_each_point_has_its_own_stride():
    points, boxes = np.float32([(10, 20, 2), (10, 20, 4)]), np.float32([(6, 4, 18, 28)])
    np.testing.assert_array_equal(LTRB(in_strides=True).encode(points, boxes), [(2, 8, 4, 4), (1, 4, 2, 2)])
    decoded = LTRB(in_strides=True).decode(points, np.ones((3, 2, 4), np.float16))
    np.testing.assert_array_equal(decoded, [[(8, 18, 12, 22), (6, 16, 14, 24)]] * 3)
    assert decoded.dtype == np.float32


def test_distances_of_points_that_serve_a_box():
    points, boxes = np.float32([(5, 5, 8), (9, 9, 8), (5, 5, 16)]), np.float32([(1, 1, 9, 9), (4, 4, 6, 10)])
    found = LTRB().encode_matched(points, boxes, np.array([1, -1, 0]))
    np.testing.assert_array_equal(found, [(1, 1, 1, 5), (0, 0, 0, 0), (4, 4, 4, 4)])
    found = LTRB(in_strides=True).encode_matched(points, boxes[:0], np.array([-1, -2, -1]))
    np.testing.assert_array_equal(found, np.zeros((3, 4)))
