import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet import backbones
from tfdet.anchors import AnchorGenerator, AnchorPyramid
from tfdet.backbones import vgg
from tfdet.coders import DeltaXYWH
from tfdet.data.pipeline import prediction_batches
from tfdet.detectors.faster_rcnn import (
    BoxHead,
    FasterRCNN,
    FasterRCNNDecoder,
    FasterRCNNLoss,
    FasterRCNNTargetEncoder,
    Proposals,
    RegionTargets,
    RPNHead,
    faster_rcnn_fpn,
    faster_rcnn_vgg16,
)
from tfdet.errors import TfdetError
from tfdet.samplers import RandomSampler

STDS = (0.1, 0.1, 0.2, 0.2)
# An image of 64 x 64 has four anchors of 32 x 32, row by row, and one of 64 x 64.
PYRAMID = AnchorPyramid([AnchorGenerator((side,), (1.0,), side, offset=0.5) for side in (32, 64)])
# Here the four are at the corners of their cells, so that three of them, and the large one, reach beyond the image.
CROSSING = AnchorPyramid([AnchorGenerator((side,), (1.0,), side) for side in (32, 64)])
# 1024 anchors of 8 x 8 in an image of 256 x 256.
MANY = AnchorPyramid([AnchorGenerator((8,), (1.0,), 8, offset=0.5)])


@pytest.fixture(scope="module")
def small():
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return faster_rcnn_fpn(("red", "blue"), "resnet_slim", None, (64,), 96)


# --- targets of the first stage ---


def encode(objects, pyramid=PYRAMID, size=None, seed=0, largest=(64, 64), **options):
    boxes = np.float32([box for box, _ in objects]).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    encoder = FasterRCNNTargetEncoder(pyramid, DeltaXYWH(), largest, RandomSampler(256, 0.5), **options)
    return encoder(boxes, labels, size, seed)


# objects (box, label; -1: a crowd region), labels of the four anchors, label of the one
TARGETS = {
    "no objects": ([], [-1, -1, -1, -1], -1),
    "its own anchor": ([((0, 0, 32, 32), 3)], [0, -1, -1, -1], -1),
    "IoU 0.75": ([((0, 0, 32, 24), 3)], [0, -1, -1, -1], -1),
    "the best has 0.57; 0.375 and 0.44 are ignored": ([((0, 0, 32, 56), 3)], [0, -1, -2, -1], -2),
    "the best has 0.25": ([((0, 0, 16, 16), 3)], [-1, -1, -1, -1], -1),
    "all that are best": ([((0, 0, 32, 64), 1)], [0, -1, 0, -1], 0),  # each has IoU 0.5
    "several objects": ([((32, 32, 64, 64), 5), ((0, 0, 60, 64), 0)], [-1, -1, -1, 0], 0),
    "no area": ([((10, 10, 10, 20), 3)], [-1, -1, -1, -1], -1),
    "in a crowd": ([((0, 0, 32, 60), -1)], [-2, -1, -2, -1], -1),
    "an object in a crowd": ([((0, 0, 64, 32), -1), ((0, 0, 32, 32), 4)], [0, -2, -1, -1], -2),
}


@pytest.mark.parametrize(("objects", "fine", "coarse"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(objects, fine, coarse):
    targets = encode(objects)
    parts = [(part.shape, part.dtype) for part in targets["rpn_labels"] + targets["rpn_deltas"]]
    shapes = (2, 2, 1), (1, 1, 1)
    assert parts == [(s, tf.int32) for s in shapes] + [((*s, 4), tf.float32) for s in shapes]
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][0]), fine)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][1]), coarse)


@pytest.mark.parametrize(("bottom", "label"), [(52, 0), (53, 0), (54, -2), (108, -2), (109, -1)])
def test_thresholds_of_an_anchor_that_is_not_the_best(bottom, label):
    """Of two around one centre, 34 x 34 and 40 x 40, the larger is the best, and the object is as wide as that one.

    The smaller has IoU 1156 / (40 * height): 0.72, 0.705, 0.69, 0.301 and 0.298.
    """
    pyramid = AnchorPyramid([AnchorGenerator((34, 40), (1.0,), 64, offset=0.5)])
    targets = encode([((12, 12, 52, bottom), 7)], pyramid)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][0]), [label, 0])


def test_deltas_of_the_positives_by_hand_and_the_objects_themselves():
    targets = encode([((0, 32, 32, 60), 7), ((6, -2, 70, 62), 8)], seed=2**40)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][0]), [-1, -1, 0, -1])
    fine, coarse = targets["rpn_deltas"]
    expected = np.zeros((2, 2, 1, 4))
    expected[1, 0] = (0, -2 / 32, 0, np.log(28 / 32))
    np.testing.assert_allclose(fine, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(coarse, [[[(6 / 64, -2 / 64, 0, 0)]]], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(targets["boxes"], [(0, 32, 32, 60), (6, -2, 70, 62)])
    np.testing.assert_array_equal(targets["labels"], [7, 8])
    assert (targets["seed"].dtype, int(targets["seed"])) == (tf.int64, 2**40)


# size of the image; labels of the anchors, whose centres are at 16 and 48 and at 32
PADDED = {
    (64, 48): ([-1, 0, -1, -1], -1),
    (64, 47): ([-1, -2, -1, -2], -1),  # the next best of the object has IoU 0.14, and is not taken
    (40, 64): ([-1, 0, -2, -2], -1),
    (31, 64): ([-1, 0], -2),
}


@pytest.mark.parametrize(("size", "fine", "coarse"), [(size, *labels) for size, labels in PADDED.items()])
def test_anchors_on_the_padding_are_ignored(size, fine, coarse):
    targets = encode([((32, 0, 47, 24), 9)], size=size)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][0]), fine)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][1]), coarse)


@pytest.mark.parametrize(("crossing", "fine", "coarse"), [(True, [-1, 0, -1, -2], -1), (False, [-2, -2, -2, 0], -2)])
def test_in_the_original_anchors_that_reach_beyond_the_image_are_ignored(crossing, fine, coarse):
    """The object has IoU 0.34 with the second, and 0.31 with the last, its best if the second does not count."""
    targets = encode([((16, 0, 48, 31), 0)], CROSSING, crossing=crossing)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][0]), fine)
    np.testing.assert_array_equal(np.ravel(targets["rpn_labels"][1]), coarse)


@pytest.mark.parametrize(("objects", "positives", "negatives"), [(200, 128, 128), (3, 3, 253), (0, 0, 256)])
def test_of_an_image_256_anchors_are_drawn(objects, positives, negatives):
    anchors = np.array(MANY(256, 256)[0])
    objects = [(anchors[i], i % 3) for i in range(objects)]
    drawn = []
    for seed in (3, 3, 4):
        targets = encode(objects, MANY, seed=seed, largest=(256, 256))
        labels = np.ravel(targets["rpn_labels"][0])
        assert (np.sum(labels == 0), np.sum(labels == -1)) == (positives, negatives)
        assert np.all(labels[len(objects) :] != 0)
        drawn.append(labels)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


def test_only_what_is_drawn_has_deltas():
    boxes = np.array(MANY(256, 256)[0])[:200] + np.array([1, 0, 1, 0])
    targets = encode([(box, 0) for box in boxes], MANY, largest=(256, 256))
    labels, deltas = np.ravel(targets["rpn_labels"][0]), np.reshape(targets["rpn_deltas"][0], (-1, 4))
    np.testing.assert_allclose(deltas, np.where(labels == 0, 1, 0)[:, None] * [1 / 8, 0, 0, 0], atol=1e-6)
    assert np.sum(labels == 0) == 128


def test_the_detector_draws_256_half_of_them_positives(small):
    sampler = small.encoder.sampler
    assert (sampler.num, sampler.max_positives, sampler.add_gt_as_proposals) == (256, 128, False)


# --- proposals ---

A, NEAR_A, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)


def propose(levels, training=False, size=(100, 100), pre_nms=(100, 100), post_nms=(50, 50), **settings):
    """levels: for each a list of (anchor, logit). Deltas are zero. -> the boxes that are not padding."""
    logits = tuple(np.float32([[logit for _, logit in level]]) for level in levels)
    deltas = tuple(np.zeros((1, len(level), 4), "float32") for level in levels)
    anchors = tuple(np.float32([anchor for anchor, _ in level]) for level in levels)
    found = Proposals(DeltaXYWH(), pre_nms, post_nms, **settings)(logits, deltas, anchors, np.float32([size]), training)
    found = np.array(found)[0]
    assert found.shape == (post_nms[0 if training else 1], 4)
    real = (found[:, 2:] > found[:, :2]).all(axis=1)
    assert not found[~real].any() and not np.any(np.diff(real.astype(int)) > 0)  # padding is zeros and comes last
    return [tuple(box) for box in found[real].tolist()]


# levels of (anchor, logit), expected boxes
PROPOSED = {
    "best first": ([[(A, -5), (FAR, 2)]], [FAR, A]),
    "the better of two": ([[(A, 1), (NEAR_A, 2), (FAR, 0)]], [NEAR_A, FAR]),
    "levels do not meet": ([[(A, 1)], [(NEAR_A, 2)]], [NEAR_A, A]),
    "an IoU of 0.7 may stay": ([[(A, 1), ((0, 0, 10, 7), 0)]], [A, (0, 0, 10, 7)]),
    "an IoU of 0.8 may not": ([[(A, 1), ((0, 0, 10, 8), 0)]], [A]),
    "clipped": ([[((-10, 50, 20, 120), 0)]], [(0, 50, 20, 100)]),
    "outside": ([[((-10, 50, -5, 90), 3), (A, 0)]], [A]),
    "clipped before NMS": ([[((90, 90, 100, 130), 3), ((90, 90, 130, 100), 2)]], [(90, 90, 100, 100)]),
}


@pytest.mark.parametrize(("levels", "expected"), PROPOSED.values(), ids=PROPOSED)
def test_proposals_by_hand(levels, expected):
    assert propose(levels) == expected


def row(count, y=0):
    """Boxes that are not in each other's way, the best last."""
    return [((10 * i, y, 10 * i + 9, y + 9), 0.1 * i + 0.01 * y) for i in range(count)]


@pytest.mark.parametrize(("training", "before", "after"), [(True, 3, 5), (False, 2, 3)])
def test_so_many_of_each_level_and_so_many_of_all(training, before, after):
    """The second level has one only; the third is better than the first."""
    levels = [row(4), row(1, 20), row(4, 40)]
    expected = sorted((pair for level in levels for pair in level[-before:]), key=lambda pair: -pair[1])
    assert len(expected) > after
    expected = [box for box, _ in expected]
    assert propose(levels, training, pre_nms=(3, 2), post_nms=(50, 50)) == expected
    assert propose(levels, training, pre_nms=(3, 2), post_nms=(5, 3)) == expected[:after]


def test_so_many_are_taken_before_nms():
    """The two best are alike, so that one is left, though there are others."""
    assert propose([[(A, 3), (NEAR_A, 2), (FAR, 1)]], pre_nms=(2, 2)) == [A]


@pytest.mark.parametrize(("min_size", "expected"), [(1e-3, 2), (4, 2), (4.5, 1), (20, 0)])
def test_small_proposals_are_dropped(min_size, expected):
    """On the image the first is 4 pixels wide."""
    boxes = propose([[((96, 0, 120, 10), 3), (A, 2)]], min_size=min_size)
    assert boxes == [(96, 0, 100, 10), A][2 - expected :]


def test_deltas_are_decoded_and_each_image_has_its_size_and_its_own_best():
    logits = (np.float32([[0, 1], [1, 0]]),)
    deltas = (np.float32([[(0.5, 0, np.log(2), 0), (0, 0, 0, 0)], [(0, -2, 0, np.log(3)), (0, 0, 0, 0)]]),)
    anchors, sizes = (np.float32([(20, 20, 60, 60), (0, 0, 9, 9)]),), np.float32([(50, 70), (90, 30)])
    found = Proposals(DeltaXYWH(), (5, 5), (2, 2))(logits, deltas, anchors, sizes)
    expected = [[(0, 0, 9, 9), (20, 20, 70, 50)], [(20, 0, 30, 20), (0, 0, 9, 9)]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_no_gradient_passes_the_proposals():
    logits, deltas = (tf.constant([[0.5, 1.0]]),), (tf.zeros((1, 2, 4)),)
    with tf.GradientTape() as tape:
        tape.watch((logits, deltas))
        boxes = Proposals(DeltaXYWH(), (5, 5), (2, 2))(logits, deltas, (np.float32([A, FAR]),), np.float32([(99, 99)]))
        total = tf.reduce_sum(boxes)
    assert total == 20 + 220
    assert tape.gradient(total, [*logits, *deltas]) == [None, None]


# --- targets of the second stage ---


def draw(proposals, objects, num=8, seed=0):
    """For one image -> (regions [S, 4], labels [S], deltas [S, 4]), after two boxes of padding at the end of each."""
    boxes = np.float32([[*(box for box, _ in objects), (0, 0, 0, 0), (0, 0, 0, 0)]])
    labels = np.int32([[*(label for _, label in objects), -2, -2]])
    proposals = np.float32([[*proposals, (0, 0, 0, 0), (0, 0, 0, 0)]])
    region_targets = RegionTargets(DeltaXYWH(STDS), RandomSampler(num, 0.25, add_gt_as_proposals=True))
    drawn = region_targets(proposals, boxes, labels, np.int64([seed]))
    assert drawn["region_labels"].dtype == tf.int32
    assert [part.shape for part in drawn.values()] == [(1, num, 4), (1, num), (1, num, 4)]
    return tuple(np.array(drawn[name])[0] for name in ("regions", "region_labels", "region_deltas"))


def rows(regions, labels):
    """What was drawn, without the padding behind it."""
    count = np.sum(labels != -2)
    assert np.all(labels[count:] == -2)
    return sorted(zip(map(tuple, regions[:count].tolist()), labels[:count].tolist(), strict=True))


HALF = (0, 0, 10, 5)
# proposals, objects (box, label; -1: a crowd region), expected (region, label), of which there may be 8, 2 positives
DRAWN = {
    "nothing": ([], [], []),
    "no objects": ([A, FAR], [], [(A, -1), (FAR, -1)]),
    "no proposals": ([], [(A, 3)], [(A, 3)]),
    "an object is proposed": ([FAR], [(A, 3)], [(A, 3), (FAR, -1)]),
    "IoU 0.5": ([HALF], [(A, 3)], [(HALF, 3), (A, 3)]),
    "IoU 0.45": ([(0, 0, 10, 4.5)], [(A, 3)], [((0, 0, 10, 4.5), -1), (A, 3)]),
    "the object that it overlaps most": ([NEAR_A], [(HALF, 1)], [(HALF, 1), (NEAR_A, 1)]),  # IoU 5 / 9
    "label 0": ([FAR], [(A, 0)], [(A, 0), (FAR, -1)]),
    "in a crowd": ([(0, 0, 10, 4), FAR], [((0, 0, 20, 20), -1)], [(FAR, -1)]),
    "an object in a crowd": ([(0, 0, 10, 4), NEAR_A], [((0, 0, 20, 20), -1), (A, 6)], [(NEAR_A, 6), (A, 6)]),
    "no area": ([(5, 5, 5, 9)], [((5, 5, 5, 9), 2)], [((5, 5, 5, 9), -1)]),
}


@pytest.mark.parametrize(("proposals", "objects", "expected"), DRAWN.values(), ids=DRAWN)
def test_regions_by_hand(proposals, objects, expected):
    regions, labels, _ = draw(proposals, objects)
    assert rows(regions, labels) == sorted(expected)


def test_at_most_a_quarter_are_positives_and_the_seed_says_which():
    """Of 30 near the object and 30 far from it: 4 and 12."""
    near = [(0, 0, 10, 9 + i / 100) for i in range(30)]
    far = [(20 + i, 50, 60, 60) for i in range(30)]
    drawn = []
    for seed in (5, 5, 6):
        regions, labels, _ = draw(near + far, [(A, 1)], 16, seed)
        assert labels.tolist() == [1] * 4 + [-1] * 12
        assert np.all(regions[:4, 1] == 0) and np.all(regions[4:, 1] == 50)
        assert len(np.unique(regions, axis=0)) == 16
        drawn.append(regions)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


def test_deltas_of_regions_by_hand():
    """Divided by 0.1 and 0.2. The object's own region has zeros."""
    regions, labels, deltas = draw([(1, 0, 11, 10), (0, 10, 10, 20)], [((0, 0, 10, 20), 4), ((1, 0, 11, 9), 2)], 16)
    found = {
        (*region, label): delta for region, label, delta in zip(regions.tolist(), labels.tolist(), deltas, strict=True)
    }
    expected = {
        (0, 0, 10, 20, 4): (0, 0, 0, 0),
        (1, 0, 11, 9, 2): (0, 0, 0, 0),
        (1, 0, 11, 10, 2): (0, -0.5, 0, np.log(0.9) / 0.2),
        (0, 10, 10, 20, 4): (0, -5, 0, np.log(2) / 0.2),
    }
    for region, delta in expected.items():
        np.testing.assert_allclose(found[region], delta, rtol=1e-5, atol=1e-5)
    assert np.isfinite(deltas).all()


def test_each_image_of_a_batch_has_its_own_objects_and_seed():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 60, (2, 50, 2))
    proposals = np.concatenate([corners, corners + random.uniform(5, 30, (2, 50, 2))], axis=-1).astype("float32")
    boxes, labels = proposals[:, :3] + 1, np.int32([(0, 1, 0), (1, -1, -2)])
    region_targets = RegionTargets(DeltaXYWH(STDS), RandomSampler(12, 0.25, add_gt_as_proposals=True))
    together = region_targets(proposals, boxes, labels, np.int64([7, 8]))
    for i in range(2):
        alone = region_targets(proposals[i : i + 1], boxes[i : i + 1], labels[i : i + 1], np.int64([7 + i]))
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][i], value[0], err_msg=name)


def test_no_gradient_passes_the_regions():
    proposals = tf.constant([[A, NEAR_A, FAR]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(proposals)
        region_targets = RegionTargets(DeltaXYWH(STDS), RandomSampler(4, 0.5, add_gt_as_proposals=True))
        drawn = region_targets(proposals, np.float32([[A]]), np.int32([[0]]), np.int64([0]))
        total = tf.reduce_sum(drawn["regions"]) + tf.reduce_sum(drawn["region_deltas"])
    assert tape.gradient(total, proposals) is None


# --- loss ---

RPN_LABELS = np.int32([[0, -1, -2, -1, -2], [-2, -1, -2, -2, 0]])  # 5 drawn
REGION_LABELS = np.int32([[1, -1, -2], [-1, 0, -2]])  # 4 drawn


def loss_case(objectness, rpn_distances, probabilities, distances, rpn_labels=RPN_LABELS, region_labels=REGION_LABELS):
    """Targets and outputs of two images: anchors as the levels have them, and three regions of two classes.

    Args:
        objectness: probabilities [2, 5]; probabilities: [2, 3, 3], background first.
        rpn_distances: [2, 5] and distances: [2, 3, 2], how wrong two of four deltas are.
    """
    wrong = np.float32([0, 1, 0, -1])
    logits = np.float32(np.log(objectness) - np.log1p(-np.array(objectness)))
    rpn_deltas = 3 + np.float32(rpn_distances)[..., None] * wrong
    targets = {
        "rpn_labels": (rpn_labels[:, :4].reshape(2, 2, 2, 1), rpn_labels[:, 4:].reshape(2, 1, 1, 1)),
        "rpn_deltas": (np.full((2, 2, 2, 1, 4), 3, "float32"), np.full((2, 1, 1, 1, 4), 3, "float32")),
        "region_labels": region_labels,
        "region_deltas": np.full((2, 3, 4), 2, "float32"),
    }
    outputs = {
        "objectness": (logits[:, :4], logits[:, 4:]),
        "rpn_deltas": (rpn_deltas[:, :4], rpn_deltas[:, 4:]),
        "class_logits": 5 + np.float32(np.log(probabilities)),
        "box_deltas": 2 + np.float32(distances)[..., None] * wrong,
    }
    return targets, tf.nest.map_structure(tf.constant, outputs)


OBJECTNESS = [[0.6, 0.3, 0.999, 0.1, 0.999], [0.999, 0.5, 0.999, 0.999, 0.2]]
RPN_DISTANCES = [[0.05, 100, 100, 100, 100], [100, 100, 100, 100, 2]]
PROBABILITIES = [
    [(0.1, 0.2, 0.7), (0.6, 0.3, 0.1), (0.001, 0.001, 0.998)],
    [(0.5, 0.1, 0.4), (0.1, 0.8, 0.1), (0.001, 0.001, 0.998)],
]
DISTANCES = [[(100, 0.5), (100, 100), (100, 100)], [(100, 100), (2, 100), (100, 100)]]


def test_loss_by_hand():
    """Each stage by what was drawn in it; smooth L1 bends at 1 / 9 in the first, at 1 in the second."""
    parts = FasterRCNNLoss(PYRAMID)(*loss_case(OBJECTNESS, RPN_DISTANCES, PROBABILITIES, DISTANCES))
    assert tuple(parts) == FasterRCNNLoss.parts == ("rpn_class", "rpn_box", "class", "box")
    np.testing.assert_allclose(parts["rpn_class"], -np.log(0.6 * 0.7 * 0.9 * 0.5 * 0.2) / 5, rtol=1e-5)
    np.testing.assert_allclose(parts["rpn_box"], 2 * (4.5 * 0.05**2 + 2 - 1 / 18) / 5, rtol=1e-5)
    np.testing.assert_allclose(parts["class"], -np.log(0.7 * 0.6 * 0.5 * 0.8) / 4, rtol=1e-5)
    np.testing.assert_allclose(parts["box"], 2 * (0.125 + 1.5) / 4, rtol=1e-5)


def test_gradients_reach_what_was_drawn_and_nothing_else():
    targets, outputs = loss_case(OBJECTNESS, RPN_DISTANCES, PROBABILITIES, DISTANCES)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        total = sum(FasterRCNNLoss(PYRAMID)(targets, outputs).values())
    gradients = tape.gradient(total, outputs)
    objectness, rpn_deltas = (np.concatenate(gradients[name], axis=1) for name in ("objectness", "rpn_deltas"))
    np.testing.assert_array_equal(objectness != 0, RPN_LABELS != -2)
    np.testing.assert_array_equal(np.any(rpn_deltas, axis=-1), RPN_LABELS == 0)
    np.testing.assert_array_equal(np.all(gradients["class_logits"], axis=-1), REGION_LABELS != -2)
    np.testing.assert_array_equal(np.any(gradients["class_logits"], axis=-1), REGION_LABELS != -2)
    own_class = REGION_LABELS[..., None] == [0, 1]
    np.testing.assert_array_equal(np.any(gradients["box_deltas"], axis=-1), own_class)


def test_loss_without_positives_and_without_anything_drawn_is_finite():
    negative = loss_case(
        OBJECTNESS, RPN_DISTANCES, PROBABILITIES, DISTANCES, np.full((2, 5), -1, "int32"), np.full((2, 3), -1, "int32")
    )
    parts = {name: float(value) for name, value in FasterRCNNLoss(PYRAMID)(*negative).items()}
    assert (parts["rpn_box"], parts["box"]) == (0, 0)
    assert parts["rpn_class"] > 1 and parts["class"] > 1
    nothing = loss_case(
        OBJECTNESS, RPN_DISTANCES, PROBABILITIES, DISTANCES, np.full((2, 5), -2, "int32"), np.full((2, 3), -2, "int32")
    )
    assert [float(value) for value in FasterRCNNLoss(PYRAMID)(*nothing).values()] == [0, 0, 0, 0]


# --- heads ---


def test_the_rpn_head_counts_cell_by_cell_and_anchor_by_anchor():
    keras.utils.set_random_seed(0)
    head = RPNHead(2, 8)
    level = np.zeros((1, 4, 4, 8), np.float32)
    head([level])
    head.logit_conv.bias.assign([0, 1])
    head.delta_conv.bias.assign(np.arange(8))
    before = head([level, level[:, :2]])
    assert [part.shape for part in before[0] + before[1]] == [(1, 32), (1, 16), (1, 32, 4), (1, 16, 4)]
    np.testing.assert_array_equal(before[0][0], np.tile([0, 1], (1, 16)))
    np.testing.assert_array_equal(before[1][0], np.tile([(0, 1, 2, 3), (4, 5, 6, 7)], (1, 16, 1)))
    level[0, 3, 0] = 100  # the corner below: cells (2..3, 0..1) see it
    logits, deltas = head([level])
    rows, columns = np.divmod(np.arange(32) // 2, 4)
    near = (rows > 1) & (columns < 2)
    np.testing.assert_array_equal(np.array(logits[0])[0] != np.array(before[0][0])[0], near)
    np.testing.assert_array_equal(np.any(np.array(deltas[0]) != before[1][0], axis=-1)[0], near)


def test_the_box_head_gives_classes_after_background_and_boxes_for_each_class():
    head = BoxHead(3, 8)
    regions = np.zeros((2, 5, 7, 7, 4), np.float32)
    head(regions)
    head.classes.bias.assign(np.arange(4))
    head.deltas.bias.assign(np.arange(12))
    outputs = head(regions)
    np.testing.assert_array_equal(outputs["class_logits"], np.tile(np.arange(4), (2, 5, 1)))
    np.testing.assert_array_equal(outputs["box_deltas"], np.tile(np.arange(12).reshape(3, 4), (2, 5, 1, 1)))
    assert head.fc6.kernel.shape == (7 * 7 * 4, 8) and head.fc7.kernel.shape == (8, 8)


def test_dropout_is_for_training_only():
    keras.utils.set_random_seed(0)
    head, regions = BoxHead(1, 64, dropout=0.5), np.ones((1, 1, 7, 7, 4), np.float32)
    first, again, training = (head(regions, training=training)["class_logits"] for training in (False, False, True))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.array(first) != training)


# --- detections ---


def decode(proposals, probabilities, deltas=None, size=(100, 100), **settings):
    """probabilities: [R, 1 + C], background first; deltas: [R, C, 4] or zero -> rows (box, score, label)."""
    classes = np.shape(probabilities)[1] - 1
    outputs = {
        "proposals": np.float32([proposals]),
        "class_logits": 2 + np.log(np.float32([probabilities])),
        "box_deltas": np.zeros((1, len(proposals), classes, 4), "float32") if deltas is None else np.float32([deltas]),
        "sizes": np.float32([size]),
    }
    found = {
        name: np.array(value)[0] for name, value in FasterRCNNDecoder(DeltaXYWH(STDS), **settings)(outputs).items()
    }
    boxes, scores = found["boxes"].round(3).tolist(), found["scores"].round(4).tolist()
    rows = zip(map(tuple, boxes), map(pytest.approx, scores), found["labels"].tolist(), strict=True)
    return list(rows)[: found["num_detections"]]


PADDING = (0, 0, 0, 0)
# proposals, probabilities of background and two classes, expected rows
DETECTIONS = {
    "two classes": ([A], [(0.1, 0.3, 0.6)], [(A, 0.6, 1), (A, 0.3, 0)]),
    "background": ([A, FAR], [(0.98, 0.01, 0.01), (0.8, 0.01, 0.19)], [(FAR, 0.19, 1)]),
    "a score of 0.05 does not do": ([A, FAR], [(0.91, 0.049, 0.041), (0.9, 0.051, 0.049)], [(FAR, 0.051, 0)]),
    "padding": ([A, PADDING, PADDING], [(0.3, 0.68, 0.02), (0.01, 0.98, 0.01), (0.01, 0.01, 0.98)], [(A, 0.68, 0)]),
    "the better of two": ([A, NEAR_A], [(0.4, 0.58, 0.02), (0.3, 0.68, 0.02)], [(NEAR_A, 0.68, 0)]),
    "classes do not meet": ([A, NEAR_A], [(0.4, 0.58, 0.02), (0.3, 0.02, 0.68)], [(NEAR_A, 0.68, 1), (A, 0.58, 0)]),
    "an IoU of 0.5 may stay": ([A, HALF], [(0.4, 0.58, 0.02), (0.3, 0.68, 0.02)], [(HALF, 0.68, 0), (A, 0.58, 0)]),
    "beyond the image": ([(90, 95, 120, 130)], [(0.4, 0.58, 0.02)], [((90, 95, 100, 100), 0.58, 0)]),
}


@pytest.mark.parametrize(("proposals", "probabilities", "expected"), DETECTIONS.values(), ids=DETECTIONS)
def test_detections_by_hand(proposals, probabilities, expected):
    assert decode(proposals, probabilities) == expected


def test_every_class_has_a_box_of_its_own():
    """Deltas are multiplied by 0.1 and 0.2."""
    deltas = [[(5, 0, 0, 0), (0, -5, np.log(2) / 0.2, 0)]]
    found = decode([(20, 20, 40, 40)], [(0.1, 0.3, 0.6)], deltas, size=(35, 45))
    assert found == [((10, 10, 45, 30), 0.6, 1), ((30, 20, 45, 35), 0.3, 0)]


def test_settings_of_the_decoder():
    decoder = FasterRCNNDecoder(DeltaXYWH(STDS))
    assert (decoder.score_threshold, decoder.iou_threshold, decoder.keep) == (0.05, 0.5, 100)
    assert len(decode([box for box, _ in row(150)], [(0.4, 0.58, 0.02)] * 150, size=(100, 2000))) == 100


# --- the detector ---


def levels_read(model, levels, side):
    """Names of the levels that the second stage reads for a square of that side."""
    random = np.random.default_rng(0)
    levels = {name: tf.constant(random.uniform(size=(1, 8, 8, channels)), tf.float32) for name, channels in levels}
    with tf.GradientTape() as tape:
        tape.watch(levels)
        outputs = model.second_stage(levels, np.float32([[(0, 0, side, side)]]))
        total = tf.reduce_sum(outputs["class_logits"]) + tf.reduce_sum(outputs["box_deltas"])
    return [
        name for name, gradient in tape.gradient(total, levels).items() if gradient is not None and np.any(gradient)
    ]


# side of a square region, its level on a pyramid from P2
LEVELS = {20: "P2", 111: "P2", 112: "P3", 223: "P3", 224: "P4", 447: "P4", 448: "P5", 2000: "P5"}


@pytest.mark.parametrize(("side", "level"), LEVELS.items())
def test_the_second_stage_reads_one_of_p2_to_p5(small, side, level):
    assert levels_read(small, [(f"P{k}", 64) for k in range(2, 7)], side) == [level]


def test_the_published_settings_with_a_pyramid(small):
    model = faster_rcnn_fpn(1, small.backbone)
    assert (small.class_names, model.class_names) == (("red", "blue"), ("0",))
    for one in (small, model):
        assert [generator.stride for generator in one.settings["anchors"]] == [4, 8, 16, 32, 64]
        assert [generator.sizes for generator in one.settings["anchors"]] == [(32,), (64,), (128,), (256,), (512,)]
        assert all(generator.aspect_ratios == (0.5, 1.0, 2.0) for generator in one.settings["anchors"])
        assert one.encoder.crossing
        assert one.region_targets.coder.stds == one.decoder.coder.stds == STDS
        assert one.encoder.coder.stds == one.proposals.coder.stds == (1, 1, 1, 1)
        assert (one.proposals.iou_threshold, one.region_targets.pos_iou, one.region_targets.neg_iou) == (0.7, 0.5, 0.5)
    assert (model.resizer.short, model.resizer.long) == (800, 1333)
    assert model.augmentation.short_sides == (640, 672, 704, 736, 768, 800)
    assert model.encoder.largest == (1333, 1333)
    assert (model.proposals.pre_nms, model.proposals.post_nms) == ((2000, 1000), (1000, 1000))
    sampler = model.region_targets.sampler
    assert (sampler.num, sampler.max_positives, sampler.add_gt_as_proposals) == (512, 128, True)
    assert model.rpn.conv.filters == 256
    assert model.box_head.fc6.kernel.shape == (7 * 7 * 256, 1024)


def test_five_levels_from_p2_to_p6(small):
    image = keras.Input((256, 320, 3))
    outputs = small.compute_output_spec(image)
    assert {name: level.shape[1:] for name, level in outputs["levels"].items()} == {
        "P2": (64, 80, 64),
        "P3": (32, 40, 64),
        "P4": (16, 20, 64),
        "P5": (8, 10, 64),
        "P6": (4, 5, 64),
    }
    counts = [3 * 64 * 80, 3 * 32 * 40, 3 * 16 * 20, 3 * 8 * 10, 3 * 4 * 5]
    assert [level.shape[1:] for level in outputs["objectness"]] == [(n,) for n in counts]
    assert [level.shape[1:] for level in outputs["rpn_deltas"]] == [(n, 4) for n in counts]
    assert [len(level) for level in small.pyramid(256, 320)] == counts
    assert outputs["class_logits"].shape[2:] == (3,) and outputs["box_deltas"].shape[2:] == (2, 4)


def test_a_backbone_whose_finest_map_is_c3(small):
    maps = {name: small.backbone.output[name] for name in ("C3", "C4", "C5")}
    backbone = keras.Model(small.backbone.input, maps)
    anchors = [AnchorGenerator((8 * 2**k,), (1.0,), 2**k) for k in range(3, 7)]
    published = faster_rcnn_fpn(1, backbone).settings["anchors"]
    assert [generator.sizes for generator in published] == [(32,), (64,), (128,), (256,)]
    model = FasterRCNN(backbone, 1, anchors, (64,), 96, channels=8, rpn_channels=8, box_width=16)
    for side, level in ((20, "P3"), (112, "P3"), (300, "P4"), (1000, "P5")):
        assert levels_read(model, [(f"P{k}", 8) for k in range(3, 7)], side) == [level]


@pytest.fixture(scope="module")
def vgg16():
    """The original detector, of two classes, with a file of torchvision's whose numbers are the places of the inputs.

    Not written to a file: it would have half a gigabyte.
    """

    def tensors(path):
        state, inputs = {}, 3
        for name, index in vgg.TORCH_INDEX.items():
            outputs = {"1": 64, "2": 128, "3": 256}.get(name[4], 512)
            state[f"features.{index}.weight"] = np.zeros((outputs, inputs, 3, 3), "float32")
            state[f"features.{index}.bias"] = np.zeros(outputs, "float32")
            inputs = outputs
        for index, inputs in ((0, 25088), (3, 4096)):
            state[f"classifier.{index}.weight"] = np.broadcast_to(np.arange(inputs, dtype="float32"), (4096, inputs))
            state[f"classifier.{index}.bias"] = np.full(4096, index + 1, "float32")
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "read_state_dict", tensors)
        return faster_rcnn_vgg16(2, "vgg16.pth")


def test_the_published_settings_of_the_original(vgg16):
    (generator,) = vgg16.settings["anchors"]
    assert (generator.sizes, generator.aspect_ratios, generator.stride) == ((128, 256, 512), (0.5, 1.0, 2.0), 16)
    assert (vgg16.resizer.short, vgg16.resizer.long, vgg16.augmentation.short_sides) == (600, 1000, (600,))
    assert not vgg16.encoder.crossing
    assert (vgg16.proposals.pre_nms, vgg16.proposals.post_nms) == ((12000, 6000), (2000, 300))
    sampler = vgg16.region_targets.sampler
    assert (sampler.num, sampler.max_positives, sampler.add_gt_as_proposals) == (128, 32, True)
    assert vgg16.rpn.conv.filters == 512
    assert vgg16.box_head.dropout.rate == 0.5
    assert vgg16.box_head.fc6.kernel.shape == (7 * 7 * 512, 4096)
    assert vgg16.box_head.fc7.kernel.shape == (4096, 4096)
    assert vgg16.class_names == ("0", "1")
    assert vgg16.box_head.classes.units == 3


def test_one_map_of_stride_16_with_nine_anchors(vgg16):
    assert [len(level) for level in vgg16.pyramid(600, 1000)] == [9 * 38 * 64]
    outputs = vgg16.compute_output_spec(keras.Input((608, 1024, 3)))
    assert {name: level.shape[1:] for name, level in outputs["levels"].items()} == {"P4": (38, 64, 512)}
    assert [level.shape[1:] for level in outputs["objectness"]] == [(9 * 38 * 64,)]
    assert [level.shape[1:] for level in outputs["rpn_deltas"]] == [(9 * 38 * 64, 4)]
    for side in (20, 500):
        assert levels_read(vgg16, [("P4", 512)], side) == ["P4"]


def test_the_original_begins_with_the_fully_connected_layers_of_vgg16(vgg16):
    """PyTorch flattens a region channel by channel, TensorFlow pixel by pixel."""
    expected = np.arange(25088).reshape(512, 7, 7).transpose(1, 2, 0).ravel()
    np.testing.assert_array_equal(vgg16.box_head.fc6.kernel[:, 0], expected)
    np.testing.assert_array_equal(vgg16.box_head.fc7.kernel[:, -1], np.arange(4096))
    assert (vgg16.box_head.fc6.bias[0], vgg16.box_head.fc7.bias[0]) == (1, 4)


def test_in_training_the_second_stage_waits_for_the_objects(small):
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3)).astype(np.float32)
    weights = small.get_weights()
    with tf.GradientTape() as tape:
        outputs = small(images, training=True)
        boxes, labels = np.float32([[(5, 5, 50, 50)], [(0, 0, 0, 0)]]), np.int32([[1], [-2]])
        drawn = small.region_targets(outputs["proposals"], boxes, labels, np.int64([0, 1]))
        answers = small.second_stage(outputs["levels"], drawn["regions"], training=True)
        total = tf.reduce_sum(answers["class_logits"] ** 2) + tf.reduce_sum(answers["box_deltas"] ** 2)
    small.set_weights(weights)
    assert set(outputs) == {"objectness", "rpn_deltas", "proposals", "sizes", "levels"}
    assert set(small(images)) == {*outputs, "class_logits", "box_deltas"}
    assert answers["class_logits"].shape == (2, 128, 3) and answers["box_deltas"].shape == (2, 128, 2, 4)
    # The first stage does not learn from what the second says.
    assert tape.gradient(total, small.rpn.trainable_variables) == [None] * 6


# --- images of several sizes ---

# Fed as 64 x 96, as 96 x 64 and as 64 x 83 pixels, with the objects at other places.
SEVERAL = [
    (60, 90, [(5, 5, 40, 50), (50, 10, 88, 58)], [0, 1]),
    (90, 60, [(2, 40, 58, 88)], [1]),
    (50, 65, [(40, 20, 64, 49)], [0]),
]
FED_SIZES = [(64, 96), (96, 64), (64, 83)]


def test_targets_in_a_batch_are_those_of_the_image_alone(small, make_dataset):
    dataset, positives = make_dataset(*SEVERAL), 0
    images, together = next(iter(tfdet.validation_batches(dataset, small, 3)))
    assert images.shape == (3, 96, 96, 3)
    for i, (_, alone) in enumerate(tfdet.validation_batches(dataset, small, 1)):
        for name, padding in (("rpn_labels", -2), ("rpn_deltas", 0)):
            for found, expected in zip(together[name], alone[name], strict=True):
                height, width = expected.shape[1:3]
                np.testing.assert_array_equal(found[i, :height, :width], expected[0])
                rest = np.array(found[i])
                rest[:height, :width] = padding
                assert np.all(rest == padding)
        # Neither on the padding to a multiple of 32.
        for labels, generator in zip(together["rpn_labels"], small.settings["anchors"], strict=True):
            y, x, _ = np.nonzero(np.array(labels[i]) != -2)
            assert np.all(y * generator.stride <= FED_SIZES[i][0]) and np.all(x * generator.stride <= FED_SIZES[i][1])
            positives += np.sum(np.array(labels[i]) == 0)
        count = alone["labels"].shape[1]
        np.testing.assert_array_equal(together["boxes"][i], np.pad(alone["boxes"][0], [(0, 2 - count), (0, 0)]))
    assert positives >= 4
    np.testing.assert_array_equal(together["labels"], [(0, 1), (1, -2), (0, -2)])
    np.testing.assert_array_equal(together["seed"], [0, 1, 2])


def test_proposals_and_detections_never_leave_the_image(small, make_dataset):
    """Of a detector that thinks of any box as an object, and shifts all of them."""
    weights = small.get_weights()
    random = np.random.default_rng(0)
    for layer in (small.rpn.delta_conv, small.box_head.deltas):
        layer.bias.assign(random.normal(size=layer.bias.shape))
    examples = make_dataset(*SEVERAL).examples
    fed = next(iter(prediction_batches([example.image for example in examples], small, 3)))
    outputs = small(fed["images"])
    np.testing.assert_array_equal(outputs["sizes"], FED_SIZES)
    in_fed = small.decoder(outputs)["boxes"]
    in_originals = small.detect(**fed)["boxes"]
    small.set_weights(weights)
    for found in (outputs["proposals"], in_fed):
        for boxes, (height, width) in zip(found, FED_SIZES, strict=True):
            assert np.all(np.array(boxes) >= 0)
            furthest = np.max(boxes, axis=0)[2:]
            assert np.all(furthest <= (width, height)) and np.all(furthest > 0.95 * np.array([width, height]))
    for boxes, (height, width, *_) in zip(in_originals, SEVERAL, strict=True):
        np.testing.assert_allclose(np.max(boxes, axis=0)[2:], (width, height), rtol=0.05)


def test_settings_of_ones_own_are_saved(tmp_path):
    keras.utils.set_random_seed(0)
    anchors = [AnchorGenerator((16, 40), (0.5, 1.5), 16, offset=0.5)]
    settings = {
        "short_sides": (48, 64),
        "long_side": 96,
        "channels": None,
        "rpn_channels": 8,
        "box_width": 16,
        "dropout": 0.25,
        "pre_nms": (40, 30),
        "post_nms": (20, 10),
        "regions": 8,
        "crossing": False,
        "fitted": True,
    }
    model = FasterRCNN(backbones.build("resnet_slim"), ("dog",), anchors, **settings, name="mine")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.get_config()
    assert {name: config[name] for name in settings} == settings
    assert config["anchors"] == model.get_config()["anchors"]
    assert loaded.name == "mine" and loaded.class_names == ("dog",)
    assert (loaded.resizer.short, loaded.resizer.long) == (64, 96)
    assert (loaded.augmentation.short_sides, loaded.augmentation.long_side) == ((48, 64), 96)
    assert (*loaded.proposals.pre_nms, *loaded.proposals.post_nms) == (40, 30, 20, 10)
    assert (loaded.region_targets.sampler.num, loaded.box_head.dropout.rate) == (8, 0.25)
    assert loaded.pyramid.fitted and not loaded.encoder.crossing
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    outputs, expected = loaded(image), model(image)
    assert list(outputs["levels"]) == ["P4"] and outputs["proposals"].shape == (1, 10, 4)
    for found, value in zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(found, value)


def test_a_backbone_of_another_kind():
    with pytest.raises(TfdetError, match="resnet18_up: a pyramid needs the map C5"):
        faster_rcnn_fpn(2, "resnet18_up", short_sides=(64,), long_side=96)
