import numpy as np
import pytest

import tfdet
from tfdet.backbones.stand_in import stand_in
from tfdet.inspection.samples import (
    COUNTS,
    CROWDED_OUT,
    MISFIT,
    TOO_LARGE,
    TOO_SMALL,
    Samples,
    counts,
    first_in_cell,
    of_anchors,
    of_points,
    summary,
)

NONE = "served"
NOWHERE = "nothing of it is left on the map"


def boxes_of(*boxes):
    return np.array(boxes, "float32").reshape(-1, 4)


def reasons(samples):
    return [NONE if why == 0 else samples.reasons[why - 1] for why in np.asarray(samples.why)]


# Two anchors of 10 x 10, one of 20 x 20, one that is out of reach.
ANCHORS = boxes_of((0, 0, 10, 10), (50, 0, 60, 10), (20, 20, 40, 40), (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("boxes", "labels", "matched", "expected"),
    [
        ([(0, 0, 10, 10)], [0], [0, -1, -1, -2], [NONE]),
        ([(0, 0, 4, 4)], [0], [-1, -1, -1, -2], [TOO_SMALL]),  # IoU 0.16
        ([(0, 0, 90, 90)], [0], [-1, -1, -1, -2], [TOO_LARGE]),  # IoU 0.05
        ([(0, 0, 60, 5)], [0], [-1, -1, -1, -2], [MISFIT]),  # 300 pixels, between 100 and 400; IoU 0.14
        ([(70, 70, 85, 85)], [0], [-1, -1, -1, -2], [MISFIT]),
        ([(70, 70, 80, 80)], [0], [-1, -1, -1, -2], [MISFIT]),  # as large as the smallest
        ([(0, 0, 10, 10), (0, 0, 10, 9)], [0, 1], [1, -1, -1, -2], [CROWDED_OUT, NONE]),
        ([(0, 0, 4, 4)], [-1], [-1, -1, -1, -2], [NONE]),  # a crowd
        ([], [], [-1, -1, -1, -2], []),
    ],
)
def test_why_no_anchor_serves_an_object(boxes, labels, matched, expected):
    matched = np.array(matched, "int32")
    drawn = np.array([True, False, True, False])
    samples = of_anchors(
        "anchors", boxes_of(*boxes), np.array(labels, "int32"), ANCHORS, np.zeros(4, "int32"), matched, drawn, 0.3
    )
    assert reasons(samples) == expected


def test_where_any_overlap_would_do():
    """As RetinaNet's: 0 is not enough, all else is."""
    boxes, labels = boxes_of((0, 0, 1, 1), (70, 70, 71, 71)), np.zeros(2, "int32")
    rest = np.zeros(4, "int32"), np.full(4, -1, "int32"), np.ones(4, bool)
    assert reasons(of_anchors("anchors", boxes, labels, ANCHORS, *rest, 0.0)) == [CROWDED_OUT, TOO_SMALL]


def test_counts_and_summary():
    boxes = boxes_of((0, 0, 10, 10), (20, 20, 40, 30), (0, 0, 5, 5))
    matched = np.array([0, -1, 1, -2, 0, 1], "int32")
    anchors = boxes_of((0, 0, 10, 20), (0, 0, 1, 1), (20, 20, 40, 40), (0, 0, 1, 1), (0, 0, 10, 12.5), (20, 20, 30, 30))
    samples = Samples(
        stage="anchors",
        shape="box",
        boxes=anchors,
        levels=np.zeros(6, "int32"),
        matched=matched,
        drawn=np.array([True, True, False, False, False, False]),
        why=np.array([0, 0, 1], "int32"),
        reasons=("none",),
        unlisted=5,
        softened=3,
    )
    number = dict(zip(COUNTS, np.asarray(counts(samples)).tolist(), strict=True))
    assert number == {
        "positives": 4,
        "negatives": 1 + 5,
        "ignored": 1,
        "softened": 3,
        "positives_drawn": 1,
        "negatives_drawn": 1 + 5,
    }
    found = summary(samples, boxes)
    np.testing.assert_array_equal(found["positives"], [2, 2, 0])
    np.testing.assert_array_equal(found["drawn"], [1, 0, 0])
    np.testing.assert_allclose(found["best"], [0.8, 0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(found["why"], [0, 0, 1])


def test_the_first_of_a_class_has_the_cell():
    cells = np.array([(0, 1), (0, 1), (2, 2), (0, 1), (-1, -1), (2, 2)], "int32")
    labels = np.array([0, 1, 0, 0, 0, 0], "int32")
    np.testing.assert_array_equal(first_in_cell(cells, labels), [0, 1, 2, 0, 4, 2])
    assert first_in_cell(cells[:0], labels[:0]).shape == (0,)


def test_why_objects_have_no_cell():
    first = np.array([(0, 1), (0, 1), (0, 1), (-1, -1), (2, 2), (3, 3)], "int32")
    second = np.array([(5, 5), (6, 6), (7, 7), (-1, -1), (5, 5), (4, 4)], "int32")
    labels = np.array([0, 0, 1, 0, 0, 0], "int32")
    heatmap = np.zeros((8, 8, 2), "float32")
    heatmap[0, 0, 0], heatmap[0, 1, 0] = 0.5, 1.0
    samples = of_points(
        "points",
        {"a": first, "b": second},
        {"a": heatmap, "b": 0 * heatmap},
        labels,
        np.array((4.0, 2.0), "float32"),
        max_objects=4,
    )
    taken, taken_too = samples.collisions
    assert (taken, taken_too) == tuple(f"its cell ({kind}) is taken by another of its class" for kind in "ab")
    beyond = "beyond the first 4, which alone learn more than the heatmap"
    assert reasons(samples) == [NONE, taken, NONE, NOWHERE, taken_too, beyond]
    # Each kind has the cells of those that are first there.
    np.testing.assert_array_equal(samples.matched, [0, 2, 4, 5, 0, 1, 2, 5])
    np.testing.assert_array_equal(samples.kind, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(samples.boxes[0], (4, 0, 8, 2))
    np.testing.assert_array_equal(samples.boxes[4], (20, 10, 24, 12))
    number = dict(zip(COUNTS, np.asarray(counts(samples)).tolist(), strict=True))
    assert number["positives"] == number["positives_drawn"] == 8
    assert number["negatives"] == number["negatives_drawn"] == 2 * 8 * 8 * 2 - 8
    assert (number["softened"], number["ignored"]) == (1, 0)


IMAGE = np.zeros((256, 256, 3), "float32")


@pytest.fixture(scope="module")
def fcos():
    return tfdet.fcos(2, stand_in("resnet_slim"), short_sides=(256,), long_side=256)


@pytest.mark.parametrize(
    ("boxes", "radius", "expected"),
    [
        # Locations of P3 are at 4, 12, 20, ..., those of P4 at 8, 24, 40, ...
        ([(1, 1, 8, 8)], None, [NONE]),
        ([(5, 5, 7, 7)], None, ["too small or too thin: no location lies in it"]),
        # That at (8, 8) of P4, which is for boxes that reach 64 pixels far.
        ([(5, 5, 11, 11)], None, ["outside all ranges: its locations are on levels for other sizes"]),
        ([(5, 0, 7, 250)], None, ["too small or too thin: no location lies in it"]),
        # 130 wide, 6 high: no location of P3 is within 64 of both ends, and none of P4 lies in it.
        ([(0, 9, 130, 15)], None, ["outside all ranges: its locations are on levels for other sizes"]),
        ([(0, 0, 30, 30), (0, 0, 30, 30)], None, [NONE, "crowded out: smaller boxes have its locations"]),
        # Its only location, at (12, 12), is 3.9 pixels off the centre; a quarter of a stride is 2.
        ([(11.9, 11.9, 19.9, 13)], 0.25, ["no location is near its centre"]),
        ([(11.9, 11.9, 19.9, 13)], 0.5, [NONE]),
        ([], None, []),
    ],
)
def test_why_no_location_serves_an_object(fcos, boxes, radius, expected):
    fcos.encoder.radius = radius
    labels = np.zeros(len(boxes), "int32")
    (samples,) = fcos.samples(IMAGE, boxes_of(*boxes), labels, 0)
    assert reasons(samples) == expected
    served = [index for index, reason in enumerate(expected) if reason == NONE]
    assert set(np.unique(samples.matched)) == {-1, *served}


def test_a_crowd_is_no_object_that_could_be_lost(fcos):
    fcos.encoder.radius = None
    (samples,) = fcos.samples(IMAGE, boxes_of((5, 5, 11, 11), (0, 0, 100, 100)), np.array([-1, -1], "int32"), 0)
    assert reasons(samples) == [NONE, NONE]
    assert int((np.asarray(samples.matched) == -2).sum()) > 100


def test_ssd_gives_every_object_a_prior_and_counts_its_hard_negatives():
    detector = tfdet.ssd300(2, stand_in("vgg_slim"))
    boxes = boxes_of((100, 100, 160, 160), (100, 100, 160, 160), (0, 0, 5, 5))
    (samples,) = detector.samples(np.zeros((300, 300, 3), "float32"), boxes, np.zeros(3, "int32"), 0)
    assert reasons(samples) == [NONE] * 3
    positives = int((np.asarray(samples.matched) >= 0).sum())
    assert positives >= 3
    assert int(samples.drawn_negatives) == 3 * positives
    levels = np.bincount(samples.levels).tolist()
    assert levels == [38**2 * 4, 19**2 * 6, 10**2 * 6, 5**2 * 6, 3**2 * 4, 4]
    (empty,) = detector.samples(np.zeros((300, 300, 3), "float32"), boxes[:0], np.zeros(0, "int32"), 0)
    assert int(empty.drawn_negatives) == 0 and empty.why.shape == (0,)
    (outside,) = detector.samples(
        np.zeros((300, 300, 3), "float32"), boxes_of((400, 400, 500, 500)), np.zeros(1, "int32"), 0
    )
    assert reasons(outside) == ["it overlaps no prior that is free"]
