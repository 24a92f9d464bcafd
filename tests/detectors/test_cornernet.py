import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.detectors.cornernet import CornerNetDecoder, CornerNetLoss, CornerNetTargetEncoder, cornernet
from tfdet.errors import TfdetError
from tfdet.resizers import KeepSize, ShortSide

CORNERS = ("top_left", "bottom_right")


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
    return cornernet(("red", "blue"), backbone(), side=64)


# --- targets ---

# boxes in a fed image of 40 pixels a side, which has 10 x 10 cells: box -> cells (row, column) and offsets (x, y)
TARGETS = {
    "a box": ((8, 12, 14, 19), (3, 2), (0, 0), (4, 3), (0.5, 0.75)),
    "the whole image, but for the last pixels": ((0, 0, 40, 40), (0, 0), (0, 0), (9, 9), (0.75, 0.75)),
    "beyond the border": ((-20, 9, 12, 60), (2, 0), (0, 0.25), (9, 3), (0, 0.75)),
    "in one cell": ((20.5, 8.5, 21, 11), (2, 5), (0.125, 0.125), (2, 5), (0.25, 0.75)),
}


def encode(boxes, labels=None, classes=3, side=40, max_objects=4, **options):
    labels = np.zeros(len(boxes)) if labels is None else labels
    encoder = CornerNetTargetEncoder(classes, (side, side), max_objects=max_objects, **options)
    targets = encoder(np.float32(boxes).reshape(-1, 4), np.int64(labels))
    forms = {name: (tuple(target.shape), target.dtype) for name, target in targets.items()}
    cells = -(-side // 4)
    assert forms == {
        f"{corner}_{name}": form
        for corner in CORNERS
        for name, form in {
            "heatmap": ((cells, cells, classes), tf.float32),
            "cells": ((max_objects, 2), tf.int32),
            "offset": ((max_objects, 2), tf.float32),
        }.items()
    }
    return {name: target.numpy() for name, target in targets.items()}


@pytest.mark.parametrize(("box", "first", "first_offset", "second", "second_offset"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(box, first, first_offset, second, second_offset):
    targets = encode([box], [1])
    for corner, cell, offset in zip(CORNERS, (first, second), (first_offset, second_offset), strict=True):
        np.testing.assert_array_equal(targets[f"{corner}_cells"], [cell, (-1, -1), (-1, -1), (-1, -1)])
        np.testing.assert_allclose(targets[f"{corner}_offset"], [offset, (0, 0), (0, 0), (0, 0)], atol=1e-5)
        assert np.argwhere(targets[f"{corner}_heatmap"] == 1).tolist() == [[*cell, 1]]
        assert not targets[f"{corner}_heatmap"][..., [0, 2]].any()


def test_511_pixels_are_128_cells():
    targets = encode([(255.5, 0, 511, 100)], side=511)
    np.testing.assert_array_equal(targets["top_left_cells"][0], (0, 64))
    np.testing.assert_array_equal(targets["bottom_right_cells"][0], (25, 127))
    np.testing.assert_allclose(targets["bottom_right_offset"][0], (510 * 128 / 511 - 127, 12800 / 511 - 25), atol=1e-4)


# what is no object: boxes that the map shows nothing of, and labels that are no class
NOTHING = {
    "no boxes": ([], []),
    "no width": ([(10, 10, 10, 20)], [0]),
    "outside": ([(50, 10, 60, 20), (-9, 10, -2, 20), (10, -30, 20, 0)], [0, 0, 0]),
    "in the last pixels": ([(39, 0, 40, 20)], [0]),
    "inverted": ([(20, 20, 10, 10)], [0]),
    "of no class": ([(8, 12, 14, 18)], [-1]),
}


@pytest.mark.parametrize(("boxes", "labels"), NOTHING.values(), ids=NOTHING)
def test_what_is_no_object_by_hand(boxes, labels):
    targets = encode([*boxes, (8, 8, 16, 16)], [*labels, 1])
    for corner in CORNERS:
        assert (targets[f"{corner}_cells"][: len(boxes)] == -1).all()
        assert not targets[f"{corner}_heatmap"][..., 0].any()
        assert (targets[f"{corner}_heatmap"] == 1).sum() == 1
        assert (targets[f"{corner}_cells"] >= 0).all(axis=1).sum() == 1


# side of an object in cells (rounded up) -> radius: of a square s the least root is 0.2261 s (both corners inwards)
@pytest.mark.parametrize(("side", "radius"), [(1, 0), (4, 0), (4.1, 1), (8, 1), (8.1, 2), (13, 2), (13.1, 3)])
def test_radius_of_the_rounded_up_sides(side, radius):
    targets = encode([(80, 80, 80 + 4 * side, 80 + 4 * side)], side=160, classes=1)
    drawn = np.argwhere(targets["top_left_heatmap"][..., 0] > 0)
    np.testing.assert_array_equal(drawn.min(axis=0), [20 - radius] * 2)
    np.testing.assert_array_equal(drawn.max(axis=0), [20 + radius] * 2)


def test_beyond_the_limit_objects_are_in_the_heatmaps_only():
    targets = encode([(8 * i, 0, 8 * i + 5, 5) for i in range(4)], max_objects=2)
    np.testing.assert_array_equal(targets["top_left_cells"], [(0, 0), (0, 2)])
    assert (targets["bottom_right_heatmap"] == 1).sum() == 4


# --- loss ---


def loss_case():
    """Two images of 2 x 2 cells, one class, with two objects and one. Their top left corners share a cell."""
    first, second = np.zeros((2, 2, 2, 1), np.float32), np.zeros((2, 2, 2, 1), np.float32)
    first[0, 0, 0], first[0, 0, 1], first[1, 0, 0], second[0, 0, 1], second[0, 1, 1], second[1, 1, 1] = (
        1,
        0.5,
        1,
        1,
        1,
        1,
    )
    empty = (-1, -1)
    targets = {
        "top_left_heatmap": first,
        "bottom_right_heatmap": second,
        "top_left_cells": np.int32([[(0, 0), (0, 0), empty], [(0, 0), empty, empty]]),
        "bottom_right_cells": np.int32([[(0, 1), (1, 1), empty], [(1, 1), empty, empty]]),
        "top_left_offset": np.float32([[(0.5, 0.5), (0, 0), (0, 0)], [(0.25, 0), (0, 0), (0, 0)]]),
        "bottom_right_offset": np.zeros((2, 3, 2), np.float32),
    }
    outputs = {f"{corner}_heatmap": 200 * targets[f"{corner}_heatmap"] - 100 for corner in CORNERS}
    for place, probability in {(0, 0, 0): 0.5, (0, 0, 1): 0.2, (1, 1, 0): 0.7}.items():
        outputs["top_left_heatmap"][place] = math.log(probability / (1 - probability))
    tags, offsets = np.zeros((2, 2, 2, 2, 1), np.float32), np.zeros((2, 2, 2, 2, 2), np.float32)
    tags[0, 0, 0, 0], tags[1, 0, 0, 1], tags[1, 0, 1, 1] = 1, 2, 1.5  # means 1.5 and 1.25, so 0.25 apart
    tags[0, 1, 0, 0], tags[1, 1, 1, 1] = 3, 1
    offsets[0, 0, 0, 0], offsets[1, 1, 1, 1] = (0, 0.5), (2.5, 0)
    for i, corner in enumerate(CORNERS):
        outputs |= {f"{corner}_tag": tags[i], f"{corner}_offset": offsets[i]}
    return targets, {name: (value,) for name, value in outputs.items()}


LOSS = {
    # Two cells of the first heatmap are 1, three of the second, which is right.
    "heatmap": -(0.25 * math.log(0.5) + 0.5**4 * 0.04 * math.log(0.8) + 0.49 * math.log(0.3)) / 2,
    "pull": 0.1 * ((2 * 0.5**2 + 2 * 0.25**2) / 2.0001 + 2 * 1 / 1.0001),
    # Pairs of an object with itself are as near as can be; those of two are 0.25 apart.
    "push": 0.1 * ((2 * 1 + 2 * 0.75 - 4 / 2.0001) / 2.0001 + (1 - 1 / 1.0001) / 1e-4),
    "offset": (0.5 * 0.5**2 + 0.5 * 0.5**2 + 0.5 * 0.25**2 + (2.5 - 0.5)) / 3.0001,
}


def test_loss_by_hand():
    parts = CornerNetLoss()(*loss_case())
    assert tuple(parts) == CornerNetLoss.parts == tuple(LOSS)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(LOSS, rel=1e-3)


def test_loss_of_two_stacks_is_their_mean():
    targets, outputs = loss_case()
    other = {name: (values[0] * 0.5,) for name, values in outputs.items()}
    both = {name: (*outputs[name], *other[name]) for name in outputs}
    one, two, mean = (CornerNetLoss()(targets, maps) for maps in (outputs, other, both))
    for name in CornerNetLoss.parts:
        np.testing.assert_allclose(mean[name], (one[name] + two[name]) / 2, rtol=1e-5)


def test_loss_without_objects_is_what_the_negatives_cost():
    targets, outputs = loss_case()
    targets = {
        name: np.full_like(value, -1) if "cells" in name else np.zeros_like(value) for name, value in targets.items()
    }
    negatives = {f"{corner}_heatmap": (np.full((2, 2, 2, 1), -50.0, np.float32),) for corner in CORNERS}
    negatives["top_left_heatmap"][0][0, 0, 0] = 0.0
    parts = CornerNetLoss()(targets, {**outputs, **negatives})
    expected = {"heatmap": 0.25 * math.log(2), "pull": 0, "push": 0, "offset": 0}
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)


# --- decoder ---


def maps(height, width, classes, corners):
    """Raw outputs of one image; corners: {(corner, row, column, class): (probability, tag, offset)}."""
    outputs = {}
    for i, corner in enumerate(CORNERS):
        heatmap = np.random.default_rng(i).normal(-50, 1, (1, height, width, classes)).astype(np.float32)
        tag, offset = np.zeros((1, height, width, 1), np.float32), np.zeros((1, height, width, 2), np.float32)
        outputs |= {f"{corner}_heatmap": heatmap, f"{corner}_tag": tag, f"{corner}_offset": offset}
    for (corner, row, column, label), (probability, *rest) in corners.items():
        outputs[f"{corner}_heatmap"][0, row, column, label] = math.log(probability / (1 - probability))
        outputs[f"{corner}_tag"][0, row, column], outputs[f"{corner}_offset"][0, row, column] = rest
    outputs = {name: (np.full_like(value, 7), value) for name, value in outputs.items()}
    sizes = {"image_sizes": [(4 * height - 2, 4 * width)], "fed_sizes": [(4 * height, 4 * width)]}
    return outputs | {name: np.float32(size) for name, size in sizes.items()}


A, B = CORNERS
# two corners of class 1 -> the box, if they are one. Each is (row, column), tag and offset.
PAIRS = {
    "a box": ((2, 3, 0.0, (0.5, 0.25)), (6, 8, 0.4, (0.25, 0.5)), (14, 9, 33, 26)),
    "beyond the border": ((2, 3, 0.0, (0, 0)), (9, 11, 0.0, (2, 0.9)), (12, 8, 48, 38)),
    "as far apart as may be": ((2, 3, 0.25, (0, 0)), (6, 8, -0.25, (0, 0)), (12, 8, 32, 24)),
    "embeddings too far apart": ((2, 3, 0.25, (0, 0)), (6, 8, -0.26, (0, 0)), None),
    "the second above": ((6, 3, 0.0, (0, 0)), (2, 8, 0.0, (0, 0)), None),
    "the second on the left": ((2, 8, 0.0, (0, 0)), (6, 3, 0.0, (0, 0)), None),
    "in the same cell": ((2, 3, 0.0, (0.1, 0.1)), (2, 3, 0.0, (0.6, 0.35)), (12.4, 8.4, 14.4, 9.4)),
    "of no area": ((2, 3, 0.0, (0, 0)), (2, 8, 0.0, (0, 0)), None),
    "in the padding": ((9, 3, 0.0, (0, 0.6)), (9, 8, 0.0, (0, 0.9)), None),
}


@pytest.mark.parametrize(("first", "second", "box"), PAIRS.values(), ids=PAIRS)
def test_pairs_by_hand(first, second, box):
    """Of the last of two stacks; an image of 38 x 48 pixels, two rows of which are padding."""
    outputs = maps(10, 12, 3, {(A, *first[:2], 1): (0.9, *first[2:]), (B, *second[:2], 1): (0.5, *second[2:])})
    # Peaks of nothing are no better than 1e-20, but with a good corner they would make a pair of half its score.
    found = CornerNetDecoder(corners=1, keep=3)(outputs)
    assert found["num_detections"].numpy().tolist() == [0 if box is None else 1]
    if box is not None:
        np.testing.assert_allclose(found["boxes"], [[box, (0, 0, 0, 0), (0, 0, 0, 0)]], atol=1e-4)
        np.testing.assert_allclose(found["scores"], [[0.7, 0, 0]], rtol=1e-5)
        assert found["labels"].numpy().tolist() == [[1, -1, -1]]


def test_corners_of_two_classes_are_no_box():
    outputs = maps(10, 12, 3, {(A, 2, 3, 1): (0.9, 0.0, (0, 0)), (B, 6, 8, 2): (0.5, 0.0, (0, 0))})
    assert int(CornerNetDecoder(corners=1)(outputs)["num_detections"][0]) == 0


def test_a_corner_may_have_several_boxes_and_soft_nms_lowers_the_worse():
    corners = {(A, 1, 1, 0): (0.9, 0.0, (0, 0)), (B, 5, 5, 0): (0.7, 0.0, (0, 0)), (B, 9, 5, 0): (0.5, 0.0, (0, 0))}
    found = CornerNetDecoder(corners=2, keep=3)(maps(10, 12, 1, corners))
    np.testing.assert_allclose(found["boxes"][0, :2], [(4, 4, 20, 20), (4, 4, 20, 36)], atol=1e-4)  # an IoU of 1/2
    np.testing.assert_allclose(found["scores"][0, :2], [0.8, 0.7 * math.exp(-(0.5**2) / 0.5)], rtol=1e-4)


def test_the_corners_that_boxes_are_made_of(small):
    outputs = maps(10, 12, 2, {(A, 2, 3, 1): (0.9, 0.0, (0.5, 0.25)), (B, 9, 11, 0): (0.5, 0.7, (2, 0.9))})
    peaks = CornerNetDecoder(corners=1).peaks(outputs)
    assert tuple(peaks) == CORNERS
    for corner, point, score, label in zip(CORNERS, [(14, 9), (52, 39.6)], (0.9, 0.5), (1, 0), strict=True):
        np.testing.assert_allclose(peaks[corner]["points"], [[point]], rtol=1e-5)
        np.testing.assert_allclose(peaks[corner]["scores"], [[score]], rtol=1e-5)
        assert peaks[corner]["labels"].numpy().tolist() == [[label]]

    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    found, peaks = (read(images, np.float32([(2, 4, 2, 4)])) for read in (small.detect, small.peaks))
    corners = np.concatenate([np.clip(peaks[corner]["points"][0], 0, (32, 16)) for corner in CORNERS])
    for corner in np.array(found["boxes"][0, :20]).reshape(-1, 2):
        assert np.abs(corners - corner).max(axis=1).min() < 1e-4


def test_a_map_of_fewer_cells_than_corners():
    outputs = maps(2, 2, 1, {(A, 0, 0, 0): (0.9, 0.0, (0, 0)), (B, 1, 1, 0): (0.9, 0.0, (0, 0))})
    found = CornerNetDecoder()(outputs)
    assert found["boxes"].shape == (1, 100, 4)
    np.testing.assert_allclose(found["boxes"][0, 0], (0, 0, 4, 4))
    assert np.isfinite(found["scores"]).all()


def test_what_is_encoded_is_decoded():
    """Objects with embeddings of their own come back where they were."""
    random = np.random.default_rng(0)
    boxes, labels = [], []
    for i in range(4):
        for j in range(4):
            centre, sides = 32 + np.array((i, j)) * 60 + random.uniform(-9, 9, 2), random.uniform(12, 60, 2)
            boxes.append((*(centre - sides / 2), *(centre + sides / 2)))
            labels.append(random.integers(3))
    boxes = np.clip(np.float32(boxes), 0, 254)
    targets = encode(boxes, labels, side=255, max_objects=20)
    outputs = {"image_sizes": np.float32([(255, 255)]), "fed_sizes": np.float32([(255, 255)])}
    for corner in CORNERS:
        rows, columns = targets[f"{corner}_cells"][:16].T
        tag, offset = np.full((64, 64, 1), -9, np.float32), np.zeros((64, 64, 2), np.float32)
        tag[rows, columns, 0], offset[rows, columns] = np.arange(16), targets[f"{corner}_offset"][:16]
        heatmap = targets[f"{corner}_heatmap"]
        logits = np.log(np.maximum(heatmap, 1e-9)) - np.log(np.maximum(1.001 - heatmap, 0))
        outputs |= {
            f"{corner}_heatmap": (logits[None],),
            f"{corner}_tag": (tag[None],),
            f"{corner}_offset": (offset[None],),
        }
    found = CornerNetDecoder()(outputs)
    sure = found["scores"][0].numpy() > 0.99
    assert sure.sum() == 16
    order = np.lexsort(found["boxes"].numpy()[0, sure].T), np.lexsort(boxes.T)
    np.testing.assert_allclose(found["boxes"].numpy()[0, sure][order[0]], boxes[order[1]], atol=1e-3)
    np.testing.assert_array_equal(found["labels"].numpy()[0, sure][order[0]], np.array(labels)[order[1]])


# --- the released code ---

# Two images of 63 x 95 pixels with boxes and labels; one box has no area, some reach beyond the border.
BOXES = [
    [(3, 5, 61, 40), (20, 9.5, 33, 70), (-8, 12, 9, 30.5), (50, 40, 66, 44)],
    [(10, 10, 10, 30), (1, 2, 45, 90), (7.25, 3, 64, 95)],
]
LABELS = [[0, 2, 1, 1], [0, 2, 2]]


def waves(*shape, shift):
    n = np.arange(np.prod(shape), dtype=np.float64) + shift
    return np.sin(n * n * 0.37 + n).reshape(shape)


def released_case():
    encoder = CornerNetTargetEncoder(3, (95, 63), max_objects=4)
    encoded = [encoder(np.float32(boxes), np.int32(labels)) for boxes, labels in zip(BOXES, LABELS, strict=True)]
    targets, maps = {name: tf.stack([one[name] for one in encoded]) for name in encoded[0]}, {}
    for shift, corner in enumerate(CORNERS):
        slow = np.sin(0.0131 * np.arange(2 * 24 * 16 * 3) + shift).reshape(2, 24, 16, 3)
        maps[f"{corner}_heatmap"] = 3 * waves(2, 24, 16, 3, shift=shift) + slow - 3
        maps[f"{corner}_tag"] = 0.8 * waves(2, 24, 16, 1, shift=shift)
        maps[f"{corner}_offset"] = 0.5 + 0.9 * waves(2, 24, 16, 2, shift=shift)
    return targets, {name: tf.Variable(value, dtype=tf.float32) for name, value in maps.items()}


# Printed by princeton-vl/CornerNet for that: targets as in sample/coco.py, AELoss of kp.py (with booleans for bytes),
# _decode of kp_utils.py.
HEATMAP_SUMS = {  # of each image and class
    "top_left": [[3.131504, 2.0, 1.614604], [0, 0, 5.798125]],
    "bottom_right": [[3.218114, 2.0, 1.614604], [0, 0, 11.030795]],
}
LOSSES = {"heatmap": 40.69989, "pull": 0.0908692, "push": 0.1518181, "offset": 1.1196425}  # weighted
SLOPES = {  # norms of the gradients
    "top_left_heatmap": 1.4654683,
    "top_left_tag": 0.1614990,
    "top_left_offset": 0.4184285,
    "bottom_right_heatmap": 1.4496799,
    "bottom_right_tag": 0.0548939,
    "bottom_right_offset": 0.4015969,
}
# Of 20 corners of either kind: how many pairs, the sum of their scores, and the best three: box, score, label
PAIRED = [
    (
        4,
        2.8440,
        [
            (25.19787, 13.09846, 48.61568, 38.36903, 0.71762, 0),
            (25.19787, 13.09846, 52.66676, 77.97437, 0.71521, 0),
            (24.39304, 45.92629, 64.49983, 80.52946, 0.71174, 0),
        ],
    ),
    (
        10,
        7.0281,
        [
            (47.34947, 26.13104, 60.12796, 68.33992, 0.71918, 2),
            (-1.28798, 30.99157, 18.12186, 65.85285, 0.71812, 1),
            (24.97299, 37.00289, 38.06923, 68.87302, 0.71324, 0),
        ],
    ),
]


def test_targets_and_losses_are_those_of_the_released_code():
    targets, maps = released_case()
    for corner, sums in HEATMAP_SUMS.items():
        np.testing.assert_allclose(np.sum(targets[f"{corner}_heatmap"], axis=(1, 2)), sums, rtol=1e-6)
    with tf.GradientTape() as tape:
        parts = CornerNetLoss()(targets, {name: (value,) for name, value in maps.items()})
        total = sum(parts.values())
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(LOSSES, rel=1e-5)
    slopes = tape.gradient(total, maps)
    norms = {name: float(tf.norm(tf.convert_to_tensor(slope))) for name, slope in slopes.items()}
    assert norms == pytest.approx(SLOPES, rel=1e-5)


def test_pairs_are_those_of_the_released_code():
    """Clipped to the image, which it does later."""
    _, maps = released_case()
    sizes = {name: np.float32([(95, 63)] * 2) for name in ("image_sizes", "fed_sizes")}
    found = CornerNetDecoder(corners=20).candidates({name: (value,) for name, value in maps.items()} | sizes)
    for i, (count, total, best) in enumerate(PAIRED):
        assert np.sum(found["scores"][i] > 0) == count
        assert np.sum(found["scores"][i]) == pytest.approx(total, abs=2e-4)
        best = np.array(best)
        np.testing.assert_allclose(found["boxes"][i, :3], np.clip(best[:, :4], 0, (63, 95, 63, 95)), atol=1e-4)
        np.testing.assert_allclose(found["scores"][i, :3], best[:, 4], atol=1e-5)
        np.testing.assert_array_equal(found["labels"][i, :3], best[:, 5])


# --- network ---


def test_each_stack_has_heads_and_the_last_is_read():
    detector = cornernet(2, backbone("stack2", "stack1"), side=31)  # the order of the dict does not count
    image = np.random.default_rng(0).uniform(0, 255, (1, 31, 31, 3)).astype(np.float32)
    outputs = detector(image)
    forms = {"heatmap": 2, "tag": 1, "offset": 2}
    for corner in CORNERS:
        for name, channels in forms.items():
            assert [tuple(value.shape) for value in outputs[f"{corner}_{name}"]] == [(1, 8, 8, channels)] * 2
    np.testing.assert_array_equal(outputs["fed_sizes"], [(31, 31)])
    last = detector.heads[1](detector.backbone(image)["stack2"])
    np.testing.assert_allclose(outputs["bottom_right_tag"][1], last["bottom_right_tag"], atol=1e-5)


def test_heads_start_with_rare_corners(small):
    outputs = small(np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32))
    for corner in CORNERS:
        np.testing.assert_allclose(tf.sigmoid(outputs[f"{corner}_heatmap"][0]), np.full((1, 16, 16, 2), 0.1), atol=0.07)


def test_top_left_corners_look_down_and_to_the_right(small):
    """A change below it changes what a top left corner is like, one above it does not."""
    image = np.zeros((1, 64, 64, 3), np.float32)
    above, below = image.copy(), image.copy()
    above[:, :4, 28:32], below[:, 60:, 28:32] = 255, 255
    one, other, third = (small(pixels) for pixels in (image, above, below))
    for corner, seen, unseen in (("top_left", third, other), ("bottom_right", other, third)):
        name = f"{corner}_tag"
        assert (seen[name][0][0, 5:11, 7] != one[name][0][0, 5:11, 7]).numpy().all()
        np.testing.assert_array_equal(unseen[name][0][0, 5:11, 7], one[name][0][0, 5:11, 7])


def test_padding_is_black(small):
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    image[:, 40:], image[:, :, 52:] = np.nan, np.nan
    outputs, filled = small(image), small(np.nan_to_num(image, nan=0.0))
    np.testing.assert_array_equal(outputs["image_sizes"], [(40, 52)])
    np.testing.assert_array_equal(outputs["top_left_heatmap"][0], filled["top_left_heatmap"][0])


def test_sizes_of_fed_images(small):
    """As the released code: one pixel less than a multiple where the training crops are."""
    image = np.zeros((30, 100, 3), np.uint8)
    assert isinstance(small.resizer, ShortSide)
    assert small.resizer(image).shape == (32, 64, 3)
    assert small.augmentation.of_own_size is False
    keeping = cornernet(2, backbone(), side=63, keep_size=True)
    assert isinstance(keeping.resizer, KeepSize)
    assert keeping.resizer(image).shape == (31, 127, 3)
    assert keeping.resizer(np.zeros((32, 127, 3))).shape == (63, 127, 3)
    assert keeping.augmentation.of_own_size is True
    assert cornernet(2, backbone(), side=63).resizer(image).shape == (31, 63, 3)
    with pytest.raises(TfdetError, match="side 62: this backbone needs a multiple of 32, or one pixel less"):
        cornernet(2, backbone(), side=62)


def test_a_backbone_of_another_kind():
    with pytest.raises(TfdetError, match="resnet_slim: CornerNet needs maps stack1"):
        tfdet.cornernet(2, "resnet_slim", side=64)


def test_validation_batches_of_images_of_several_sizes(make_dataset):
    keeping = cornernet(("red", "blue"), backbone(), side=63, keep_size=True)
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]), (200, 50, [(8, 100, 24, 140)], [1]))
    images, targets = next(iter(tfdet.validation_batches(dataset, keeping, 2)))
    assert images.shape == (2, 223, 127, 3)
    assert targets["top_left_heatmap"].shape == (2, 56, 32, 2)
    assert np.argwhere(targets["bottom_right_heatmap"] == 1).tolist() == [[0, 20, 15, 0], [1, 35, 6, 1]]
    keeping.compile(keras.optimizers.Adam())
    assert np.isfinite(keeping.evaluate(tfdet.validation_batches(dataset, keeping, 2), verbose=0)).all()


# --- a second look ---


def test_with_flip_the_mirror_image_has_the_mirrored_boxes(small):
    """An image that needs no padding, which would lie on one side only."""
    image = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small)
    found, other = (twice.predict(pixels, verbose=0) for pixels in (image, image[:, :, ::-1]))
    np.testing.assert_allclose(found["scores"], other["scores"], rtol=1e-4)
    x1, y1, x2, y2 = np.moveaxis(other["boxes"][0, :20], -1, 0)
    np.testing.assert_allclose(found["boxes"][0, :20], np.stack([64 - x2, y1, 64 - x1, y2], axis=-1), atol=1e-3)
    assert (found["scores"] != small.predict(image, verbose=0)["scores"]).any()


def test_boxes_of_the_mirror_image_are_turned_around_in_the_fed_image():
    """And then cut: here it has padding at the left."""
    outputs = maps(10, 12, 1, {(A, 2, 3, 0): (0.9, 0.0, (0, 0)), (B, 6, 8, 0): (0.5, 0.0, (0, 0))})
    outputs |= {"image_sizes": np.float32([(40, 30)])}
    found = CornerNetDecoder(corners=1).candidates(outputs, mirrored=True)
    np.testing.assert_allclose(found["boxes"], [[(16, 8, 30, 24)]], atol=1e-4)


def test_scales_are_looked_at_and_merged(small, monkeypatch):
    """Each scale finds one box, in its own pixels: the image at half the size has boxes of half the size."""
    several = tfdet.with_flip_and_scales(small, flip=False, scales=(0.5, 1, 2))
    found = {32: ((5, 5, 10, 10), 0.9), 64: ((10, 10, 20, 20), 0.8), 128: ((80, 80, 100, 100), 0.7)}

    def candidates(outputs):
        box, score = found[int(outputs["fed_sizes"][0, 1])]
        boxes, scores = tf.constant([[box, (0, 0, 9, 9)]], tf.float32), tf.constant([[score, 0.0]])
        return {"boxes": boxes, "scores": scores, "labels": tf.constant([[1, 0]])}

    monkeypatch.setattr(several.decoder, "candidates", candidates)
    detections = several.detect(np.zeros((1, 64, 64, 3), np.float32), np.float32([(2, 2, 2, 2)]))
    assert int(detections["num_detections"][0]) == 3
    scores = [0.9, 0.7, 0.8 * math.exp(-1 / 0.5)]  # the last is the first once more
    np.testing.assert_allclose(detections["scores"][0, :3], scores, rtol=1e-5)
    boxes = [(5, 5, 10, 10), (20, 20, 25, 25), (5, 5, 10, 10)]
    np.testing.assert_allclose(detections["boxes"][0, :3], boxes, rtol=1e-5)
    assert detections["labels"].numpy()[0, :4].tolist() == [1, 1, 1, -1]
