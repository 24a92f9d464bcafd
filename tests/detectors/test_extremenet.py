import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.detectors.extremenet import ExtremeNetDecoder, ExtremeNetLoss, ExtremeNetTargetEncoder, extremenet
from tfdet.errors import TfdetError

POINTS = ("top", "left", "bottom", "right")
KINDS = (*POINTS, "centre")


def backbone(*stacks):
    """A network of one convolution for each stack; of stride 4."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128, -1.0)(image)
    maps = {name: keras.layers.Conv2D(8, 4, 4, padding="same", activation="relu")(x) for name in stacks or ("stack1",)}
    return keras.Model(image, maps, name="one_convolution")


@pytest.fixture(scope="module")
def small():
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return extremenet(("red", "blue"), backbone(), side=64)


def extreme(box, top=0.5, left=0.5, bottom=0.5, right=0.5):
    """Points on the sides of a box, at these fractions of them; all visible."""
    x1, y1, x2, y2 = box
    xs, ys = x1 + np.array([top, bottom]) * (x2 - x1), y1 + np.array([left, right]) * (y2 - y1)
    return [(xs[0], y1, 2), (x1, ys[0], 2), (xs[1], y2, 2), (x2, ys[1], 2)]


# --- targets ---


def encode(boxes, points, labels=None, classes=3, side=40, max_objects=4):
    labels = np.zeros(len(boxes)) if labels is None else labels
    encoder = ExtremeNetTargetEncoder(classes, (side, side), max_objects=max_objects)
    points = np.float32(points).reshape(-1, 4, 3)
    targets = encoder(np.float32(boxes).reshape(-1, 4), np.int64(labels), points)
    cells = -(-side // 4)
    expected = {f"{kind}_heatmap": ((cells, cells, classes), tf.float32) for kind in KINDS}
    expected |= {f"{point}_cells": ((max_objects, 2), tf.int32) for point in POINTS}
    expected |= {f"{point}_offset": ((max_objects, 2), tf.float32) for point in POINTS}
    assert {name: (tuple(target.shape), target.dtype) for name, target in targets.items()} == expected
    return {name: target.numpy() for name, target in targets.items()}


# In a fed image of 40 pixels a side, which has 10 x 10 cells. A box, its points -> of each point its cell (row, column)
# and where in it the point lies (x, y); the cell of the centre.
TARGETS = {
    "an object": (
        (8, 12, 24, 19),
        [(14, 12), (8, 18), (9, 19), (24, 13)],
        [(3, 3), (4, 2), (4, 2), (3, 6)],
        [(0.5, 0), (0, 0.5), (0.25, 0.75), (0, 0.25)],
        (3, 4),
    ),
    "beyond the border": (
        (-20, 9, 12, 60),
        [(2, 9), (-20, 30), (8, 60), (12, 50)],
        [(2, 0), (7, 0), (9, 2), (9, 3)],
        [(0.5, 0.25), (0, 0.5), (0, 0.75), (0, 0.75)],
        (5, 1),
    ),
    "points that are not on its box": (
        (8, 12, 24, 20),
        [(14, 14), (10, 18), (9, 18), (22, 13)],
        [(3, 3), (4, 2), (4, 2), (3, 5)],
        [(0.5, 0.5), (0.5, 0.5), (0.25, 0.5), (0.5, 0.25)],
        (3, 3),
    ),
}


@pytest.mark.parametrize(("box", "points", "cells", "offsets", "centre"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(box, points, cells, offsets, centre):
    targets = encode([box], [(*point, 1) for point in points], [1])
    for name, cell, offset in zip(POINTS, cells, offsets, strict=True):
        np.testing.assert_array_equal(targets[f"{name}_cells"], [cell, (-1, -1), (-1, -1), (-1, -1)])
        np.testing.assert_allclose(targets[f"{name}_offset"][0], offset, atol=1e-5)
    for name, cell in zip(KINDS, (*cells, centre), strict=True):
        assert np.argwhere(targets[f"{name}_heatmap"] == 1).tolist() == [[*cell, 1]]
        assert not targets[f"{name}_heatmap"][..., [0, 2]].any()


BOX = (8, 8, 16, 16)
HIDDEN = [*extreme(BOX)[:3], (16, 12, 0)]
# what is no object: box, points, label
NOTHING = {
    "no width": ((10, 10, 10, 20), extreme((10, 10, 10, 20)), 0),
    "outside": ((50, 10, 60, 20), extreme((50, 10, 60, 20)), 0),
    "inverted": ((20, 20, 10, 10), extreme((20, 20, 10, 10)), 0),
    "of no class": (BOX, extreme(BOX), -1),
    "a point is not known": (BOX, HIDDEN, 0),
}


@pytest.mark.parametrize(("box", "points", "label"), NOTHING.values(), ids=NOTHING)
def test_what_is_no_object_by_hand(box, points, label):
    targets = encode([box, BOX], [points, extreme(BOX)], [label, 1])
    for name in KINDS:
        assert not targets[f"{name}_heatmap"][..., 0].any()
        assert (targets[f"{name}_heatmap"] == 1).sum() == 1
    for name in POINTS:
        assert (targets[f"{name}_cells"][0] == -1).all()
        assert (targets[f"{name}_cells"] >= 0).all(axis=1).sum() == 1


def test_the_centre_is_where_detection_looks_for_it():
    """Half way between cells 3 and 6 across and 2 and 5 down, rounded down; the point half way, (5.4, 4.4), is not."""
    box = (12 + 3.6, 8 + 3.6, 24 + 3.6, 20 + 3.6)
    assert np.argwhere(encode([box], [extreme(box)])["centre_heatmap"] == 1).tolist() == [[3, 4, 0]]


def test_an_image_without_objects():
    targets = encode([], [])
    assert not any(targets[f"{name}_heatmap"].any() for name in KINDS)


def test_511_pixels_are_128_cells():
    box = (255.5, 0, 511, 100)
    targets = encode([box], [extreme(box)], side=511)
    np.testing.assert_array_equal(targets["left_cells"][0], (12, 64))
    np.testing.assert_array_equal(targets["right_cells"][0], (12, 127))
    assert targets["centre_heatmap"][12, 95, 0] == 1  # between 64 and 510 * 128 / 511
    np.testing.assert_allclose(targets["right_offset"][0], (510 * 128 / 511 - 127, 50 * 128 / 511 - 12), atol=1e-4)


# side of an object in cells -> radius as ExtremeNet's code has it: 0.2732 s (see heatmaps.gaussian_radius)
@pytest.mark.parametrize(("side", "radius"), [(3, 0), (3.1, 1), (7, 1), (7.1, 2), (10, 2), (10.1, 3)])
def test_radius_of_the_rounded_up_sides(side, radius):
    box = (80, 80, 80 + 4 * side, 80 + 4 * side)
    targets = encode([box], [extreme(box, top=0)], side=200, classes=1)
    drawn = np.argwhere(targets["top_heatmap"][..., 0] > 0)
    np.testing.assert_array_equal([drawn.min(axis=0), drawn.max(axis=0)], [[20 - radius] * 2, [20 + radius] * 2])


def test_beyond_the_limit_objects_are_in_the_heatmaps_only():
    boxes = [(8 * i, 0, 8 * i + 5, 5) for i in range(4)]
    targets = encode(boxes, [extreme(box) for box in boxes], max_objects=2)
    assert targets["left_cells"].tolist() == [[0, 0], [0, 2]]
    assert [(targets[f"{name}_heatmap"] == 1).sum() for name in KINDS] == [4] * 5


# --- loss ---


def test_loss_by_hand():
    """A map of two cells, one object with a point in the first one, one class."""
    targets, outputs = {}, {}
    for name in KINDS:
        targets[f"{name}_heatmap"] = np.float32([[[[1], [0.5]]]])
        outputs[f"{name}_heatmap"] = (np.float32([[[[50], [-50]]]]),)
    for name in POINTS:
        targets |= {f"{name}_cells": np.int32([[(0, 0), (-1, -1)]]), f"{name}_offset": np.float32([[(0.5, 0), (0, 0)]])}
        outputs[f"{name}_offset"] = (np.float32([[[(0.5, 0), (9, 9)]]]),)
    zero = ExtremeNetLoss()(targets, outputs)
    assert {name: float(part) for name, part in zero.items()} == pytest.approx({"heatmap": 0, "offset": 0}, abs=1e-6)
    outputs["centre_heatmap"] = (np.float32([[[[0], [0]]]]),)
    outputs["right_offset"] = (np.float32([[[(0, 2.5), (9, 9)]]]),)
    expected = {"heatmap": 0.25 * math.log(2) * (1 + 0.5**4), "offset": 0.5 * 0.5**2 + 2.5 - 0.5}
    parts = ExtremeNetLoss()(targets, outputs)
    assert tuple(parts) == ExtremeNetLoss.parts
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-3)
    two = {name: (zeros[0], outputs[name][0]) for name, zeros in outputs.items()}
    assert float(ExtremeNetLoss()(targets, two)["offset"]) == pytest.approx(expected["offset"], rel=1e-3)


# --- decoder ---


def test_what_is_encoded_is_decoded():
    """Objects of any form come back where they were, with their extreme points."""
    random = np.random.default_rng(0)
    boxes, points, labels = [], [], []
    for i in range(3):
        for j in range(3):
            centre, sides = 45 + np.array((i, j)) * 80 + random.uniform(-9, 9, 2), random.uniform(24, 70, 2)
            boxes.append((*(centre - sides / 2), *(centre + sides / 2)))
            points.append(extreme(boxes[-1], *random.uniform(0.2, 0.8, 4)))
            labels.append(len(labels) % 9)  # points of one class on a grid fit in other ways, too
    targets = encode(boxes, points, labels, classes=9, side=255, max_objects=20)
    outputs = {"image_sizes": np.float32([(255, 255)]), "fed_sizes": np.float32([(255, 255)])}
    for name in KINDS:
        heatmap = targets[f"{name}_heatmap"]
        logits = np.log(np.maximum(heatmap, 1e-9)) - np.log(np.maximum(1.001 - heatmap, 0))
        outputs[f"{name}_heatmap"] = (logits[None],)
    for name in POINTS:
        rows, columns = targets[f"{name}_cells"][:9].T
        offset = np.zeros((1, 64, 64, 2), np.float32)
        offset[0, rows, columns] = targets[f"{name}_offset"][:9]
        outputs[f"{name}_offset"] = (offset,)
    found = {name: values.numpy()[0] for name, values in ExtremeNetDecoder()(outputs).items()}
    assert found["num_detections"] == 9
    order = np.argsort(found["labels"][:9])
    np.testing.assert_array_equal(found["labels"][:9][order], labels)
    np.testing.assert_allclose(found["boxes"][:9][order], boxes, atol=1e-3)
    np.testing.assert_allclose(found["keypoints"][:9][order], np.array(points)[..., :2], atol=1e-3)
    assert (found["scores"][:9] > 0.99).all()
    assert (found["keypoint_scores"][:9] > 0.99).all()
    assert (found["keypoint_scores"] <= 1).all()


def test_boxes_end_at_the_border_and_the_mirror_image_is_turned_around():
    """An image of 38 x 46 pixels in one of 40 x 48."""
    outputs = {"image_sizes": np.float32([(38, 46)]), "fed_sizes": np.float32([(40, 48)])}
    cells = {"top": (1, 4), "left": (5, 2), "bottom": (9, 6), "right": (4, 11), "centre": (5, 6)}
    for name, cell in cells.items():
        heatmap = np.full((1, 10, 12, 1), -50, np.float32)
        heatmap[(0, *cell, 0)] = 2.0
        outputs[f"{name}_heatmap"] = (heatmap,)
        if name != "centre":
            outputs[f"{name}_offset"] = (np.full((1, 10, 12, 2), 0.75, np.float32),)
    score = 1 / (1 + math.exp(-2))
    decoder = ExtremeNetDecoder(points=2, keep=2)
    found = decoder(outputs)
    np.testing.assert_allclose(found["boxes"], [[(11, 7, 46, 38), (0, 0, 0, 0)]])
    np.testing.assert_allclose(found["keypoints"][0, 0], [(19, 7), (11, 23), (27, 38), (46, 19)])
    np.testing.assert_allclose(found["keypoint_scores"][0], [[score] * 4, [0] * 4], rtol=1e-6)
    np.testing.assert_allclose(found["scores"], [[score, 0]], rtol=1e-6)
    mirrored = decoder.best([decoder.candidates(outputs, mirrored=True)])
    np.testing.assert_allclose(mirrored["boxes"][0, 0], (1, 7, 37, 38))
    np.testing.assert_allclose(mirrored["keypoints"][0, 0], [(29, 7), (1, 19), (21, 38), (37, 23)])


def test_a_map_of_fewer_cells_than_points():
    outputs = {f"{name}_heatmap": (np.full((2, 2, 2, 1), -1, np.float32),) for name in KINDS}
    outputs |= {f"{name}_offset": (np.full((2, 2, 2, 2), 0.5, np.float32),) for name in POINTS}
    found = ExtremeNetDecoder()(outputs | dict.fromkeys(("image_sizes", "fed_sizes"), np.float32([(8, 8)] * 2)))
    assert found["keypoints"].shape == (2, 100, 4, 2)
    assert np.isfinite(found["scores"]).all()
    np.testing.assert_allclose(found["boxes"][0, 0], (2, 2, 6, 6))  # the only one of an area


# --- the released code ---

# Two images of 63 x 95 pixels with boxes and labels; one box has no area, some reach beyond the border. They are such
# that the released code puts the centres where we do.
BOXES = [
    [(3, 5, 59, 40), (20, 12, 33, 70), (-8, 12, 9, 30.5), (46, 40, 66, 44)],
    [(10, 10, 10, 30), (1, 2, 45, 90), (7.25, 4, 64, 95)],
]
LABELS = [[0, 2, 1, 1], [0, 2, 2]]


def waves(*shape, shift):
    n = np.arange(np.prod(shape), dtype=np.float64) + shift
    return np.sin(n * n * 0.37 + n).reshape(shape)


def released_case():
    encoder, encoded, maps = ExtremeNetTargetEncoder(3, (95, 63), max_objects=4), [], {}
    for boxes, labels in zip(BOXES, LABELS, strict=True):
        points = np.float32([extreme(box, 0.3, 0.6, 0.8, 0.45) for box in boxes])
        encoded.append(encoder(np.float32(boxes), np.int32(labels), points))
    for shift, name in enumerate(KINDS):
        slow = np.sin(0.0131 * np.arange(2 * 24 * 16 * 3) + shift).reshape(2, 24, 16, 3)
        maps[f"{name}_heatmap"] = 2 * waves(2, 24, 16, 3, shift=shift) + slow - 2
        if name != "centre":
            maps[f"{name}_offset"] = 0.5 + 0.9 * waves(2, 24, 16, 2, shift=shift)
    targets = {name: tf.stack([one[name] for one in encoded]) for name in encoded[0]}
    return targets, {name: tf.Variable(value, dtype=tf.float32) for name, value in maps.items()}


# Printed by xingyizhou/ExtremeNet for that: targets of sample/coco_extreme.py, CTLoss of exkp.py, _exct_decode of
# kp_utils.py with 20 points of each kind.
HEATMAP_SUMS = {  # of each image and class
    "top": [[7.739694, 2.442637, 1.614604], [0, 0, 17.678589]],
    "left": [[5.718370, 2.442637, 1.614604], [0, 0, 13.833742]],
    "bottom": [[8.518152, 2.614604, 1.614604], [0, 0, 18.639725]],
    "right": [[7.739694, 2.614604, 1.614604], [0, 0, 20.634829]],
    "centre": [[8.518152, 2.614604, 1.614604], [0, 0, 24.052866]],
}
LOSSES = {"heatmap": 122.397095, "offset": 1.5789315}
SLOPES = {  # norms of the gradients
    "top_heatmap": 1.6281356,
    "top_offset": 0.3515548,
    "left_heatmap": 1.5845463,
    "left_offset": 0.3621410,
    "bottom_heatmap": 1.5474980,
    "bottom_offset": 0.2792220,
    "right_heatmap": 1.5858976,
    "right_offset": 0.3877068,
    "centre_heatmap": 1.6790379,
}
# Of each image: how many groups, the sums of their scores, of their boxes and of their points, cut at its border; how
# many of each class
GROUPS = [
    (
        29,
        18.540131,
        (223.73, 335.255, 1239.411, 2058.375),
        [(752.329, 335.255), (223.73, 851.342), (856.204, 2058.375), (1239.411, 1250.481)],
        [15, 8, 6],
    ),
    (
        5,
        3.1588766,
        (71.989, 95.281, 288.22, 388.796),
        [(166.278, 95.281), (71.989, 224.184), (178.411, 388.796), (288.22, 216.388)],
        [0, 2, 3],
    ),
]


def test_targets_and_losses_are_those_of_the_released_code():
    targets, maps = released_case()
    for name, sums in HEATMAP_SUMS.items():
        np.testing.assert_allclose(np.sum(targets[f"{name}_heatmap"], axis=(1, 2)), sums, rtol=1e-6)
    with tf.GradientTape() as tape:
        parts = ExtremeNetLoss()(targets, {name: (value,) for name, value in maps.items()})
        total = sum(parts.values())
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(LOSSES, rel=1e-5)
    slopes = tape.gradient(total, maps)
    norms = {name: float(tf.norm(tf.convert_to_tensor(slope))) for name, slope in slopes.items()}
    assert norms == pytest.approx(SLOPES, rel=1e-5)


def test_groups_are_those_of_the_released_code():
    _, maps = released_case()
    sizes = {name: np.float32([(96, 64)] * 2) for name in ("image_sizes", "fed_sizes")}
    found = ExtremeNetDecoder(points=20).candidates({name: (value,) for name, value in maps.items()} | sizes)
    for i, (count, scores, boxes, points, labels) in enumerate(GROUPS):
        real = found["scores"][i].numpy() > 0
        assert np.count_nonzero(real) == count
        assert np.sum(found["scores"][i]) == pytest.approx(scores, rel=1e-5)
        np.testing.assert_allclose(found["boxes"].numpy()[i, real].sum(axis=0), boxes, atol=2e-3)
        np.testing.assert_allclose(found["keypoints"].numpy()[i, real].sum(axis=0), points, atol=2e-3)
        np.testing.assert_array_equal(np.bincount(found["labels"].numpy()[i, real], minlength=3), labels)


# --- network ---


def test_each_stack_has_heads_and_the_last_is_read():
    detector = extremenet(2, backbone("stack2", "stack1"), side=31)  # the order of the dict does not count
    image = np.random.default_rng(0).uniform(0, 255, (1, 31, 31, 3)).astype(np.float32)
    outputs = detector(image)
    for name in KINDS:
        assert [tuple(value.shape) for value in outputs[f"{name}_heatmap"]] == [(1, 8, 8, 2)] * 2
        np.testing.assert_allclose(tf.sigmoid(outputs[f"{name}_heatmap"][0]), np.full((1, 8, 8, 2), 0.1), atol=0.07)
    for name in POINTS:
        assert [tuple(value.shape) for value in outputs[f"{name}_offset"]] == [(1, 8, 8, 2)] * 2
    last = detector.heads[1](detector.backbone(image)["stack2"])
    np.testing.assert_allclose(outputs["left_offset"][1], last["left_offset"], atol=1e-5)


def test_a_backbone_of_another_kind():
    with pytest.raises(TfdetError, match="resnet_slim: ExtremeNet needs maps stack1"):
        extremenet(2, "resnet_slim", side=64)


def test_batches_have_extreme_points():
    dataset = tfdet.load_dataset("shapes", "val")
    detector = extremenet(dataset.class_names, backbone(), side=63, keep_size=True)
    images, targets = next(iter(tfdet.training_batches(dataset, detector, 2)))
    assert images.shape == (2, 63, 63, 3)
    assert targets["top_heatmap"].shape == (2, 16, 16, dataset.num_classes)
    detector.compile(keras.optimizers.Adam())
    losses = detector.evaluate(tfdet.validation_batches(dataset, detector, 2).take(1), verbose=0)
    assert np.isfinite(losses).all()


def test_with_flip_the_mirror_image_has_the_mirrored_points(small):
    """An image that needs no padding, which would lie on one side only."""
    image = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small)
    twice.decoder = ExtremeNetDecoder(point_threshold=0.0, centre_threshold=0.0, score_threshold=0.1)
    found, other = (twice.predict(pixels, verbose=0) for pixels in (image, image[:, :, ::-1]))
    count = int(found["num_detections"][0])
    assert count == other["num_detections"][0] > 10
    np.testing.assert_allclose(found["scores"], other["scores"], rtol=1e-4)
    points = found["keypoints"][0, :count]
    mirrored = other["keypoints"][0, :count][:, [0, 3, 2, 1]] * (-1, 1) + (64, 0)
    np.testing.assert_allclose(points[:5], mirrored[:5], atol=1e-3)
