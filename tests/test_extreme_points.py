import numpy as np
import pytest

from tfdet import extreme_points, skeleton

# vertices -> top, left, bottom, right in whole pixels, by the released code (xingyizhou/ExtremeNet,
# tools/gen_coco_extreme_points.py).
POLYGONS = {
    "a diamond": ([[(50, 0), (100, 40), (60, 90), (0, 30)]], [(50, 0), (0, 30), (60, 90), (100, 40)]),
    # At the bottom the last vertex is seen first, before the beginning of the list, where its neighbour is not.
    "a box": (
        [[(10, 20), (30, 20), (30, 50), (10, 50)]],
        [(20, 20), (10, 35), (10, 50), (30, 35)],
    ),
    # Of 101 rows 2.02 are near enough. The flat top goes on beyond the end of the list: 20 .. 44.
    "almost flat": (
        [[(30, 0), (44, 2), (60, 3), (60, 100), (0, 100), (20, 1.5)]],
        [(32, 0), (0, 100), (30, 100), (60, 51)],
    ),
    # But from the very end on, 30 .. 50, 20 is not seen any more.
    "extreme at the end of the list": (
        [[(44, 2), (50, 2), (60, 3), (60, 100), (0, 100), (20, 1), (30, 0)]],
        [(40, 0), (0, 100), (30, 100), (60, 51)],
    ),
    "just near enough": ([[(50, 0), (0, 10), (2, 20), (99, 25)]], [(50, 0), (0, 15), (99, 25), (99, 25)]),
    "a dent ends the stretch": (
        [[(10, 0), (20, 0), (25, 10), (30, 0), (40, 0), (40, 100), (0, 100), (0, 10)]],
        [(15, 0), (0, 10), (20, 100), (40, 50)],
    ),
    "not on whole pixels": ([[(10.9, 5.6), (13.9, 9.7), (8.4, 9.2)]], [(10, 5), (8, 9), (13, 9), (13, 9)]),
    "two parts": (
        [[(0, 10), (10, 10), (5, 30)], [(40, 0), (60, 5), (50, 20)]],
        [(40, 0), (0, 10), (5, 30), (60, 5)],
    ),
    "three times the same point": ([[(7.5, 8)] * 3], [(7, 8)] * 4),
}


@pytest.mark.parametrize(("polygons", "expected"), POLYGONS.values(), ids=POLYGONS)
def test_of_polygons(polygons, expected):
    points = extreme_points.of_polygons([np.array(polygon, float) for polygon in polygons])
    assert points.shape == (4, 2) and np.floor(points).tolist() == [list(point) for point in expected]


def test_points_are_not_rounded():
    points = extreme_points.of_polygons([np.array([(10.5, 5.5), (13.5, 9.75), (8.25, 9.25), (9.25, 5.5)])])
    assert points.tolist() == [[9.875, 5.5], [8.25, 9.25], [13.5, 9.75], [13.5, 9.75]]


def mask(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


MASKS = {
    "one pixel": (mask("...", ".#.", "..."), [(1.5, 1), (1, 1.5), (1.5, 2), (2, 1.5)]),
    "a box is on its edges": (mask("......", ".####.", ".####."), [(3, 1), (1, 2), (3, 3), (5, 2)]),
    "a diamond": (mask("..#..", ".###.", "#####", ".###.", "..#.."), [(2.5, 0), (0, 2.5), (2.5, 5), (5, 2.5)]),
    "the first of two stretches": (mask("##.####", "#######"), [(1, 0), (0, 1), (3.5, 2), (7, 1)]),
}


@pytest.mark.parametrize(("mask", "expected"), MASKS.values(), ids=MASKS)
def test_of_mask(mask, expected):
    assert extreme_points.of_mask(mask).tolist() == [list(point) for point in expected]


def test_the_first_2_percent_of_the_rows_of_a_mask_count():
    """Of 100 rows these are three: 0 and the two that are no further from it."""
    disc = np.ones((100, 9), bool)
    disc[0, 1:], disc[1, 3:], disc[2, 5:], disc[3, 7:] = False, False, False, False
    assert extreme_points.of_mask(disc)[0].tolist() == [2.5, 0]
    assert extreme_points.of_mask(disc[1:])[0].tolist() == [2.5, 0]  # of 99 two: 0 .. 5
    assert extreme_points.of_mask(disc[::-1])[2].tolist() == [2.5, 100]


def test_a_mirror_exchanges_left_and_right():
    swapped = list(skeleton.mirrored(skeleton.EXTREME_POINTS))
    assert swapped == [0, 3, 2, 1]
    y, x = np.mgrid[:40, :60]
    ellipse = ((y - 20) / 15) ** 2 + ((x - 30) / 20 + (y - 20) / 30) ** 2 < 1  # one that leans
    points, mirrored = extreme_points.of_mask(ellipse), extreme_points.of_mask(ellipse[:, ::-1])
    assert points[0, 0] > points[2, 0] + 10
    np.testing.assert_array_equal(points, mirrored[swapped] * (-1, 1) + (60, 0))


def test_octagons():
    points = np.array([[(40, 10), (0, 30), (8, 90), (80, 50)], [(0, 0), (0, 0), (8, 8), (8, 8)]])
    expected = [
        [(50, 10), (30, 10), (0, 20), (0, 40), (0, 90), (18, 90), (80, 60), (80, 40)],  # (-2, 90) is cut off
        [(1, 0), (0, 0), (0, 0), (0, 1), (7, 8), (8, 8), (8, 8), (8, 7)],  # all but a line
    ]
    np.testing.assert_array_equal(extreme_points.octagons(points), expected)
    assert extreme_points.octagons(points[:0]).shape == (0, 8, 2)
