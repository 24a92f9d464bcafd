import dataclasses

import numpy as np
import pytest

from tfdet import boxes as box_ops
from tfdet.anchors import AnchorGenerator, PriorBox
from tfdet.errors import TfdetError
from tfdet.inspection import choice, priors


def test_overlaps_are_those_of_boxes_with_their_centres_so_far_apart():
    sizes, others = np.array([(10.0, 4.0), (3.0, 30.0)]), np.array([(8.0, 8.0), (10.0, 4.0), (40.0, 1.0)])
    b = np.concatenate([-others / 2, others / 2], axis=1)
    for distances in (0.0, 1.5, np.array([(4.0, 0.5), (0.0, 20.0)])):
        move = np.tile(np.broadcast_to(distances, (2, 2)), 2)
        a = np.concatenate([-sizes / 2, sizes / 2], axis=1) + move
        np.testing.assert_allclose(priors.overlaps(sizes, others, distances), box_ops.iou(a, b), atol=1e-6)


def test_clusters_of_like_boxes():
    groups = [(10, 10), (30, 60), (60, 30), (200, 180)]
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.array(group) * rng.uniform(0.95, 1.05, (50, 2)) for group in groups])
    found = priors.k_means(rng.permutation(sizes), 4)
    np.testing.assert_allclose(found[np.lexsort((found[:, 0], found.prod(axis=1).round(-3)))], groups, rtol=0.02)


@pytest.mark.parametrize(("count", "clusters", "expected"), [(1, 5, 1), (2, 5, 2), (5, 1, 1)])
def test_clusters_of_few_boxes(count, clusters, expected):
    sizes = np.linspace(10, 100, count)[:, None] * (1, 2)
    found = priors.k_means(sizes, clusters)
    assert found.shape == (expected, 2)
    if expected == 1:
        np.testing.assert_allclose(found[0], sizes.mean(axis=0))


def test_recall_by_hand():
    """Squares of 16 around (24, 24), (76, 20) and (0, 0), and cells whose centres are (24, 24), (72, 24), ..."""
    boxes = np.array([(16.0, 16, 32, 32), (68, 12, 84, 28), (-8, -8, 8, 8)])
    reached, mean = priors.recall(boxes, [PriorBox(16, 16, (), 48)])
    ious = [1, 12 * 12 / (512 - 12 * 12), 0]  # 4 pixels off, across and down; the last one meets nothing
    assert (reached, mean) == (1 / 3, pytest.approx(np.mean(ious)))
    found = priors.recall(boxes, [PriorBox(16, 16, (), 48), AnchorGenerator((16,), (1.0,), 4)])
    assert found == (1, pytest.approx(1))  # those begin at (0, 0)


def test_recall_is_that_of_the_priors(make_dataset):
    rng = np.random.default_rng(0)
    corners = rng.integers(20, 200, (40, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 80, (40, 2))], axis=1)
    dataset = make_dataset((300, 300, boxes.tolist(), [0] * 40))
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)
    best = np.asarray(box_ops.iou(boxes, detector.priors)).max(axis=1)
    reached, mean = priors.recall(boxes.astype(float), detector.settings["priors"])
    assert reached == (best >= 0.5).mean() and mean == pytest.approx(best.mean(), abs=1e-6)


@pytest.mark.parametrize("name", priors.SETTINGS)
def test_what_is_suggested_reaches_more_and_can_be_trained(make_dataset, name):
    """Boxes of 6 pixels and of 60, in images that are fed in their own size, or nearly."""
    boxes = [(10 + 20 * i, 20, 16 + 20 * i, 26) for i in range(10)] + [(30, 60, 90, 120), (100, 100, 160, 160)]
    dataset = make_dataset((256, 256, boxes, [0] * 12))
    sizes = {} if name == "ssd300" else {"short_sides": [256], "long_side": 256}
    detector = choice.build(choice.Choice(name, sizes), "shapes", dataset)
    found = priors.suggest(name, detector, dataset)
    assert found == sorted(found) and found[0] < 12
    better = choice.build(choice.Choice(name, {**sizes, priors.SETTINGS[name]: found}), "shapes", dataset)
    _, generators, _ = priors._levels(name, better)
    fed = priors.fed_boxes(detector, dataset)
    assert priors.recall(fed, generators(found)) > priors.recall(fed, generators(priors._levels(name, detector)[0]))


def test_there_may_be_nothing_better(make_dataset):
    dataset = make_dataset((300, 300, [(8 * i, 30, 30 + 8 * i, 60) for i in range(9)], [0] * 9))
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)  # of priors of 30 x 30 pixels, every 8
    assert priors.suggest("ssd300", detector, dataset) is None


def test_boxes_of_less_than_a_pixel(make_dataset):
    dataset = make_dataset((3000, 3000, [(8 * i, 30, 3 + 8 * i, 34) for i in range(9)], [0] * 9))
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)
    found = priors.suggest("ssd300", detector, dataset)
    assert found is None or min(found) >= 1


def test_boxes_are_in_pixels_of_the_fed_image(make_dataset):
    dataset = make_dataset((150, 600, [(0, 0, 10, 10), (0, 0, 20, 30)], [0, 1]), (300, 300, [(5, 5, 9, 9)], [1]))
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)
    np.testing.assert_allclose(priors.fed_boxes(detector, dataset), [(0, 0, 5, 20), (0, 0, 10, 60), (5, 5, 9, 9)])
    crowd = dataclasses.replace(dataset.examples[0], crowd=np.array([True, False]))
    dataset = dataclasses.replace(dataset, examples=(crowd,))
    np.testing.assert_allclose(priors.fed_boxes(detector, dataset), [(0, 0, 10, 60)])


def test_without_boxes(make_dataset):
    dataset = make_dataset((150, 600, [], []))
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)
    with pytest.raises(TfdetError, match="drawn: no boxes, so there are no sizes to suggest"):
        priors.suggest("ssd300", detector, dataset)
