import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.data.images import load_image
from tfdet.detectors.centernet import (
    CenterNet,
    CenterNetDecoder,
    CenterNetHead,
    CenterNetLoss,
    CenterNetTargetEncoder,
    centernet,
)
from tfdet.errors import TfdetError
from tfdet.resizers import KeepSize, ShortSide


def backbone(*stacks):
    """A network of one convolution for each stack; of stride 4."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128, -1.0)(image)
    maps = {name: keras.layers.Conv2D(8, 4, 4, activation="relu")(x) for name in stacks or ("stack1",)}
    return keras.Model(image, maps, name="one_convolution")


@pytest.fixture(scope="module")
def small():
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return centernet(("red", "blue"), backbone(), side=64)


# --- targets ---

# boxes in a fed image of 40 pixels a side, which has 10 x 10 cells: box -> row and column, width and height, offset
TARGETS = {
    "a cell and a half": ((8, 12, 14, 18), (3, 2), (1.5, 1.5), (0.75, 0.75)),
    "the whole image, but for the last cells": ((0, 0, 40, 40), (4, 4), (9, 9), (0.5, 0.5)),
    "beyond the border": ((-20, 8, 12, 60), (5, 1), (3, 7), (0.5, 0.5)),
    "smaller than a pixel": ((20.2, 8.2, 20.4, 8.4), (2, 5), (0.05, 0.05), (0.075, 0.075)),
    "wide": ((0, 20, 32, 22), (5, 4), (8, 0.5), (0, 0.25)),
}


def encode(boxes, labels=None, classes=3, side=40, max_objects=4, **options):
    labels = np.zeros(len(boxes)) if labels is None else labels
    encoder = CenterNetTargetEncoder(classes, (side, side), max_objects=max_objects, **options)
    targets = encoder(np.float32(boxes).reshape(-1, 4), np.int64(labels))
    forms = {name: (target.shape, target.dtype) for name, target in targets.items()}
    assert forms == {
        "heatmap": ((side // 4, side // 4, classes), tf.float32),
        "cells": ((max_objects, 2), tf.int32),
        "size": ((max_objects, 2), tf.float32),
        "offset": ((max_objects, 2), tf.float32),
    }
    return {name: target.numpy() for name, target in targets.items()}


@pytest.mark.parametrize(("box", "cell", "size", "offset"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(box, cell, size, offset):
    targets = encode([box], [1])
    np.testing.assert_array_equal(targets["cells"], [cell, (-1, -1), (-1, -1), (-1, -1)])
    np.testing.assert_allclose(targets["size"], [size, (0, 0), (0, 0), (0, 0)], atol=1e-5)
    np.testing.assert_allclose(targets["offset"], [offset, (0, 0), (0, 0), (0, 0)], atol=1e-5)
    assert np.argwhere(targets["heatmap"] == 1).tolist() == [[*cell, 1]]
    assert not targets["heatmap"][..., [0, 2]].any()


# what is no object: boxes that the map shows nothing of
NOTHING = {
    "no boxes": [],
    "no width": [(10, 10, 10, 20)],
    "no height": [(10, 10, 20, 10)],
    "outside": [(50, 10, 60, 20), (-9, 10, -2, 20), (10, -30, 20, 0)],
    "in the last cells": [(37, 0, 40, 20)],
    "inverted": [(20, 20, 10, 10)],
}


@pytest.mark.parametrize("boxes", NOTHING.values(), ids=NOTHING)
def test_what_is_no_object_by_hand(boxes):
    targets = encode(boxes)
    assert (targets["cells"] == -1).all()
    assert not targets["heatmap"].any()


def test_what_is_no_object_keeps_its_row_empty():
    targets = encode([(8, 12, 14, 18), (10, 10, 10, 20), (0, 0, 4, 4)], [0, 1, 2])
    np.testing.assert_array_equal(targets["cells"], [(3, 2), (-1, -1), (0, 0), (-1, -1)])
    assert not targets["heatmap"][..., 1].any()


def test_labels_that_are_no_class_are_no_objects():
    targets = encode([(8, 12, 14, 18), (0, 0, 20, 20)], [-1, 2])
    np.testing.assert_array_equal(targets["cells"], [(-1, -1), (2, 2), (-1, -1), (-1, -1)])
    assert (targets["heatmap"] == 1).sum() == 1


# sides of an object in cells (rounded up) -> radius: int(0.2733 * side) of a square
@pytest.mark.parametrize(("side", "radius"), [(1, 0), (3.6, 1), (3.7, 1), (7, 1), (7.1, 2), (10.9, 3), (18.2, 5)])
def test_radius_of_the_rounded_up_sides(side, radius):
    corner = 40 - 2 * side
    targets = encode([(corner, corner, corner + 4 * side, corner + 4 * side)], side=160, classes=1)
    drawn = np.argwhere(targets["heatmap"][..., 0] > 0)
    np.testing.assert_array_equal(drawn.min(axis=0), [10 - radius] * 2)
    np.testing.assert_array_equal(drawn.max(axis=0), [10 + radius] * 2)


def test_objects_in_one_cell_keep_rows_of_their_own():
    """Of one class they are one point of the heatmap."""
    targets = encode([(0, 0, 8, 8), (0, 0, 9, 9), (2, 0, 4, 8)], [0, 0, 1])
    np.testing.assert_array_equal(targets["cells"], [(1, 1), (1, 1), (1, 0), (-1, -1)])
    np.testing.assert_allclose(targets["size"][:3], [(2, 2), (2.25, 2.25), (0.5, 2)])
    assert (targets["heatmap"] == 1).sum() == 2


def test_beyond_the_limit_objects_are_in_the_heatmap_only():
    boxes = [(8 * i, 0, 8 * i + 4, 4) for i in range(4)]
    targets = encode(boxes, max_objects=2)
    np.testing.assert_array_equal(targets["cells"], [(0, 0), (0, 2)])
    assert (targets["heatmap"] == 1).sum() == 4


def test_the_size_of_the_image_may_be_given():
    encoder = CenterNetTargetEncoder(2, (64, 64))
    boxes, labels = np.float32([(0, 0, 100, 100)]), np.int32([1])
    assert encoder(boxes, labels, (32, 96))["heatmap"].shape == (8, 24, 2)
    targets = encoder(boxes, labels, (32, 96))
    np.testing.assert_array_equal(targets["cells"][0], (3, 11))  # of 7 x 23 cells
    np.testing.assert_array_equal(targets["size"][0], (23, 7))


# --- loss ---


def loss_case():
    """Two images of 2 x 2 cells, one class, with two objects and one, of which two share a cell."""
    heatmap = np.zeros((2, 2, 2, 1), np.float32)
    heatmap[0, 0, 1], heatmap[0, 0, 0], heatmap[1, 1, 0] = 1, 0.5, 1
    targets = {
        "heatmap": heatmap,
        "cells": np.int32([[(0, 1), (0, 1), (-1, -1)], [(1, 0), (-1, -1), (-1, -1)]]),
        "size": np.float32([[(3, 4), (1, 1), (0, 0)], [(2, 2), (0, 0), (0, 0)]]),
        "offset": np.float32([[(0.5, 0.5), (0, 0), (0, 0)], [(0.25, 0), (0, 0), (0, 0)]]),
    }
    logits = np.full((2, 2, 2, 1), -50, np.float32)  # of a negative that costs nothing
    for place, probability in {(0, 0, 1): 0.5, (0, 0, 0): 0.2, (1, 1, 0): 0.9, (1, 1, 1): 0.7}.items():
        logits[place] = math.log(probability / (1 - probability))
    size, offset = (np.full((2, 2, 2, 2), 100, np.float32) for _ in range(2))
    size[0, 0, 1], size[1, 1, 0] = (2, 6), (2, 1)
    offset[0, 0, 1], offset[1, 1, 0] = (0, 1), (0.5, 0)
    return targets, {"heatmap": (logits,), "size": (size,), "offset": (offset,)}


HEATMAP_LOSS = -(0.25 * math.log(0.5) + 0.5**4 * 0.04 * math.log(0.8) + 0.01 * math.log(0.9) + 0.49 * math.log(0.3)) / 2
SIZE_LOSS = (1 + 2 + 1 + 5 + 0 + 1) / 6.0001  # three objects, two coordinates
OFFSET_LOSS = (0.5 + 0.5 + 0 + 1 + 0.25 + 0) / 6.0001


def test_loss_by_hand():
    parts = CenterNetLoss()(*loss_case())
    assert tuple(parts) == CenterNetLoss.parts == ("heatmap", "size", "offset")
    np.testing.assert_allclose(parts["heatmap"], HEATMAP_LOSS, rtol=1e-5)
    np.testing.assert_allclose(parts["size"], 0.1 * SIZE_LOSS, rtol=1e-5)
    np.testing.assert_allclose(parts["offset"], OFFSET_LOSS, rtol=1e-5)


def test_loss_of_two_stacks_is_their_mean():
    targets, outputs = loss_case()
    right = {
        "heatmap": 200 * (targets["heatmap"] == 1) - 100.0,
        "size": outputs["size"][0],
        "offset": outputs["offset"][0],
    }
    parts = CenterNetLoss()(targets, {name: (outputs[name][0], np.float32(right[name])) for name in outputs})
    np.testing.assert_allclose(parts["heatmap"], HEATMAP_LOSS / 2, rtol=1e-5)
    np.testing.assert_allclose(parts["size"], 0.1 * SIZE_LOSS, rtol=1e-5)
    np.testing.assert_allclose(parts["offset"], OFFSET_LOSS, rtol=1e-5)


def test_loss_without_objects_is_what_the_negatives_cost():
    targets, outputs = loss_case()
    targets = {"heatmap": np.zeros_like(targets["heatmap"]), "cells": np.full((2, 3, 2), -1, np.int32)}
    targets |= {name: np.zeros((2, 3, 2), np.float32) for name in ("size", "offset")}
    parts = CenterNetLoss()(targets, outputs)
    expected = -sum(p**2 * math.log(1 - p) for p in (0.5, 0.2, 0.9, 0.7))
    assert {name: float(part) for name, part in parts.items()} == {
        "heatmap": pytest.approx(expected, rel=1e-5),
        "size": 0,
        "offset": 0,
    }


# --- decoder ---


def maps(height, width, classes, peaks):
    """Raw outputs of one image; peaks: {(row, column, class): (probability, size, offset)}."""
    heatmap = np.full((1, height, width, classes), -50, np.float32)
    heatmap += np.random.default_rng(0).normal(size=heatmap.shape)
    size, offset = np.zeros((1, height, width, 2), np.float32), np.zeros((1, height, width, 2), np.float32)
    for (row, column, label), (probability, *rest) in peaks.items():
        heatmap[0, row, column, label] = math.log(probability / (1 - probability))
        size[0, row, column], offset[0, row, column] = rest
    outputs = {"heatmap": heatmap, "size": size, "offset": offset}
    sizes = np.float32([(4 * height - 2, 4 * width)])
    return {**{name: (np.full_like(value, 7), value) for name, value in outputs.items()}, "image_sizes": sizes}


def test_detections_by_hand():
    """Of the last of two stacks; an image of 38 x 48 pixels, two rows of which are padding."""
    outputs = maps(
        10,
        12,
        3,
        {
            (2, 3, 1): (0.5, (2, 4), (0.5, 0.25)),  # around (3.5, 2.25)
            (9, 11, 0): (0.75, (2, 2), (0.5, 0.5)),  # around (11.5, 9.5): beyond the border
            (5, 5, 2): (0.004, (2, 2), (0.5, 0.5)),
            (2, 4, 1): (0.4, (9, 9), (0.5, 0.5)),  # beside a better one
            (2, 4, 2): (0.3, (-1, 2), (0, 0)),  # of another class; of no width
        },
    )
    found = {name: value.numpy() for name, value in CenterNetDecoder(keep=5)(outputs).items()}
    assert found["num_detections"].tolist() == [3]
    np.testing.assert_allclose(found["scores"], [[0.75, 0.5, 0.3, 0, 0]], rtol=1e-5)
    assert found["labels"].tolist() == [[0, 1, 2, -1, -1]]
    boxes = [(42, 34, 48, 38), (10, 1, 18, 17), (16, 4, 16, 12), (0, 0, 0, 0), (0, 0, 0, 0)]
    np.testing.assert_allclose(found["boxes"], [boxes], atol=1e-4)


def test_the_centres_that_boxes_are_made_of(small):
    peaks = {(2, 3, 1): (0.5, (2, 4), (0.5, 0.25)), (9, 11, 0): (0.75, (2, 2), (0.5, 0.5))}
    found = CenterNetDecoder(keep=2).peaks(maps(10, 12, 3, peaks))["centre"]
    np.testing.assert_allclose(found["points"], [[(46, 38), (14, 9)]], rtol=1e-5)
    np.testing.assert_allclose(found["scores"], [[0.75, 0.5]], rtol=1e-5)
    assert found["labels"].numpy().tolist() == [[0, 1]]

    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    for detector in (small, tfdet.with_flip_and_scales(small)):
        found = detector.detect(images, np.float32([(2, 4, 2, 4)]))
        peaks = detector.peaks(images, np.float32([(2, 4, 2, 4)]))["centre"]
        np.testing.assert_array_equal(found["scores"], peaks["scores"])
        middles = (found["boxes"][..., :2] + found["boxes"][..., 2:]) / 2
        inside = np.all((found["boxes"] > 0) & (found["boxes"] < (32, 16, 32, 16)), axis=-1)
        np.testing.assert_allclose(middles[inside], peaks["points"][inside], atol=1e-4)


def test_the_best_are_kept_and_no_threshold_keeps_all():
    outputs = maps(
        12, 12, 1, {(4 * i, 4 * j, 0): (0.1 * (i + 3 * j + 1), (1, 1), (0, 0)) for i in range(3) for j in range(3)}
    )
    found = CenterNetDecoder(keep=4)(outputs)
    np.testing.assert_allclose(found["scores"], [[0.9, 0.8, 0.7, 0.6]], rtol=1e-5)
    found = CenterNetDecoder(score_threshold=0, keep=30)(outputs)
    assert 9 < int(found["num_detections"][0]) < 30


def test_a_map_of_fewer_cells_than_detections_are_kept():
    found = CenterNetDecoder()(maps(2, 2, 1, {(1, 1, 0): (0.9, (1, 1), (0, 0))}))
    assert found["boxes"].shape == (1, 100, 4)
    assert int(found["num_detections"][0]) == 1


def test_what_is_encoded_is_decoded():
    """Objects that the map can tell apart come back where they were."""
    random = np.random.default_rng(0)
    boxes, labels = [], []
    for i in range(4):
        for j in range(4):
            centre, sides = 32 + np.array((i, j)) * 60 + random.uniform(-9, 9, 2), random.uniform(6, 60, 2)
            boxes.append((*(centre - sides / 2), *(centre + sides / 2)))
            labels.append(random.integers(3))
    boxes = np.clip(np.float32(boxes), 0, 252)
    targets = encode(boxes, labels, side=256, max_objects=20)
    size, offset = np.zeros((64, 64, 2), np.float32), np.zeros((64, 64, 2), np.float32)
    rows, columns = targets["cells"][:16].T
    size[rows, columns], offset[rows, columns] = targets["size"][:16], targets["offset"][:16]
    logits = np.log(np.maximum(targets["heatmap"], 1e-9)) - np.log(np.maximum(1.001 - targets["heatmap"], 0))
    outputs = {"heatmap": (logits[None],), "size": (size[None],), "offset": (offset[None],)}
    found = CenterNetDecoder(0.5)({**outputs, "image_sizes": np.float32([(256, 256)])})
    assert int(found["num_detections"][0]) == 16
    order = np.lexsort(found["boxes"][0, :16].numpy().T), np.lexsort(boxes.T)
    np.testing.assert_allclose(found["boxes"].numpy()[0, order[0]], boxes[order[1]], atol=1e-3)
    np.testing.assert_array_equal(found["labels"].numpy()[0, order[0]], np.array(labels)[order[1]])


# --- the released code ---

# Two images of 64 x 96 pixels with boxes and labels; one box has no area, some reach beyond the border.
BOXES = [
    [(3, 5, 61, 40), (20, 9.5, 33, 70), (-8, 12, 9, 30.5), (50, 40, 66, 44)],
    [(10, 10, 10, 30), (1, 2, 45, 90), (7.25, 3, 64, 95)],
]
LABELS = [[0, 2, 1, 1], [0, 2, 2]]


def waves(*shape):
    n = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(n * n * 0.37 + n).reshape(shape)


def released_case():
    encoder = CenterNetTargetEncoder(3, (96, 64))
    encoded = [encoder(np.float32(boxes), np.int32(labels)) for boxes, labels in zip(BOXES, LABELS, strict=True)]
    targets = {name: tf.stack([one[name] for one in encoded]) for name in encoded[0]}
    slow = np.sin(0.0131 * np.arange(2 * 24 * 16 * 3)).reshape(2, 24, 16, 3)
    maps = {"heatmap": 3 * waves(2, 24, 16, 3) + slow - 3}
    maps |= {"size": 5 + 4 * waves(2, 24, 16, 2), "offset": 0.5 + 0.5 * waves(2, 24, 16, 2)}
    return targets, {name: tf.Variable(value, dtype=tf.float32) for name, value in maps.items()}


# Printed by xingyizhou/CenterNet for that: targets as in ctdet.py, FocalLoss and RegL1Loss of losses.py, ctdet_decode.
HEATMAP_SUMS = [[8.518152, 2.614604, 1.614604], [0, 0, 23.833195]]  # of each image and class
LOSSES = {"heatmap": 22.389923, "size": 0.6449338, "offset": 0.4241741}  # weighted
SLOPES = {"heatmap": 1.4730224, "size": 0.0288673, "offset": 0.2886727}  # norms of the gradients
DETECTED = [  # box, score, label
    [
        (9.561251, -4.8767395, 14.731249, 28.1279, 0.7238212, 2),
        (11.6354885, 81.1242, 21.940855, 98.126335, 0.7195928, 0),
    ],
    [(22.30208, 68.94302, 46.829865, 75.76163, 0.729966, 2), (34.33093, 22.33329, 58.781788, 46.777855, 0.7289414, 1)],
]


def test_targets_and_losses_are_those_of_the_released_code():
    targets, maps = released_case()
    np.testing.assert_allclose(np.sum(targets["heatmap"], axis=(1, 2)), HEATMAP_SUMS, rtol=1e-6)
    with tf.GradientTape() as tape:
        parts = CenterNetLoss()(targets, {name: (value,) for name, value in maps.items()})
        total = sum(parts.values())
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(LOSSES, rel=1e-5)
    slopes = tape.gradient(total, maps)
    norms = {name: float(tf.norm(tf.convert_to_tensor(slope))) for name, slope in slopes.items()}
    assert norms == pytest.approx(SLOPES, rel=1e-5)


def test_detections_are_those_of_the_released_code():
    """Clipped to the image, which it does not do."""
    _, maps = released_case()
    outputs = {name: (value,) for name, value in maps.items()} | {"image_sizes": np.float32([(96, 64)] * 2)}
    found = CenterNetDecoder(keep=2)(outputs)
    expected = np.array(DETECTED)
    np.testing.assert_allclose(found["boxes"], np.clip(expected[..., :4], 0, (64, 96, 64, 96)), atol=1e-4)
    np.testing.assert_allclose(found["scores"], expected[..., 4], rtol=1e-5)
    np.testing.assert_array_equal(found["labels"], expected[..., 5])


# --- network ---


def test_head_starts_as_the_released_one():
    head = CenterNetHead({"heatmap": 5, "size": 2, "heatmap_of_joints": 17}, 64)
    outputs = head(np.zeros((1, 4, 6, 8), np.float32))
    assert {name: value.shape for name, value in outputs.items()} == {
        "heatmap": (1, 4, 6, 5),
        "size": (1, 4, 6, 2),
        "heatmap_of_joints": (1, 4, 6, 17),
    }
    np.testing.assert_allclose(tf.sigmoid(outputs["heatmap"]), np.full((1, 4, 6, 5), 0.1), atol=0.01)
    np.testing.assert_allclose(outputs["heatmap_of_joints"], np.full((1, 4, 6, 17), -2.19), rtol=1e-6)
    np.testing.assert_array_equal(outputs["size"], np.zeros((1, 4, 6, 2)))
    assert np.std(head.convs["size"].kernel) == pytest.approx(0.001, rel=0.1)


def test_each_stack_has_a_head_and_the_last_is_read():
    detector = centernet(2, backbone("stack2", "stack1"), side=32)  # the order of the dict does not count
    outputs = detector(np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32))
    assert {name: len(outputs[name]) for name in ("heatmap", "size", "offset")} == dict(heatmap=2, size=2, offset=2)
    last = detector.backbone(np.zeros((1, 32, 32, 3)))["stack2"]
    expected = detector.heads[1](last)["heatmap"]
    np.testing.assert_allclose(detector(np.zeros((1, 32, 32, 3), np.float32))["heatmap"][1], expected, rtol=1e-5)


def test_padding_is_black(small):
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    image[:, 40:], image[:, :, 52:] = np.nan, np.nan
    outputs, filled = small(image), small(np.nan_to_num(image, nan=0.0))
    np.testing.assert_array_equal(outputs["image_sizes"], [(40, 52)])
    np.testing.assert_array_equal(outputs["heatmap"][0], filled["heatmap"][0])


def test_sizes_of_fed_images(small):
    """A long side of 64 pixels, or their own; padded to what the backbone divides by."""
    image = np.zeros((30, 100, 3), np.uint8)
    assert isinstance(small.resizer, ShortSide)
    assert small.resizer(image).shape == (32, 64, 3)
    np.testing.assert_allclose(small.resizer.scale(30, 100), [0.64, 19 / 30, 0.64, 19 / 30], rtol=1e-6)
    keeping = centernet(2, backbone(), side=64, keep_size=True)
    assert isinstance(keeping.resizer, KeepSize)
    assert keeping.resizer(image).shape == (32, 128, 3)
    assert CenterNet(backbone(), 2, 128, True, multiple=128).resizer(image).shape == (128, 128, 3)
    with pytest.raises(TfdetError, match="side 100: this backbone needs a multiple of 32"):
        centernet(2, backbone(), side=100)


def test_training_batches_have_one_size(small, make_dataset):
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]), (200, 50, [], []))
    batches = tfdet.training_batches(dataset, small, 2)
    images, targets = batches.element_spec
    assert images.shape == (2, 64, 64, 3)
    assert {name: target.shape.as_list() for name, target in targets.items()} == {
        "heatmap": [2, 16, 16, 2],
        "cells": [2, 128, 2],
        "size": [2, 128, 2],
        "offset": [2, 128, 2],
    }
    assert all(np.isfinite(images).all() for images, _ in batches)


def test_validation_batches_of_images_of_several_sizes(make_dataset):
    keeping = centernet(("red", "blue"), backbone(), side=64, keep_size=True)
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]), (200, 50, [(8, 100, 24, 140)], [1]))
    images, targets = next(iter(tfdet.validation_batches(dataset, keeping, 2)))
    assert images.shape == (2, 224, 128, 3)
    assert targets["heatmap"].shape == (2, 56, 32, 2)
    assert np.argwhere(targets["heatmap"] == 1).tolist() == [[0, 11, 8, 0], [1, 30, 4, 1]]
    assert targets["cells"][:, 0].numpy().tolist() == [[11, 8], [30, 4]]
    keeping.compile(keras.optimizers.Adam())
    assert np.isfinite(keeping.evaluate(tfdet.validation_batches(dataset, keeping, 2), verbose=0)).all()


# --- a second look ---


def test_flipped_heatmaps_and_sizes_are_averaged_and_the_offset_is_not(small):
    image = np.random.default_rng(1).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small)
    seen = []
    twice.decoder = lambda outputs: seen.append(outputs) or small.decoder(outputs)
    twice.detect(image, np.ones((1, 4), np.float32))
    one, other = small(image), small(image[:, :, ::-1])
    mean = (tf.sigmoid(one["heatmap"][0]) + tf.sigmoid(other["heatmap"][0])[:, :, ::-1]) / 2
    np.testing.assert_allclose(tf.sigmoid(seen[0]["heatmap"][-1]), mean, rtol=1e-5)
    np.testing.assert_allclose(seen[0]["size"][-1], (one["size"][0] + other["size"][0][:, :, ::-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(seen[0]["offset"][-1], one["offset"][0])


def test_with_flip_the_mirror_image_has_the_mirrored_scores(small):
    """An image that needs no padding, which would lie on one side only."""
    image = np.random.default_rng(2).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small)
    found, other = (twice.predict(pixels, verbose=0) for pixels in (image, image[:, :, ::-1]))
    assert int(found["num_detections"][0]) > 5
    np.testing.assert_allclose(found["scores"], other["scores"], rtol=1e-5)
    assert (found["scores"] != small.predict(image, verbose=0)["scores"]).any()


def test_scales_are_looked_at_and_merged(small, monkeypatch):
    """Each scale finds one box, in its own pixels: the image at half the size has boxes of half the size."""
    several = tfdet.with_flip_and_scales(small, flip=False, scales=(0.5, 1, 2))
    found = {  # of a width of 64 * factor: box and score
        32: ((5, 5, 10, 10), 0.9),
        64: ((10, 10, 20, 20), 0.8),
        128: ((80, 80, 100, 100), 0.7),
    }

    def detect(images):
        box, score = found[images.shape[2]]
        boxes = tf.constant([[box, (0, 0, 0, 0)]], tf.float32)
        labels = tf.constant([[1, -1]])
        return {
            "boxes": boxes,
            "scores": tf.constant([[score, 0]]),
            "labels": labels,
            "num_detections": tf.constant([1]),
        }

    monkeypatch.setattr(several, "_detect", detect)
    detections = several.detect(np.zeros((1, 64, 64, 3), np.float32), np.float32([(2, 2, 2, 2)]))
    assert int(detections["num_detections"][0]) == 3
    scores = [0.9, 0.7, 0.8 * math.exp(-1 / 0.5)]  # the second is the first once more
    np.testing.assert_allclose(detections["scores"][0, :3], scores, rtol=1e-5)
    np.testing.assert_allclose(
        detections["boxes"][0, :3], [(5, 5, 10, 10), (20, 20, 25, 25), (5, 5, 10, 10)], rtol=1e-5
    )
    assert detections["labels"].numpy()[0, :4].tolist() == [1, 1, 1, -1]
    assert detections["boxes"].shape == (1, 100, 4)


def test_a_second_look_is_saved_served_and_evaluated(small, make_dataset, tmp_path):
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]), (200, 50, [], []))
    several = tfdet.with_flip_and_scales(small, scales=(0.5, 1.0))
    several.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    image = load_image(dataset.examples[0].image)[None]
    found, expected = loaded.predict(image, verbose=0), several.predict(image, verbose=0)
    served = tf.saved_model.load(tfdet.export(several, tmp_path)).signatures["images"](tf.constant(image, tf.uint8))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(served[name], expected[name], rtol=1e-5, atol=1e-4)
    assert small.flip is False and small.scales == (1.0,)
    assert tfdet.evaluate(several, dataset, batch_size=2)["images"] == 2
    copy = tfdet.in_bfloat16(several)
    assert (copy.flip, copy.scales) == (True, (0.5, 1.0))


def test_who_looks_once_says_so(untrained):
    with pytest.raises(TfdetError, match="ssd300: this detector looks at an image once"):
        tfdet.with_flip_and_scales(untrained[0])


def test_a_backbone_of_another_kind():
    with pytest.raises(TfdetError, match="resnet_slim: CenterNet needs maps stack1"):
        tfdet.centernet(2, "resnet_slim", side=64)
