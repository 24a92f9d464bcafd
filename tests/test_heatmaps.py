import numpy as np
import pytest
import tensorflow as tf

from tfdet import heatmaps

# Height, width, overlap -> radius as it was first released, and as corrected.
# A square of 10 with overlap 0.7: sqrt(40^2 - 16 * 30) = sqrt(28^2 + 11.2 * 30) = 33.466; both in: (40 - 33.466) / 8,
# both out: (33.466 - 28) / 5.6, one in and one out: (20 - sqrt(20^2 - 4 * 30 / 1.7)) / 2 = 0.925. The least of the
# legacy formula is that of both out, (33.466 - 28) / 2.
RADII = {
    "square": (10, 10, 0.7, 2.7332, 0.8168),
    "ten times as large": (100, 100, 0.7, 27.332, 8.1676),
    "a single cell": (1, 1, 0.7, 0.27332, 0.081676),
    "flat": (5, 20, 0.7, 2.2548, 0.6320),
    "CornerNet's overlap": (10, 10, 0.3, 4.9545, 2.2614),
    "nothing may move": (10, 20, 1.0, 0, 0),
    "no area": (0, 0, 0.7, 0, 0),
}


@pytest.mark.parametrize(("height", "width", "overlap", "legacy", "corrected"), RADII.values(), ids=RADII)
def test_radius_by_hand(height, width, overlap, legacy, corrected):
    for sides in ((height, width), (width, height)):
        assert float(heatmaps.gaussian_radius(*sides, overlap)) == pytest.approx(legacy, abs=1e-3)
        assert float(heatmaps.gaussian_radius(*sides, overlap, legacy=False)) == pytest.approx(corrected, abs=1e-3)


def test_radius_of_many_at_once():
    height, width = np.float32([[10, 100], [5, 20]]), np.float32([[10, 100], [20, 5]])
    radii = heatmaps.gaussian_radius(height, width, 0.7)
    assert (radii.shape, radii.dtype) == ((2, 2), tf.float32)
    np.testing.assert_allclose(radii, [[2.7332, 27.332], [2.2548, 2.2548]], rtol=1e-3)


def overlap_of_moved(width, height, top_left, bottom_right):
    """IoU of a box with one whose corners are moved by so much, in x and y alike."""
    moved = width + bottom_right - top_left, height + bottom_right - top_left
    shared = width + min(bottom_right, 0) - max(top_left, 0), height + min(bottom_right, 0) - max(top_left, 0)
    intersection = max(shared[0], 0) * max(shared[1], 0)
    return intersection / (width * height + moved[0] * moved[1] - intersection)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(("width", "height"), [(10, 10), (3, 40), (25, 12)])
def test_corrected_radius_is_the_farthest_that_keeps_the_overlap(width, height, overlap):
    """In the worst of the three cases the overlap is that one, and a little farther it is less."""
    radius = float(heatmaps.gaussian_radius(height, width, overlap, legacy=False))
    for r, expected in ((radius, overlap), (radius * 1.01, None)):
        cases = [overlap_of_moved(width, height, *corners) for corners in ((r, -r), (-r, r), (r, r))]
        if expected:
            assert min(cases) == pytest.approx(expected, rel=1e-4)
        else:
            assert min(cases) < overlap


# --- drawing ---

E1, E2 = np.exp(-1 / (2 * 0.25)), np.exp(-2 / (2 * 0.25))  # sigma of radius 1 is 1/2


def draw(shape, *points):
    """Points (row, column, radius, label)."""
    cells = np.int32([point[:2] for point in points]).reshape(-1, 2)
    radii, labels = (np.int32([point[i] for point in points]) for i in (2, 3))
    heatmap = heatmaps.draw_gaussians(shape, cells, radii, labels)
    assert heatmap.dtype == tf.float32
    return heatmap.numpy()


DRAWINGS = {
    "nothing": ([], np.zeros((3, 4))),
    "radius 0": ([(1, 2, 0, 0)], [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
    "radius 1": ([(1, 2, 1, 0)], [[0, E2, E1, E2], [0, E1, 1, E1], [0, E2, E1, E2]]),
    "over the edge": ([(0, 3, 1, 0)], [[0, 0, E1, 1], [0, 0, E2, E1], [0, 0, 0, 0]]),
    "of two the larger": ([(1, 1, 1, 0), (1, 2, 1, 0)], [[E2, E1, E1, E2], [E1, 1, 1, E1], [E2, E1, E1, E2]]),
    "twice the same": ([(1, 2, 0, 0), (1, 2, 0, 0)], [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
    "two radii": ([(1, 2, 0, 0), (1, 2, 1, 0)], [[0, E2, E1, E2], [0, E1, 1, E1], [0, E2, E1, E2]]),
    "not drawn": ([(1, 2, -1, 0), (0, 0, 0, 0)], [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
}


@pytest.mark.parametrize(("points", "expected"), DRAWINGS.values(), ids=DRAWINGS)
def test_gaussians_by_hand(points, expected):
    np.testing.assert_allclose(draw((3, 4, 1), *points)[..., 0], expected, rtol=1e-6)
    # In the class of the label, and in no other.
    other = draw((3, 4, 3), *[(*point[:3], 2) for point in points])
    np.testing.assert_allclose(other[..., 2], expected, rtol=1e-6)
    assert not other[..., :2].any()


def test_classes_are_drawn_apart():
    heatmap = draw((3, 3, 2), (0, 0, 1, 0), (2, 2, 0, 1))
    np.testing.assert_allclose(heatmap[..., 0], [[1, E1, 0], [E1, E2, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(heatmap[..., 1], [[0, 0, 0], [0, 0, 0], [0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 30, 300])
def test_gaussians_equal_the_loop(count):
    random = np.random.default_rng(count)
    height, width, classes = 17, 23, 4
    points = [random.integers(0, limit, count) for limit in (height, width, 9, classes)]
    expected = np.zeros((height, width, classes))
    for row, column, radius, label in zip(*points, strict=True):
        for i in range(max(row - radius, 0), min(row + radius + 1, height)):
            for j in range(max(column - radius, 0), min(column + radius + 1, width)):
                value = np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                expected[i, j, label] = max(expected[i, j, label], value)
    heatmap = draw((height, width, classes), *zip(*points, strict=True))
    np.testing.assert_allclose(heatmap, expected, rtol=1e-5)
    np.testing.assert_array_equal(heatmap == 1, expected == 1)


def test_gaussians_in_a_graph_that_does_not_know_the_numbers():
    spec = [((None, 2), tf.int32), ((None,), tf.int32), ((None,), tf.int32), ((2,), tf.int32)]

    @tf.function(input_signature=[tf.TensorSpec(*one) for one in spec])
    def drawn(cells, radii, labels, size):
        return heatmaps.draw_gaussians((size[0], size[1], 2), cells, radii, labels)

    heatmap = drawn([(1, 2)], [1], [1], [3, 4])
    np.testing.assert_allclose(heatmap[..., 1], DRAWINGS["radius 1"][1], rtol=1e-6)
    assert drawn(np.zeros((0, 2)), [], [], [5, 6]).shape == (5, 6, 2)


# --- peaks ---


def find(heatmap, k):
    """-> [(score, label, row, column)] of a batch of one, without what is no peak."""
    found = heatmaps.peaks(np.float32(heatmap)[None], k)
    assert [(one.shape, one.dtype) for one in found] == [((1, k), tf.float32), *[((1, k), tf.int32)] * 3]
    scores, *rest = (one.numpy()[0].tolist() for one in found)
    real = [score for score in scores if score > heatmaps.LOWEST]
    assert scores == sorted(scores, reverse=True)
    return list(zip(real, *(one[: len(real)] for one in rest), strict=True))


PEAKS = {
    "the middle": ([[1, 2, 1], [2, 5, 2], [1, 2, 1]], [(5, 1, 1)]),
    "a corner": ([[5, 2, 1], [2, 2, 1], [1, 1, 0]], [(5, 0, 0)]),
    "diagonal neighbours": ([[5, 0, 0], [0, 4, 0], [0, 0, 3]], [(5, 0, 0)]),
    "two apart": ([[4, 0, 0], [0, 0, 0], [1, 0, 5]], [(5, 2, 2), (4, 0, 0), (1, 2, 0), (0, 0, 2)]),
    "negative, as logits may be": ([[-1, -9, -3], [-9, -9, -9], [-9, -8, -2]], [(-1, 0, 0), (-2, 2, 2), (-3, 0, 2)]),
    "equal neighbours": ([[5, 5, 0], [0, 0, 0], [0, 0, 0]], [(5, 0, 0), (5, 0, 1), (0, 2, 0), (0, 2, 1), (0, 2, 2)]),
}


@pytest.mark.parametrize(("heatmap", "expected"), PEAKS.values(), ids=PEAKS)
@pytest.mark.parametrize("k", [1, 9, 30])
def test_peaks_by_hand(heatmap, expected, k):
    found = find(np.array(heatmap)[..., None], k)
    assert [(score, row, column) for score, _, row, column in found] == expected[:k]
    assert {label for _, label, *_ in found} <= {0}


def test_peaks_of_several_classes_in_one_cell():
    heatmap = np.zeros((3, 4, 3))
    heatmap[1, 2], heatmap[0, 0, 1] = (0.5, 0.25, 0.75), 0.375
    found = find(heatmap, 4)
    assert found == [(0.75, 2, 1, 2), (0.5, 0, 1, 2), (0.375, 1, 0, 0), (0.25, 1, 1, 2)]


@pytest.mark.parametrize("k", [1, 7, 100, 1000])
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 13, 9, 5), (3, 1, 1, 4)])
def test_peaks_equal_the_loops(shape, k):
    random = np.random.default_rng(0)
    heatmap = random.permutation(np.prod(shape)).reshape(shape).astype(np.float32)  # all of them differ
    batch, height, width, classes = shape
    scores, labels, rows, columns = (one.numpy() for one in heatmaps.peaks(heatmap, k))
    for b in range(batch):
        expected = []
        for i, j, c in np.ndindex(height, width, classes):
            around = heatmap[b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, c]
            if heatmap[b, i, j, c] == around.max():
                expected.append((heatmap[b, i, j, c], c, i, j))
        expected = sorted(expected, reverse=True)[:k]
        found = list(zip(*(one[b, : len(expected)] for one in (scores, labels, rows, columns)), strict=True))
        assert found == expected
        assert (scores[b, len(expected) :] == np.float32(heatmaps.LOWEST)).all()
        assert (rows[b] < height).all() and (columns[b] < width).all() and (labels[b] < classes).all()


def test_peaks_in_a_graph_that_does_not_know_the_size():
    find = tf.function(lambda heatmap: heatmaps.peaks(heatmap, 100), [tf.TensorSpec((None, None, None, 3))])
    for shape in ((2, 5, 7, 3), (1, 40, 30, 3)):
        heatmap = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for one, other in zip(find(heatmap), heatmaps.peaks(heatmap, 100), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_maps_say_in_cells_by_hand():
    maps = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    cells = np.int32([[(0, 0), (2, 3), (1, 2)], [(2, 0), (-1, -1), (0, 1)]])
    found = heatmaps.at(maps, cells)
    np.testing.assert_array_equal(found[0], [(0, 1), (22, 23), (12, 13)])
    np.testing.assert_array_equal(np.array(found[1])[[0, 2]], [(40, 41), (26, 27)])
    np.testing.assert_array_equal(heatmaps.corners(cells)[0], [(0, 0), (3, 2), (2, 1)])


@pytest.mark.parametrize(("rows", "expected"), [(0, [9, 9]), (1, [0, 9]), (2, [0, 1]), (3, [0, 1])])
def test_the_first_rows_by_hand(rows, expected):
    values = np.tile(np.arange(rows, dtype=np.int32)[:, None, None], (1, 3, 2))
    found = heatmaps.first_rows(values, 2, 9)
    assert found.shape == (2, 3, 2)
    np.testing.assert_array_equal(found[:, 2, 1], expected)


def test_the_mean_of_logits_is_that_of_their_probabilities():
    logits = [np.log(p / (1 - p)) for p in (np.float32([0.2, 0.9]), np.float32([0.6, 0.1]))]
    np.testing.assert_allclose(heatmaps.mean(*logits), np.log([0.4 / 0.6, 1]), atol=1e-6)
