import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdet import grouping

# --- edges ---

# a line of cells -> with a tenth of what falls away from each on both sides
LINES = {
    "a peak": ([1, 2, 3, 2, 1], [1, 2.1, 3.6, 2.1, 1]),
    "an edge is a strong peak": ([0, 2, 2, 2, 0], [0, 2.4, 2.4, 2.4, 0]),
    "it ends where values rise again": ([4, 1, 2, 1, 4], [4.1, 1, 2.2, 1, 4.1]),
    "a slope": ([1, 2, 3], [1, 2.1, 3.3]),
    "nothing": ([0, 0, 0], [0, 0, 0]),
    "one cell": ([5], [5]),
}


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES)
@pytest.mark.parametrize("axis", [1, 2])
def test_edges_by_hand(line, expected, axis):
    """In the second image and class of a map two cells wide; the others are empty, and stay so."""
    heatmap = np.zeros((2, 2, len(line), 3), np.float32)
    heatmap[1, 1, :, 2] = line
    heatmap = heatmap if axis == 2 else heatmap.swapaxes(1, 2)
    result = tf.function(grouping.aggregate_edge)(heatmap, axis).numpy()
    result = result if axis == 2 else result.swapaxes(1, 2)
    np.testing.assert_allclose(result[1, 1, :, 2], expected, rtol=1e-6)
    assert np.count_nonzero(result) == np.count_nonzero(heatmap)


def test_edges_of_a_map_whose_size_is_not_known():
    values = np.random.default_rng(0).uniform(size=(2, 5, 7, 3)).astype(np.float32)
    signature = [tf.TensorSpec([None, None, None, 3])]
    traced = tf.function(lambda heatmap: grouping.aggregate_edge(heatmap, 1), input_signature=signature)
    np.testing.assert_allclose(traced(values), grouping.aggregate_edge(values, 1), rtol=1e-6)


# --- groups ---


def group(points, centres=None, labels=(1, 1, 1, 1), count=3, **thresholds):
    """One point of each kind, ((row, column), score), on a map of 12 x 12 cells with these centres of class 1, or with
    one in each of its cells."""
    heatmap = np.zeros((1, 12, 12, 2), np.float32)
    heatmap[..., 1] = 0.7 if centres is None else 0
    for cell, score in centres or ():
        heatmap[(0, *cell, 1)] = score
    kinds = [
        {"cells": tf.constant([[cell]]), "scores": tf.constant([[score]], tf.float32), "labels": tf.constant([[label]])}
        for (cell, score), label in zip(points, labels, strict=True)
    ]
    thresholds = {"point_threshold": 0.1, "centre_threshold": 0.1, **thresholds}
    scores, members = grouping.quadruples(kinds, tf.constant(heatmap), **thresholds, count=count)
    assert (scores.shape, members.shape) == ((1, count), (1, count, 4))
    return scores.numpy()[0]


TOP, LEFT, BOTTOM, RIGHT = ((2, 4), 0.5), ((6, 1), 0.6), ((9, 7), 0.8), ((3, 10), 0.9)


def test_a_group_by_hand():
    np.testing.assert_allclose(
        group([TOP, LEFT, BOTTOM, RIGHT], [((5, 5), 0.7)]), [(0.5 + 0.6 + 0.8 + 0.9 + 2 * 0.7) / 6, 0, 0]
    )


# what changes of that group, by its number -> whether it is one still
MOVED = {
    "top as low as right": ({0: (3, 4)}, True),
    "top below right": ({0: (4, 4)}, False),
    "top below left": ({0: (4, 4), 3: (5, 10), 1: (3, 1)}, False),
    "top as far left as left": ({0: (2, 1)}, True),
    "top left of left": ({0: (2, 0)}, False),
    "top as far right as right": ({0: (2, 10)}, True),
    "top right of right": ({0: (2, 11)}, False),
    "bottom as high as left": ({1: (9, 1)}, True),
    "bottom above left": ({1: (10, 1)}, False),
    "bottom above right": ({3: (10, 10)}, False),
    "bottom left of left": ({2: (9, 0)}, False),
    "bottom right of right": ({2: (9, 11)}, False),
    "all in one cell": ({0: (5, 5), 1: (5, 5), 2: (5, 5), 3: (5, 5)}, True),
    "bottom above top": ({0: (9, 4), 2: (2, 7)}, False),
    "right left of left": ({1: (6, 10), 3: (3, 1), 0: (2, 10), 2: (9, 10)}, False),
}


@pytest.mark.parametrize(("moved", "fits"), MOVED.values(), ids=MOVED)
def test_points_that_fit(moved, fits):
    points = [(moved.get(i, cell), score) for i, (cell, score) in enumerate([TOP, LEFT, BOTTOM, RIGHT])]
    assert (group(points)[0] > 0) == fits


@pytest.mark.parametrize(("row", "cell"), [(2, (5, 5)), (1, (5, 5)), (0, (4, 5))])
def test_the_middle_is_rounded_down(row, cell):
    points = [((row, 4), 0.5), LEFT, BOTTOM, RIGHT]
    assert group(points, [(cell, 0.7)])[0] > 0
    assert group(points, [((cell[0] + 1, cell[1]), 0.7), ((cell[0], cell[1] + 1), 0.7)])[0] == 0


@pytest.mark.parametrize("kind", range(4))
def test_all_are_of_one_class_and_likely(kind):
    points = [TOP, LEFT, BOTTOM, RIGHT]
    assert group(points, labels=[0 if i == kind else 1 for i in range(4)])[0] == 0
    points = [(cell, 0.5) for cell, _ in points]
    points[kind] = (points[kind][0], 0.25)
    assert group(points, point_threshold=0.25)[0] > 0
    assert group(points, point_threshold=0.26)[0] == 0


def test_a_centre_is_likely():
    points = [TOP, LEFT, BOTTOM, RIGHT]
    assert group(points, centres=[((5, 5), 0.25)], centre_threshold=0.25)[0] > 0
    assert group(points, centres=[((5, 5), 0.25)], centre_threshold=0.26)[0] == 0


@pytest.mark.parametrize("count", [7, 200])
def test_all_groups_of_several_images(count):
    """As one by one."""
    random, k = np.random.default_rng(0), 5
    centres = random.uniform(0, 1, (2, 9, 7, 2)).astype(np.float32)
    kinds = []
    for rows, columns in ((0, 3), (3, 0), (6, 3), (3, 5)):
        cells = np.stack([rows + random.integers(0, 3, (2, k)), columns + random.integers(0, 2, (2, k))], axis=-1)
        scores = random.uniform(0, 1, (2, k)).astype(np.float32)
        kinds.append(
            {"cells": cells.astype(np.int32), "scores": scores, "labels": random.integers(0, 2, (2, k), np.int32)}
        )
    scores, members = grouping.quadruples(
        tf.nest.map_structure(tf.constant, kinds), tf.constant(centres), 0.1, 0.3, count
    )
    for i in range(2):
        expected = {}
        for chosen in itertools.product(range(k), repeat=4):
            (ty, tx), (ly, lx), (by, bx), (ry, rx) = (
                kind["cells"][i, j].tolist() for kind, j in zip(kinds, chosen, strict=True)
            )
            values = [kind["scores"][i, j] for kind, j in zip(kinds, chosen, strict=True)]
            labels = {int(kind["labels"][i, j]) for kind, j in zip(kinds, chosen, strict=True)}
            if len(labels) > 1 or min(values) < 0.1 or ty > min(ly, by, ry) or lx > min(tx, bx, rx):
                continue
            if by < max(ty, ly, ry) or rx < max(tx, lx, bx):
                continue
            centre = centres[i, (ty + by) // 2, (lx + rx) // 2, labels.pop()]
            if centre >= 0.3:
                expected[chosen] = (sum(values) + 2 * centre) / 6
        assert len(expected) > 7
        best = sorted(expected.values(), reverse=True)[:count]
        np.testing.assert_allclose(scores[i, : len(best)], best, rtol=1e-5)
        assert not np.any(scores[i, len(best) :])
        for score, chosen in zip(best, members[i].numpy().tolist(), strict=False):
            assert expected[tuple(chosen)] == pytest.approx(score, rel=1e-5)


# --- ghosts ---

LARGE, LEFT_HALF, RIGHT_HALF, BESIDE = (0, 0, 40, 20), (0, 0, 18, 20), (20, 2, 40, 20), (30, 5, 41, 15)
# boxes with scores and labels, best first -> scores afterwards
GHOSTS = {
    "made of two": ([(LEFT_HALF, 0.9, 0), (RIGHT_HALF, 0.8, 0), (LARGE, 0.6, 0)], [0.9, 0.8, 0.3]),
    "just not": ([(LEFT_HALF, 0.625, 0), (RIGHT_HALF, 0.625, 0), (LARGE, 0.625, 0)], [0.625, 0.625, 0.625]),
    "it comes later then": ([(LEFT_HALF, 0.9, 0), (LARGE, 0.5, 0), (RIGHT_HALF, 0.4, 0)], [0.9, 0.4, 0.25]),
    "of another class": ([(LEFT_HALF, 0.9, 0), (RIGHT_HALF, 0.8, 1), (LARGE, 0.6, 0)], [0.9, 0.8, 0.6]),
    "one lies beside it": ([(LEFT_HALF, 0.9, 0), (BESIDE, 0.8, 0), (LARGE, 0.6, 0)], [0.9, 0.8, 0.6]),
    "of a low score": ([(LEFT_HALF, 0.9, 0), (RIGHT_HALF, 0.8, 0), (LARGE, 0.2, 0)], [0.9, 0.8, 0.2]),
    "nothing": ([], []),
}


@pytest.mark.parametrize(("found", "expected"), GHOSTS.values(), ids=GHOSTS)
def test_ghosts_by_hand(found, expected):
    padding = [((0, 0, 0, 0), 0, -1)] * (4 - len(found))
    boxes, scores, labels = (
        np.array([column], kind)
        for column, kind in zip(zip(*found, *padding, strict=True), ("f4", "f4", "i4"), strict=True)
    )
    detections = {"boxes": boxes, "scores": scores, "labels": labels, "num_detections": np.int32([len(found)])}
    result = grouping.suppress_ghosts(detections | {"keypoints": boxes.reshape(1, 4, 2, 2)})
    np.testing.assert_allclose(result["scores"], [expected + [0] * len(padding)])
    np.testing.assert_array_equal(result["num_detections"], [len(found)])
    np.testing.assert_array_equal(np.reshape(result["keypoints"], (1, 4, 4)), result["boxes"])
    assert sorted(map(tuple, result["boxes"][0].numpy())) == sorted(map(tuple, boxes[0]))
