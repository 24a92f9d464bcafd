import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet import boxes

HEIGHT, WIDTH = 100, 200
SAME_BOX = {  # in an image of that size
    "xyxy": (10, 20, 50, 40),
    "yxyx": (20, 10, 40, 50),
    "xywh": (10, 20, 40, 20),
    "cxcywh": (30, 30, 40, 20),
    "rel_xyxy": (0.05, 0.2, 0.25, 0.4),
    "rel_yxyx": (0.2, 0.05, 0.4, 0.25),
    "rel_xywh": (0.05, 0.2, 0.2, 0.2),
    "rel_cxcywh": (0.15, 0.3, 0.2, 0.2),
}
few = settings(max_examples=50, deadline=None)


@st.composite
def box_lists(draw, min_size=0, max_size=6):
    """Boxes [M, 4]; whole and half coordinates, so that identical, touching and empty ones turn up."""
    halves = st.integers(-40, 40).map(lambda n: n / 2)
    sides = st.integers(0, 60).map(lambda n: n / 2)
    rows = draw(st.lists(st.tuples(halves, halves, sides, sides), min_size=min_size, max_size=max_size))
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)


def test_the_table_names_every_format():
    assert tuple(SAME_BOX) == boxes.FORMATS


@pytest.mark.parametrize("target", SAME_BOX)
@pytest.mark.parametrize("source", SAME_BOX)
def test_convert_by_hand(source, target):
    converted = boxes.convert([SAME_BOX[source]], source, target, (HEIGHT, WIDTH))
    np.testing.assert_allclose(converted, [SAME_BOX[target]], rtol=1e-6)


@few
@given(box_lists(), st.sampled_from(boxes.FORMATS), st.sampled_from(boxes.FORMATS))
def test_convert_there_and_back(xyxy, source, target):
    given_ = np.array(boxes.convert(xyxy, "xyxy", source, (HEIGHT, WIDTH)))
    there = boxes.convert(given_, source, target, (HEIGHT, WIDTH))
    back = boxes.convert(there, target, source, (HEIGHT, WIDTH))
    assert there.shape == back.shape == given_.shape
    np.testing.assert_allclose(back, given_, rtol=1e-5, atol=1e-5)


def test_convert_keeps_leading_dimensions():
    converted = boxes.convert(np.tile(np.float32(SAME_BOX["xywh"]), (2, 3, 1)), "xywh", "yxyx")
    np.testing.assert_array_equal(converted, np.tile(SAME_BOX["yxyx"], (2, 3, 1)))


@pytest.mark.parametrize(("source", "target"), [("rel_xyxy", "xyxy"), ("cxcywh", "rel_xywh")])
def test_convert_says_when_the_image_size_is_missing(source, target):
    with pytest.raises(ValueError, match=f"from '{source}' to '{target}' needs image_size"):
        boxes.convert([[0.0, 0, 1, 1]], source, target)


@pytest.mark.parametrize(("source", "target"), [("xyxy", "xywh"), ("rel_xywh", "rel_xyxy")])
def test_convert_needs_no_image_size_inside_a_unit(source, target):
    np.testing.assert_allclose(boxes.convert([SAME_BOX[source]], source, target), [SAME_BOX[target]], rtol=1e-6)


@pytest.mark.parametrize("formats", [("yxhw", "xyxy"), ("xyxy", "rel_"), ("XYXY", "xyxy")])
def test_convert_refuses_an_unknown_format_and_lists_what_there_is(formats):
    with pytest.raises(ValueError, match=r"unknown box format .*xyxy, yxyx, xywh"):
        boxes.convert([[0.0, 0, 1, 1]], *formats)


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ((0, 0, 3, 4), 12),
        ((-2, -1, 0.5, 1), 5),
        ((5, 5, 5, 9), 0),
        ((3, 0, 0, 4), 0),  # inverted in x
        ((3, 4, 0, 0), 0),  # inverted in both, which must not make 12
    ],
)
def test_area(box, area):
    assert boxes.area([box]) == [area]


def test_clip():
    inside, over, outside = (1, 2, 30, 40), (-5, -6, 70, 80), (60, 10, 90, 20)
    clipped = boxes.clip([inside, over, outside], height=40, width=50)
    np.testing.assert_array_equal(clipped, [inside, (0, 0, 50, 40), (50, 10, 50, 20)])
    np.testing.assert_array_equal(boxes.area(clipped), [29 * 38, 2000, 0])


# a, b, IoU, generalised IoU
PAIRS = {
    "identical": ((0, 0, 10, 10), (0, 0, 10, 10), 1, 1),
    "half": ((0, 0, 10, 10), (0, 0, 10, 20), 1 / 2, 1 / 2),
    "quarter by quarter": ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),
    "nested": ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4, 1 / 4),
    "touching at a side": ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),
    "touching at a corner": ((0, 0, 1, 1), (1, 1, 2, 2), 0, -1 / 2),
    "disjoint": ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
    "disjoint in both": ((-1, -1, 0, 0), (1, 1, 2, 2), 0, -7 / 9),
    "zero area inside": ((0, 0, 4, 4), (2, 2, 2, 2), 0, 0),
    "zero area, the same": ((2, 2, 2, 2), (2, 2, 2, 2), 0, 0),
    "zero area, two points": ((0, 0, 0, 0), (2, 2, 2, 2), 0, -1),
    "inverted": ((4, 4, 0, 0), (0, 0, 4, 4), 0, None),
}


@pytest.mark.parametrize(("a", "b", "iou", "giou"), PAIRS.values(), ids=PAIRS)
def test_iou_and_giou_by_hand(a, b, iou, giou):
    np.testing.assert_allclose(boxes.iou([a], [b]), [[iou]], rtol=1e-6)
    if giou is not None:
        np.testing.assert_allclose(boxes.giou([a], [b]), [[giou]], rtol=1e-6, atol=1e-7)


# a, b -> what they share and what they cover
AREAS = {
    "identical": ((0, 0, 10, 10), (0, 0, 10, 10), 100, 100),
    "corner on corner": ((0, 0, 2, 2), (1, 1, 3, 3), 1, 7),
    "nested": ((0, 0, 4, 4), (1, 1, 3, 3), 4, 16),
    "a cross": ((0, 4, 10, 6), (4, 0, 6, 10), 4, 36),
    "touching": ((0, 0, 1, 1), (1, 0, 2, 1), 0, 2),
    "disjoint in x only": ((0, 0, 1, 5), (3, 0, 5, 5), 0, 15),
    "disjoint in both": ((-1, -1, 0, 0), (1, 1, 2, 2), 0, 2),
    "zero area inside": ((0, 0, 4, 4), (2, 2, 2, 2), 0, 16),
    "nothing and nothing": ((2, 2, 2, 2), (2, 2, 2, 2), 0, 0),
    "inverted": ((4, 4, 0, 0), (0, 0, 4, 4), 0, 16),
    "negative coordinates": ((-4, -4, 2, 2), (-2, -3, 4, 4), 20, 36 + 42 - 20),
}


@pytest.mark.parametrize(("a", "b", "intersection", "union"), AREAS.values(), ids=AREAS)
def test_intersection_and_union_by_hand(a, b, intersection, union):
    for pair in ((a, b), (b, a)):
        found = boxes.intersection_and_union([pair[0]], [pair[1]])
        np.testing.assert_array_equal(found, [[[intersection]], [[union]]])


def test_intersection_and_union_of_every_pair():
    a = np.array([(0, 0, 10, 10), (0, 0, 10, 20)], np.float32)
    b = np.array([(0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30)], np.float32)
    intersection, union = [[100, 50, 0], [100, 50, 0]], [[100, 100, 200], [200, 200, 300]]
    np.testing.assert_array_equal(boxes.intersection_and_union(a, b), [intersection, union])
    found = boxes.intersection_and_union(np.stack([a, a[::-1]]), np.stack([b, b]))
    np.testing.assert_array_equal(found[0], [intersection, intersection[::-1]])
    np.testing.assert_array_equal(found[1], [union, union[::-1]])


def test_every_pair_has_its_place():
    a = np.array([(0, 0, 10, 10), (0, 0, 10, 20)], np.float32)
    b = np.array([(0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30)], np.float32)
    table = [[1, 0.5, 0], [0.5, 0.25, 0]]
    np.testing.assert_allclose(boxes.iou(a, b), table)
    np.testing.assert_allclose(boxes.iou(np.stack([a, a[::-1]]), np.stack([b, b])), [table, table[::-1]])


def union(a, b):
    return boxes.intersection_and_union(a, b)[1]


@pytest.mark.parametrize("function", [boxes.iou, boxes.giou, union])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_on_one_side(function, n, m):
    assert function(np.zeros((n, 4)), np.zeros((m, 4))).shape == (n, m)
    assert function(np.zeros((2, n, 4)), np.zeros((2, m, 4))).shape == (2, n, m)


@few
@given(box_lists(), box_lists())
def test_iou_is_symmetric_bounded_and_one_only_for_the_same_box(a, b):
    iou, giou = np.array(boxes.iou(a, b)), np.array(boxes.giou(a, b))
    np.testing.assert_array_equal(iou, np.array(boxes.iou(b, a)).T)
    np.testing.assert_allclose(giou, np.array(boxes.giou(b, a)).T, atol=1e-7)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= -1) & (giou <= iou)).all()
    same = (a[:, None] == b[None]).all(axis=-1) & (np.array(boxes.area(a)) > 0)[:, None]
    np.testing.assert_array_equal(iou == 1, same)


@few
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), st.floats(2**-9, 500, width=32))
def test_a_box_of_any_floats_has_iou_one_with_itself(corner, size):
    box = np.array([[corner[0], corner[1], corner[0] + size, corner[1] + size]], np.float32)
    iou = np.array(boxes.iou(box, box))
    assert (iou <= 1).all()
    np.testing.assert_allclose(iou, [[1 if boxes.area(box)[0] > 0 else 0]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int32", "float64"])
def test_everything_is_computed_in_float32(dtype):
    box = np.array([[0, 0, 400, 300]], dtype)  # its area is beyond float16
    results = [
        boxes.area(box),
        boxes.iou(box, box),
        boxes.giou(box, box),
        boxes.clip(box, 500, 500),
        *boxes.intersection_and_union(box, box),
        boxes.convert(box, "xyxy", "cxcywh"),
    ]
    assert all(result.dtype == np.float32 for result in results)
    assert [result[0] for result in results[:3]] == [120000, 1, 1]
