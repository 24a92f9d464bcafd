import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet import backbones
from tfdet.anchors import AnchorGenerator, AnchorPyramid
from tfdet.coders import DeltaXYWH
from tfdet.data.pipeline import prediction_batches
from tfdet.detectors.retinanet import (
    RetinaNet,
    RetinaNetDecoder,
    RetinaNetHead,
    RetinaNetLoss,
    RetinaNetTargetEncoder,
    retinanet,
)

# An image of 64 x 64 has four anchors of 32 x 32, row by row, and one of 64 x 64.
PYRAMID = AnchorPyramid([AnchorGenerator((side,), (1.0,), side, offset=0.5) for side in (32, 64)])


@pytest.fixture(scope="module")
def small():
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return retinanet(("red", "blue"), "resnet_slim", None, (64,), 96)


@pytest.fixture(scope="module")
def wide(small):
    """The same with the published width, and so with the published start."""
    keras.utils.set_random_seed(0)
    return RetinaNet(tfdet.backbones.resnet_slim(), ("red", "blue"), small.settings["anchors"], (64,), 96, channels=256)


# --- targets ---

# objects (box, label; -1: a crowd region), labels of the four anchors, label of the one
TARGETS = {
    "no objects": ([], [-1, -1, -1, -1], -1),
    "its own anchor; a quarter of the large one": ([((0, 0, 32, 32), 3)], [3, -1, -1, -1], -1),
    "IoU 0.57, 0 and 0.375; 0.44 is ignored": ([((0, 0, 32, 56), 3)], [3, -1, -1, -1], -2),
    "IoU 0.5 is positive": ([((0, 0, 32, 64), 1)], [1, -1, 1, -1], 1),
    "the best anchor, if with IoU 0.25 only": ([((0, 0, 16, 16), 2)], [2, -1, -1, -1], -1),
    "all that are best": ([((16, 0, 48, 16), 2)], [2, 2, -1, -1], -1),  # of IoU 1 / 5
    "several objects": ([((32, 32, 64, 64), 5), ((0, 0, 60, 64), 0)], [-1, -1, -1, 5], 0),
    "no area": ([((10, 10, 10, 20), 3)], [-1, -1, -1, -1], -1),
    "in a crowd": ([((0, 0, 32, 60), -1)], [-2, -1, -2, -1], -1),
    "half in a crowd": ([((0, 0, 64, 48), -1)], [-2, -2, -2, -2], -2),
    "an object in a crowd": ([((0, 0, 64, 32), -1), ((0, 0, 32, 32), 4)], [4, -2, -1, -1], -2),
}


@pytest.mark.parametrize(("objects", "fine", "coarse"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(objects, fine, coarse):
    boxes = np.float32([box for box, _ in objects]).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    targets = RetinaNetTargetEncoder(PYRAMID, DeltaXYWH(), (64, 64))(boxes, labels)
    assert [(part.shape, part.dtype) for part in targets["labels"]] == [((2, 2, 1), tf.int32), ((1, 1, 1), tf.int32)]
    shapes = [(part.shape, part.dtype) for part in targets["box_deltas"]]
    assert shapes == [((2, 2, 1, 4), tf.float32), ((1, 1, 1, 4), tf.float32)]
    np.testing.assert_array_equal(np.ravel(targets["labels"][0]), fine)
    np.testing.assert_array_equal(np.ravel(targets["labels"][1]), coarse)


@pytest.mark.parametrize(("bottom", "label"), [(52, 7), (63, 7), (64, -2), (76, -2), (77, -1)])
def test_thresholds_of_an_anchor_that_is_not_the_best(bottom, label):
    """Of two around one centre, 32 x 32 and 40 x 40, the larger is the best, and the object is as wide as that one.

    The smaller has IoU 1024 / (40 * height): 0.64, 0.502, 0.49, 0.4 and 0.39.
    """
    pyramid = AnchorPyramid([AnchorGenerator((32, 40), (1.0,), 64, offset=0.5)])
    encoder = RetinaNetTargetEncoder(pyramid, DeltaXYWH(), (64, 64))
    targets = encoder(np.float32([(12, 12, 52, bottom)]), np.array([7]))
    np.testing.assert_array_equal(np.ravel(targets["labels"][0]), [label, 7])


def test_deltas_of_the_positives_by_hand():
    """Object 0 is that of the anchor at (0, 32), 1 of the large one; the others have zeros."""
    boxes = np.float32([(4, 32, 20, 64), (6, -2, 70, 62)])
    targets = RetinaNetTargetEncoder(PYRAMID, DeltaXYWH(), (64, 64))(boxes, np.array([7, 8]))
    np.testing.assert_array_equal(targets["labels"][0], [[[-1], [-1]], [[7], [-1]]])
    fine, coarse = targets["box_deltas"]
    expected = np.zeros((2, 2, 1, 4))
    expected[1, 0] = (-4 / 32, 0, np.log(0.5), 0)
    np.testing.assert_allclose(fine, expected, rtol=1e-6)
    np.testing.assert_allclose(coarse, [[[(6 / 64, -2 / 64, 0, 0)]]], rtol=1e-6, atol=1e-7)


# width of the image, whose height is 64; labels of the anchors, whose centres are at 16 and 48 in the fine map
PADDED = {
    48: ([-1, 9, -1, -1], -1),
    47: ([-1, -2, -1, -2], 9),  # the best that is left has IoU 0.08
    32: ([-1, -2, -1, -2], 9),
    31: ([9, -2, -1, -2], -2),
}


@pytest.mark.parametrize(("width", "fine", "coarse"), [(width, *labels) for width, labels in PADDED.items()])
def test_anchors_on_the_padding_are_ignored(width, fine, coarse):
    encoder = RetinaNetTargetEncoder(PYRAMID, DeltaXYWH(), (64, 64))
    # Where the map is 32 pixels wide, the anchors at 48 do not exist.
    targets = encoder(np.float32([(30, 0, 40, 32)]), np.array([9]), (64, width))
    fine = np.reshape(fine, (2, 2))[:, : 1 if width <= 32 else 2]
    np.testing.assert_array_equal(targets["labels"][0][..., 0], fine)
    np.testing.assert_array_equal(np.ravel(targets["labels"][1]), coarse)
    for labels, deltas in zip(targets["labels"], targets["box_deltas"], strict=True):
        np.testing.assert_array_equal(np.any(deltas, axis=-1), np.array(labels) >= 0)


def test_both_sides_count_as_padding_and_the_size_is_height_and_width():
    encoder = RetinaNetTargetEncoder(PYRAMID, DeltaXYWH(), (64, 128))
    targets = encoder(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), (40, 64))
    np.testing.assert_array_equal(targets["labels"][0][..., 0], [[-1, -1], [-2, -2]])
    targets = encoder(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    assert [part.shape for part in targets["labels"]] == [(2, 4, 1), (1, 2, 1)]


# --- loss ---


def logit(probability):
    return np.log(probability) - np.log1p(-np.float64(probability))


def loss_case(labels, probabilities, distances):
    """Targets and outputs of five anchors of two images, as the two levels have them: [2, 5], [2, 5, C], [2, 5]."""
    labels, logits = np.int32(labels), np.float32(logit(np.array(probabilities)))
    deltas = np.float32(distances)[..., None] * np.float32([0, 1, 0, -1])
    targets = {
        "labels": (labels[:, :4].reshape(2, 2, 2, 1), labels[:, 4:].reshape(2, 1, 1, 1)),
        "box_deltas": (np.full((2, 2, 2, 1, 4), 3, "float32"), np.full((2, 1, 1, 1, 4), 3, "float32")),
    }
    outputs = {"class_logits": (logits[:, :4], logits[:, 4:]), "box_deltas": (3 + deltas[:, :4], 3 + deltas[:, 4:])}
    return targets, {name: tuple(map(tf.constant, levels)) for name, levels in outputs.items()}


NOTHING = (1e-9, 1e-9)  # probabilities of a negative that costs nothing


def own(p):
    return -0.25 * (1 - p) ** 2 * np.log(p)


def other(p):
    return -0.75 * p**2 * np.log(1 - p)


def test_loss_by_hand():
    """Two positives in one image, one in the other, in both levels: the sum is over three. Smooth L1 bends at 0.1."""
    labels = [[1, -1, -2, -1, 0], [-1, -1, 0, -2, -2]]
    probabilities = [
        [(0.2, 0.6), (0.3, 0.1), (0.999, 0.999), NOTHING, (0.9, 1e-9)],
        [(0.5, 1e-9), NOTHING, (0.7, 0.4), (0.999, 0.999), (0.999, 0.999)],
    ]
    distances = [[0.05, 100, 100, 100, 2], [100, 100, 0.1, 100, 100]]
    parts = RetinaNetLoss(PYRAMID)(*loss_case(labels, probabilities, distances))
    assert tuple(parts) == RetinaNetLoss.parts == ("class", "box")
    costs = [own(0.6), other(0.2), other(0.3), other(0.1), own(0.9), other(0.5), own(0.7), other(0.4)]
    np.testing.assert_allclose(parts["class"], sum(costs) / 3, rtol=1e-5)
    np.testing.assert_allclose(parts["box"], 2 * (0.0125 + 1.95 + 0.05) / 3, rtol=1e-5)


def test_loss_without_any_positive_is_what_the_negatives_cost():
    labels = [[-1, -2, -1, -1, -1], [-2] * 5]
    probabilities = [[(0.3, 1e-9), (0.9, 0.9), *[NOTHING] * 3], [(0.9, 0.9)] * 5]
    parts = RetinaNetLoss(PYRAMID)(*loss_case(labels, probabilities, np.full((2, 5), 100)))
    np.testing.assert_allclose(parts["class"], other(0.3), rtol=1e-5)
    assert parts["box"] == 0


def test_gradients_reach_what_counts_and_nothing_else():
    """An ignored anchor has no gradient, a negative none for its box, however wrong they are."""
    labels = [[1, -1, -2, -1, -2], [-1, -1, -2, -2, 0]]
    targets, outputs = loss_case(labels, np.full((2, 5, 2), 0.5), np.full((2, 5), 100))
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        parts = RetinaNetLoss(PYRAMID)(targets, outputs)
        total = parts["class"] + parts["box"]
    gradients = {name: np.concatenate(levels, axis=1) for name, levels in tape.gradient(total, outputs).items()}
    np.testing.assert_array_equal(np.all(gradients["class_logits"], axis=-1), np.array(labels) != -2)
    np.testing.assert_array_equal(np.any(gradients["class_logits"], axis=-1), np.array(labels) != -2)
    # Half a unit for each of two positives, in the two coordinates that are wrong.
    np.testing.assert_allclose(gradients["box_deltas"], (np.array(labels) >= 0)[..., None] * [0, 0.5, 0, -0.5])


# --- head ---


def test_the_head_begins_with_one_percent():
    head = RetinaNetHead(2, 3, channels=8)
    class_logits, box_deltas = head([np.zeros((1, 2, 2, 8), np.float32)])
    np.testing.assert_allclose(keras.ops.sigmoid(class_logits[0]), np.full((1, 8, 3), 0.01), rtol=1e-5)
    np.testing.assert_array_equal(box_deltas[0], np.zeros((1, 8, 4)))


@pytest.mark.parametrize(("channels", "deviation"), [(64, (2 / (9 * 64)) ** 0.5), (256, 0.01)])
def test_a_narrow_tower_passes_on_what_it_is_fed(channels, deviation):
    head = RetinaNetHead(1, 1, channels)
    head([keras.ops.zeros((1, 2, 2, channels))])
    for tower, last in ((head.class_tower, head.class_conv), (head.box_tower, head.box_conv)):
        for convolution in tower:
            assert np.std(convolution.kernel) == pytest.approx(deviation, rel=0.05)
        assert np.std(last.kernel) == pytest.approx(0.01, rel=0.2)
    kernels = [np.asarray(convolution.kernel) for convolution in head.class_tower + head.box_tower]
    assert not any(np.array_equal(kernels[0], kernel) for kernel in kernels[1:])


def test_levels_share_one_head():
    keras.utils.set_random_seed(0)
    head = RetinaNetHead(2, 3, channels=8)
    level = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    outputs = head([level, level[:, :2], level])
    assert [[part.shape for part in levels] for levels in outputs] == [
        [(2, 24, 3), (2, 16, 3), (2, 24, 3)],
        [(2, 24, 4), (2, 16, 4), (2, 24, 4)],
    ]
    for levels in outputs:
        np.testing.assert_array_equal(levels[0], levels[2])
    # Two towers of four and two last convolutions, kernel and bias each.
    assert len(head.weights) == 2 * 5 * 2
    assert [weight.shape[-1] for weight in head.weights[1::2]] == [8] * 8 + [6, 8]


def test_the_head_counts_cell_by_cell_and_anchor_by_anchor():
    """Biases tell the anchors of a cell and their classes apart; a number in one corner is seen up to 5 cells away."""
    keras.utils.set_random_seed(0)
    head = RetinaNetHead(2, 3, channels=8)
    level = np.zeros((1, 8, 8, 8), np.float32)
    head([level])
    head.class_conv.bias.assign(np.arange(6))
    head.box_conv.bias.assign(np.arange(8))
    before = head([level])
    np.testing.assert_array_equal(before[0][0], np.tile([(0, 1, 2), (3, 4, 5)], (1, 64, 1)))
    np.testing.assert_array_equal(before[1][0], np.tile([(0, 1, 2, 3), (4, 5, 6, 7)], (1, 64, 1)))
    level[0, 7, 0] = 100
    moved = [np.any(np.array(a[0]) != b[0], axis=-1) for a, b in zip(before, head([level]), strict=True)]
    rows, columns = np.divmod(np.arange(128) // 2, 8)
    for anchors in moved:
        assert not anchors[0, (rows < 2) | (columns > 5)].any()
        assert anchors[0, (rows == 7) & (columns == 0)].all()


def test_an_untrained_detector_gives_every_class_about_one_percent(wide):
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    for logits in wide(images)["class_logits"]:
        probabilities = keras.ops.sigmoid(logits)
        assert np.min(probabilities) > 0.005 and np.max(probabilities) < 0.02


def test_the_published_learning_rate_is_bearable_from_the_first_step(wide, make_dataset):
    weights = wide.get_weights()
    wide.compile(keras.optimizers.SGD(0.01, momentum=0.9), run_eagerly=True)  # tracing would take longer
    batches = tfdet.validation_batches(make_dataset((64, 96, [(5, 5, 60, 60), (40, 10, 90, 50)], [0, 1])), wide, 1)
    losses = wide.fit(batches.repeat(), epochs=4, steps_per_epoch=1, verbose=0).history["loss"]
    wide.set_weights(weights)
    assert losses[0] < 3  # the many negatives cost little
    assert np.all(np.diff(losses) < 0)


# --- detections ---


def decode(decoder, levels, size=(100, 100)):
    """levels: for each a list of (anchor, scores). Deltas are zero. -> rows (box, score, label)."""
    outputs = {
        "class_logits": tuple(np.float32([[logit(scores) for _, scores in level]]) for level in levels),
        "box_deltas": tuple(np.zeros((1, len(level), 4), "float32") for level in levels),
        "anchors": tuple(np.float32([anchor for anchor, _ in level]) for level in levels),
        "sizes": np.float32([size]),
    }
    found = {name: np.array(value)[0] for name, value in decoder(outputs).items()}
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [(tuple(box), round(score, 4), label) for box, score, label in rows][: found["num_detections"]]


A, NEAR_A, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)

# levels of (anchor, scores), expected rows
DETECTIONS = {
    "two classes of one anchor": ([[(A, (0.3, 0.8))]], [(A, 0.8, 1), (A, 0.3, 0)]),
    "a score of 0.05 does not do": ([[(A, (0.04, 0.06)), (FAR, (0.049, 0.01))]], [(A, 0.06, 1)]),
    "the better of two": (
        [[(A, (0.6, 0.01)), (NEAR_A, (0.7, 0.01)), (FAR, (0.5, 0.01))]],
        [(NEAR_A, 0.7, 0), (FAR, 0.5, 0)],
    ),
    "of two levels": ([[(A, (0.6, 0.01))], [(NEAR_A, (0.7, 0.01))]], [(NEAR_A, 0.7, 0)]),
    "classes do not meet": ([[(A, (0.6, 0.01)), (NEAR_A, (0.01, 0.7))]], [(NEAR_A, 0.7, 1), (A, 0.6, 0)]),
    "an IoU of 0.5 may stay": (
        [[(A, (0.9, 0.01)), ((0, 0, 10, 5), (0.8, 0.01))]],
        [(A, 0.9, 0), ((0, 0, 10, 5), 0.8, 0)],
    ),
    "nothing": ([[(A, (0.01, 0.01))], [(A, (0.01, 0.01))]], []),
}


@pytest.mark.parametrize(("levels", "expected"), DETECTIONS.values(), ids=DETECTIONS)
def test_detections_by_hand(levels, expected):
    assert decode(RetinaNetDecoder(DeltaXYWH()), levels) == expected


def test_settings_are_those_of_the_released_code():
    decoder = RetinaNetDecoder(DeltaXYWH())
    settings = decoder.score_threshold, decoder.iou_threshold, decoder.pre_nms, decoder.keep
    assert settings == (0.05, 0.5, 1000, 100)


def test_the_best_hundred_are_kept():
    level = [((0, 10 * i, 10, 10 * i + 9), (0.1 + i / 1000, 0.01)) for i in range(150)]
    found = decode(RetinaNetDecoder(DeltaXYWH()), [level], (2000, 2000))
    assert [score for _, score, _ in found] == [pytest.approx(0.1 + i / 1000, abs=1e-4) for i in range(149, 49, -1)]


def test_deltas_are_decoded_and_boxes_clipped_to_each_image():
    outputs = {
        "class_logits": (np.full((2, 1, 1), 2, "float32"),),
        "box_deltas": (np.float32([[(0.5, 0, np.log(2), 0)], [(0, -2, 0, np.log(3))]]),),
        "anchors": (np.float32([(20, 20, 60, 60)]),),
        "sizes": np.float32([(50, 70), (90, 50)]),
    }
    found = RetinaNetDecoder(DeltaXYWH())(outputs)
    np.testing.assert_allclose(found["boxes"][:, 0], [(20, 20, 70, 50), (20, 0, 50, 20)], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found["num_detections"], [1, 1])


@pytest.mark.parametrize(("size", "found"), [((40, 40), True), ((39, 60), False), ((60, 39), False)])
def test_an_anchor_beside_the_image_finds_nothing(size, found):
    outputs = {
        "class_logits": (np.full((1, 1, 1), 2, "float32"),),
        "box_deltas": (np.zeros((1, 1, 4), "float32"),),
        "anchors": (np.float32([(20, 20, 60, 60)]),),
        "sizes": np.float32([size]),
    }
    np.testing.assert_array_equal(RetinaNetDecoder(DeltaXYWH())(outputs)["num_detections"], [found])


@pytest.mark.parametrize("pre_nms", [1, 4, 10, 100])
def test_of_every_level_the_best_pairs_of_anchor_and_class_are_looked_at(pre_nms):
    """Levels of 12, 6 and 1 anchors with 3 classes, none of which is in the way of another."""
    random = np.random.default_rng(0)
    levels = [
        [((x, y, x + 9, y + 9), random.uniform(0.06, 1, 3)) for x in range(0, n, 10)]
        for y, n in [(0, 120), (20, 60), (40, 1)]
    ]
    expected = {}
    for level in levels:
        pairs = [((box, label), score) for box, scores in level for label, score in enumerate(scores)]
        expected.update(sorted(pairs, key=lambda pair: -pair[1])[:pre_nms])
    found = decode(RetinaNetDecoder(DeltaXYWH(), pre_nms=pre_nms), levels, (200, 200))
    assert {(box, label): score for box, score, label in found} == pytest.approx(expected, abs=1e-4)


# --- images of several sizes ---

# Fed as 64 x 96, as 96 x 64 and as 64 x 83 pixels, with the objects at other places.
SEVERAL = [
    (60, 90, [(5, 5, 40, 50), (50, 10, 88, 58)], [0, 1]),
    (90, 60, [(2, 40, 58, 88)], [1]),
    (50, 65, [(40, 20, 64, 49)], [0]),
]


@pytest.fixture(scope="module")
def several(small, make_dataset):
    """A batch of them: images and targets."""
    return next(iter(tfdet.validation_batches(make_dataset(*SEVERAL), small, 3)))


def test_targets_in_a_batch_are_those_of_the_image_alone(small, make_dataset, several):
    images, together = several
    assert images.shape == (3, 96, 96, 3)
    dataset, positives = make_dataset(*SEVERAL), 0
    for i, (_, alone) in enumerate(tfdet.validation_batches(dataset, small, 1)):
        for name, padding in (("labels", -2), ("box_deltas", 0)):
            for found, expected in zip(together[name], alone[name], strict=True):
                height, width = expected.shape[1:3]
                np.testing.assert_array_equal(found[i, :height, :width], expected[0])
                rest = np.array(found[i])
                rest[:height, :width] = padding
                assert np.all(rest == padding)
        # Neither on the padding to a multiple of 32: these images end at 96, at 64 and at 83.
        height, width = [(64, 96), (96, 64), (64, 83)][i]
        for labels, generator in zip(together["labels"], small.settings["anchors"], strict=True):
            y, x, _ = np.nonzero(np.array(labels[i]) != -2)
            assert np.all(y * generator.stride <= height) and np.all(x * generator.stride <= width)
            positives += np.sum(np.array(labels[i]) >= 0)
    assert positives >= 4


def test_the_loss_does_not_see_the_padding(small, several):
    """Whatever the network says of padded places, the loss is the same."""
    images, targets = several
    outputs = small(images)
    before = small.detection_loss(targets, outputs)
    ignored = [np.array(labels == -2).reshape(3, -1, 1) for labels in targets["labels"]]
    assert sum(part.sum() for part in ignored) > 100
    wrong = {
        name: tuple(np.where(there, 50, values) for there, values in zip(ignored, outputs[name], strict=True))
        for name in ("class_logits", "box_deltas")
    }
    after = small.detection_loss(targets, {**outputs, **wrong})
    assert {name: float(value) for name, value in after.items()} == {
        name: float(value) for name, value in before.items()
    }


def test_detections_never_leave_the_image(small, make_dataset):
    """Of a detector that sees something everywhere, and boxes of all sizes."""
    weights = small.get_weights()
    head = small.head
    head.class_conv.bias.assign(np.zeros(head.class_conv.bias.shape))
    head.box_conv.bias.assign(np.random.default_rng(0).normal(size=head.box_conv.bias.shape))
    examples = make_dataset(*SEVERAL).examples
    fed = next(iter(prediction_batches([example.image for example in examples], small, 3)))
    in_fed = small.decoder(small(fed["images"]))
    in_originals = small.detect(**fed)
    small.set_weights(weights)
    fed_sizes = [(64, 96), (96, 64), (64, 83)]
    for found, sizes in ((in_fed, fed_sizes), (in_originals, [image[:2] for image in SEVERAL])):
        for boxes, (height, width) in zip(found["boxes"], sizes, strict=True):
            assert np.all(np.array(boxes) >= 0)
            furthest = np.max(boxes, axis=0)[2:]
            np.testing.assert_allclose(furthest, (width, height), rtol=0.01)  # 65 * 64 / 50 is 83.2
            assert np.all(furthest <= np.multiply((width, height), 1 + 1e-6 if found is in_fed else 1.001))


# --- the detector ---


def test_the_published_settings(small):
    assert [generator.stride for generator in small.settings["anchors"]] == [8, 16, 32, 64, 128]
    assert [generator.num_anchors for generator in small.settings["anchors"]] == [9] * 5
    sizes = [size for generator in small.settings["anchors"] for size in generator.sizes]
    np.testing.assert_allclose(sizes, 32 * 2 ** (np.arange(15) / 3), rtol=1e-12)
    np.testing.assert_allclose((sizes[0], sizes[-1]), (32, 812.749), rtol=1e-6)
    assert all(generator.aspect_ratios == (0.5, 1.0, 2.0) for generator in small.settings["anchors"])
    model = retinanet(1, small.backbone)
    assert (small.class_names, model.class_names) == (("red", "blue"), ("0",))
    assert (small.head.class_conv.filters, model.head.class_conv.filters) == (18, 9)
    assert (model.resizer.short, model.resizer.long, model.settings["channels"]) == (800, 1333, 256)
    assert model.augmentation.short_sides == (640, 672, 704, 736, 768, 800)
    assert model.encoder.largest == (1333, 1333)
    assert (model.encoder.pos_iou, model.encoder.neg_iou) == (0.5, 0.4)
    # P6 is made of C5, which has 128 channels here.
    assert model.neck.extras[0].kernel.shape == (3, 3, 128, 256)


def test_five_levels_from_p3_to_p7(small):
    image = keras.Input((256, 320, 3))
    levels = small.neck(small.backbone(image))
    assert {name: level.shape[1:] for name, level in levels.items()} == {
        "P3": (32, 40, 64),
        "P4": (16, 20, 64),
        "P5": (8, 10, 64),
        "P6": (4, 5, 64),
        "P7": (2, 3, 64),
    }
    outputs = small.compute_output_spec(image)
    counts = [9 * 32 * 40, 9 * 16 * 20, 9 * 8 * 10, 9 * 4 * 5, 9 * 2 * 3]
    assert [level.shape[1:] for level in outputs["class_logits"]] == [(n, 2) for n in counts]
    assert [level.shape[1:] for level in outputs["box_deltas"]] == [(n, 4) for n in counts]
    assert [len(level) for level in small.pyramid(256, 320)] == counts


def test_settings_of_ones_own_are_saved(tmp_path):
    keras.utils.set_random_seed(0)
    anchors = [AnchorGenerator((3 * 2**k,), (0.5, 1.5), 2**k, rounded=True) for k in range(3, 8)]
    backbone = backbones.build("resnet_slim")
    model = RetinaNet(backbone, ("dog",), anchors, (48, 64), 96, channels=16, p6_from="P5", fitted=True, name="mine")
    assert model.neck.extras[0].kernel.shape == (3, 3, 16, 16)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config, expected = ({k: v for k, v in m.get_config().items() if k != "backbone"} for m in (loaded, model))
    assert config == expected
    assert loaded.name == "mine" and loaded.class_names == ("dog",)
    assert (loaded.resizer.short, loaded.resizer.long) == (64, 96)
    assert (loaded.augmentation.short_sides, loaded.augmentation.long_side) == ((48, 64), 96)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    for found, expected in zip(tf.nest.flatten(loaded(image)), tf.nest.flatten(model(image)), strict=True):
        np.testing.assert_array_equal(found, expected)
    # P6 has two cells in 96 pixels: 48 apart, not 64. Half of 192 / sqrt(2) is 67.9, of 192 * sqrt(2) 135.8.
    np.testing.assert_array_equal(loaded.pyramid(96, 96)[3][2], (48 - 136, -68, 48 + 136, 68))
