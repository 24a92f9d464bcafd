import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet import backbones
from tfdet.anchors import AnchorPyramid, PointGenerator
from tfdet.coders import LTRB
from tfdet.data.pipeline import prediction_batches
from tfdet.detectors.fcos import (
    FCOS,
    RANGES,
    STRIDES,
    FCOSDecoder,
    FCOSHead,
    FCOSLoss,
    FCOSTargetEncoder,
    centerness,
    fcos,
)

PYRAMID = AnchorPyramid([PointGenerator(stride) for stride in STRIDES])


@pytest.fixture(scope="module", params=[False, True], ids=["original", "improved"])
def small(request):
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return fcos(("red", "blue"), "resnet_slim", None, (64,), 96, improved=request.param)


original_only = pytest.mark.parametrize("small", [False], indirect=True, ids=["original"])


# --- targets ---


def block(rows, columns):
    """Cells of a level: from the first of each pair to before the second."""
    return {(row, column) for row in range(*rows) for column in range(*columns)}


def edge(size):
    return block((0, size), (0, size)) - block((1, size - 1), (1, size - 1))


# objects (box, label; -1: a crowd region) in an image of 160 x 160, radius, {level: {label: cells}}: of P3 the points
# are at 4, 12, 20, ..., of P4 at 8, 24, 40, ..., of P5 at 16, 48, ..., of P6 at 32, 96, 160, of P7 at 64, 192.
TARGETS = {
    "no objects": ([], None, {}),
    "a small one": ([((0, 0, 24, 16), 3)], None, {0: {3: block((0, 2), (0, 3))}}),
    "not on the edge": ([((4, 4, 20, 21), 3)], None, {0: {3: {(1, 1), (2, 1)}}}),
    "between the points": ([((5, 5, 7, 100), 3)], None, {}),
    # At (60, 60) the furthest side is 64 away, which both levels answer for; P4's points are at 56 and 72.
    "of two levels": (
        [((0, 0, 124, 124), 2)],
        None,
        {0: {2: {(7, 7)}}, 1: {2: block((0, 8), (0, 8))}},
    ),
    # From (40, 40) to (120, 120) it is at most 120, from (16, 16) 144.
    "large": ([((0, 0, 160, 160), 1)], None, {1: {1: block((2, 8), (2, 8))}, 2: {1: edge(5)}}),
    "the smaller one has what both want": (
        [((0, 0, 40, 24), 0), ((8, 8, 32, 16), 5)],
        None,
        {0: {0: block((0, 3), (0, 5)) - block((1, 2), (1, 4)), 5: block((1, 2), (1, 4))}},
    ),
    # Around (44, 20), up to 12 and 24 pixels away; from P4's points at x = 24 the furthest side is 64 away.
    "centre sampling": (
        [((0, 0, 88, 40), 4)],
        1.5,
        {0: {4: block((1, 4), (4, 7))}, 1: {4: block((0, 2), (1, 2))}},
    ),
    "a crowd": (
        [((0, 0, 24, 16), -1)],
        None,
        {0: {-2: block((0, 2), (0, 3))}, 1: {-2: {(0, 0)}}},
    ),
    "an object in a crowd": (
        [((0, 0, 24, 16), -1), ((0, 0, 16, 16), 6)],
        1.5,
        {0: {6: block((0, 2), (0, 2)), -2: {(0, 2), (1, 2)}}, 1: {-2: {(0, 0)}}},
    ),
    "no area": ([((10, 10, 10, 20), 3)], None, {}),
}


@pytest.mark.parametrize(("objects", "radius", "expected"), TARGETS.values(), ids=TARGETS)
def test_targets_by_hand(objects, radius, expected):
    boxes = np.float32([box for box, _ in objects]).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    targets = FCOSTargetEncoder(PYRAMID, LTRB(), (160, 160), radius)(boxes, labels)
    assert {part.dtype for part in targets["labels"]} == {tf.int32}
    assert {part.dtype for part in targets["distances"]} == {tf.float32}
    for level, (found, distances) in enumerate(zip(targets["labels"], targets["distances"], strict=True)):
        side = (20, 10, 5, 3, 2)[level]
        assert found.shape == (side, side, 1) and distances.shape == (side, side, 1, 4)
        # Points on the padding, at 160 and 192, are ignored, whatever there is.
        on_image = np.arange(side) * STRIDES[level] + STRIDES[level] // 2 < 160
        wanted = np.where(on_image & on_image[:, None], -1, -2)
        for label, cells in expected.get(level, {}).items():
            for cell in cells:
                wanted[cell] = label
        np.testing.assert_array_equal(found[..., 0], wanted)
        np.testing.assert_array_equal(np.all(np.array(distances) > 0, axis=-1), np.array(found) >= 0)
        np.testing.assert_array_equal(np.any(distances, axis=-1), np.array(found) >= 0)


@pytest.mark.parametrize(("in_strides", "unit"), [(False, 1), (True, 8)])
def test_distances_of_the_positives_by_hand(in_strides, unit):
    boxes = np.float32([(0, 0, 24, 16), (100, 100, 110, 111)])
    targets = FCOSTargetEncoder(PYRAMID, LTRB(in_strides), (160, 160))(boxes, np.array([7, 8]))
    fine = np.array(targets["distances"][0])
    np.testing.assert_array_equal(fine[1, 2, 0], np.float32([20, 12, 4, 4]) / unit)
    np.testing.assert_array_equal(fine[13, 13, 0], np.float32([8, 8, 2, 3]) / unit)
    assert np.count_nonzero(fine) == 4 * (6 + 1)


# Width of the image, whose height is 64: where its points end.
@pytest.mark.parametrize(("width", "columns"), [(20, 2), (20.0, 2), (21, 3), (32, 4), (28, 3)])
def test_points_on_the_padding_are_ignored(width, columns):
    """Also where a box reaches over the border, which rounding does."""
    encoder = FCOSTargetEncoder(PYRAMID, LTRB(), (64, 64))
    boxes = np.float32([(0, 0, width + 0.5, 64)])
    targets = encoder(boxes, np.array([9]), (64, int(width)))
    assert targets["labels"][0].shape == (8, 4, 1)
    np.testing.assert_array_equal(targets["labels"][0][:, :columns, 0], np.full((8, columns), 9))
    np.testing.assert_array_equal(targets["labels"][0][:, columns:, 0], np.full((8, 4 - columns), -2))
    assert not np.any(targets["distances"][0][:, columns:])
    lying = encoder(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), (int(width), 64))
    np.testing.assert_array_equal(np.unique(lying["labels"][0][columns:]), [-2] if columns < 4 else [])


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((5, 5, 5, 5), 1),
        ((1, 5, 4, 5), 0.5),
        ((4, 9, 1, 1), (1 / 4 * 1 / 9) ** 0.5),
        ((0, 5, 10, 5), 0),
        ((0, 0, 0, 0), 0),
        ((1e4, 1e-4, 1e4, 1e4), 1e-4),
    ],
)
def test_centerness_by_hand(distances, expected):
    np.testing.assert_allclose(centerness(np.float32([distances])), [expected], rtol=1e-5)


# --- loss ---


def logit(probability):
    return np.log(probability) - np.log1p(-np.float64(probability))


SMALL = AnchorPyramid([PointGenerator(stride) for stride in (32, 64)])  # of an image of 64 x 64: four points, and one


def loss_case(labels, distances, probabilities, predicted, centernesses):
    """Targets and outputs of five points of two images, as the two levels have them: [2, 5, ...] each."""
    labels, distances = np.int32(labels), np.float32(distances)
    targets = {
        "labels": (labels[:, :4].reshape(2, 2, 2, 1), labels[:, 4:].reshape(2, 1, 1, 1)),
        "distances": (distances[:, :4].reshape(2, 2, 2, 1, 4), distances[:, 4:].reshape(2, 1, 1, 1, 4)),
    }
    outputs = {"class_logits": logit(np.array(probabilities)), "distances": np.array(predicted)}
    outputs["centerness_logits"] = logit(np.array(centernesses))
    split = {name: np.float32(values) for name, values in outputs.items()}
    return targets, {name: (tf.constant(v[:, :4]), tf.constant(v[:, 4:])) for name, v in split.items()}


LABELS = [[1, -1, -2, -1, 0], [-1, -1, 0, -2, -2]]
ZERO, MIDDLE, SIDE = (0, 0, 0, 0), (2, 2, 2, 2), (1, 2, 4, 2)  # of centerness 0, 1 and 1 / 2
WANTED = [[MIDDLE, ZERO, ZERO, ZERO, SIDE], [ZERO, ZERO, SIDE, ZERO, ZERO]]
ODD, WILD = (1, 1, 1, 1), (1e38, 1e38, 1e38, 1e38)
PREDICTED = [[ODD, ODD, WILD, WILD, SIDE], [ODD, WILD, (1, 2, 1, 2), ODD, WILD]]
NOTHING = (1e-9, 1e-9)  # probabilities of a negative that costs nothing
PROBABILITIES = [
    [(0.2, 0.6), (0.3, 0.1), (0.999, 0.999), NOTHING, (0.9, 1e-9)],
    [(0.5, 1e-9), NOTHING, (0.7, 0.4), (0.999, 0.999), (0.999, 0.999)],
]
CENTERNESSES = [[0.8, 0.999, 0.999, 0.001, 0.5], [0.999, 0.999, 0.25, 0.999, 0.999]]


def own(p):
    return -0.25 * (1 - p) ** 2 * np.log(p)


def other(p):
    return -0.75 * p**2 * np.log(1 - p)


@pytest.mark.parametrize("giou", [False, True])
def test_loss_by_hand(giou):
    """Two positives in one image, one in the other, in both levels; of boxes 16 large, 20 and 20."""
    parts = FCOSLoss(SMALL, giou)(*loss_case(LABELS, WANTED, PROBABILITIES, PREDICTED, CENTERNESSES))
    assert tuple(parts) == FCOSLoss.parts == ("class", "box", "centerness")
    costs = [own(0.6), other(0.2), other(0.3), other(0.1), own(0.9), other(0.5), own(0.7), other(0.4)]
    np.testing.assert_allclose(parts["class"], sum(costs) / 3, rtol=1e-5)
    # Both wrong ones lie in the object.
    first, last = (1 - 5 / 17, 1 - 9 / 21) if giou else (np.log(17 / 5), np.log(21 / 9))
    np.testing.assert_allclose(parts["box"], (first + 0.5 * 0 + 0.5 * last) / (1 + 0.5 + 0.5), rtol=1e-5)
    cross_entropy = [-np.log(0.8), np.log(2), -(np.log(0.25) + np.log(0.75)) / 2]
    np.testing.assert_allclose(parts["centerness"], sum(cross_entropy) / 3, rtol=1e-5)


def test_one_positive_far_from_the_middle_counts_in_full():
    labels, wanted = [[-1] * 5, [-1, -1, 0, -1, -1]], np.zeros((2, 5, 4))
    wanted[1, 2] = (0.1, 2, 4.9, 2)
    parts = FCOSLoss(SMALL)(*loss_case(labels, wanted, PROBABILITIES, np.ones((2, 5, 4)), CENTERNESSES))
    np.testing.assert_allclose(parts["box"], -np.log((1.1 * 2 + 1) / (20 + 4 - 1.1 * 2 + 1)), rtol=1e-5)


def test_loss_without_any_positive_is_what_the_negatives_cost():
    labels, wanted = [[-1, -2, -1, -1, -1], [-2] * 5], np.zeros((2, 5, 4))
    probabilities = [[(0.3, 1e-9), (0.9, 0.9), *[NOTHING] * 3], [(0.9, 0.9)] * 5]
    targets, outputs = loss_case(labels, wanted, probabilities, PREDICTED, CENTERNESSES)
    parts = FCOSLoss(SMALL)(targets, outputs)
    np.testing.assert_allclose(parts["class"], other(0.3), rtol=1e-5)
    assert parts["box"] == parts["centerness"] == 0


@pytest.mark.parametrize("giou", [False, True])
def test_gradients_reach_what_counts_and_nothing_else(giou):
    """A negative has none for its box and centerness, an ignored location none at all, however wrong they are."""
    targets, outputs = loss_case(LABELS, WANTED, np.full((2, 5, 2), 0.4), PREDICTED, np.full((2, 5), 0.3))
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        total = sum(FCOSLoss(SMALL, giou)(targets, outputs).values())
    gradients = {name: np.concatenate(levels, axis=1) for name, levels in tape.gradient(total, outputs).items()}
    labels = np.array(LABELS)
    for found in (np.all(gradients["class_logits"], axis=-1), np.any(gradients["class_logits"], axis=-1)):
        np.testing.assert_array_equal(found, labels != -2)
    np.testing.assert_array_equal(gradients["centerness_logits"] != 0, labels >= 0)
    np.testing.assert_array_equal(np.any(gradients["distances"], axis=-1), labels >= 0)
    assert np.isfinite(gradients["distances"]).all()


# --- head ---


def test_the_head_begins_with_one_percent():
    levels = [np.zeros((1, 2, 2, 32), np.float32)]
    class_logits, distances, centerness_logits = FCOSHead(3, channels=32)(levels)
    np.testing.assert_allclose(keras.ops.sigmoid(class_logits[0]), np.full((1, 4, 3), 0.01), rtol=1e-5)
    np.testing.assert_array_equal(distances[0], np.ones((1, 4, 4)))  # exp(0) pixels
    np.testing.assert_array_equal(centerness_logits[0], np.zeros((1, 4)))
    _, distances, _ = FCOSHead(3, channels=32, improved=True)(levels)
    np.testing.assert_array_equal(distances[0], np.zeros((1, 4, 4)))


@pytest.mark.parametrize("improved", [False, True])
def test_levels_share_one_head_but_for_a_scale(improved):
    keras.utils.set_random_seed(0)
    head = FCOSHead(3, channels=32, improved=improved)
    level = np.random.default_rng(0).normal(size=(2, 3, 4, 32)).astype(np.float32)
    levels = [level, level[:, :2], level]
    head(levels)
    assert (head.scales.shape, head.scales.numpy().tolist()) == ((3,), [1, 1, 1])
    head.box_conv.bias.assign([0.5, -0.25, 0, 1])
    head.scales.assign([1, 1, 3])
    outputs = head(levels)
    assert [[part.shape for part in levels] for levels in outputs] == [
        [(2, 12, 3), (2, 8, 3), (2, 12, 3)],
        [(2, 12, 4), (2, 8, 4), (2, 12, 4)],
        [(2, 12), (2, 8), (2, 12)],
    ]
    class_logits, distances, centerness_logits = outputs
    np.testing.assert_array_equal(class_logits[0], class_logits[2])
    np.testing.assert_array_equal(centerness_logits[0], centerness_logits[2])
    expected = np.array(distances[0]) * 3 if improved else np.array(distances[0]) ** 3
    np.testing.assert_allclose(distances[2], expected, rtol=1e-4)
    assert (np.min(distances[0]) == 0) == improved
    # Two towers of four convolutions with normalisation, three last convolutions, and the scales.
    assert len(head.weights) == 2 * 4 * 4 + 3 * 2 + 1


@pytest.mark.parametrize("improved", [False, True])
def test_the_branch_of_centerness(improved):
    """It moves with the tower that it is a branch of, and only with that."""
    keras.utils.set_random_seed(0)
    head = FCOSHead(3, channels=32, improved=improved)
    level = np.random.default_rng(0).normal(size=(1, 4, 4, 32)).astype(np.float32)
    before = head([level])[2][0]
    for tower, moves in ((head.class_tower, not improved), (head.box_tower, improved)):
        first = tower[0]
        kernel = first.kernel.numpy()
        first.kernel.assign(kernel[::-1])
        assert np.any(head([level])[2][0] != before) == moves
        first.kernel.assign(kernel)


@pytest.mark.parametrize("improved", [False, True])
def test_distances_are_of_full_precision_in_half_precision(improved):
    """The scale is no number that bfloat16 has; of exp(5) it would cost a pixel."""
    head = FCOSHead(1, channels=32, improved=improved, dtype="mixed_bfloat16")
    level = [np.zeros((1, 2, 2, 32), np.float32)]
    head(level)
    head.box_conv.bias.assign([5] * 4)
    head.scales.assign([1.001])
    _, distances, _ = head(level)
    assert distances[0].dtype == tf.float32
    np.testing.assert_allclose(distances[0], np.full((1, 4, 4), 5.005 if improved else np.exp(5.005)), rtol=1e-6)


@original_only
def test_the_published_learning_rate_is_bearable_from_the_first_step(small, make_dataset):
    weights = small.get_weights()
    small.compile(keras.optimizers.SGD(0.01, momentum=0.9), run_eagerly=True)  # tracing would take longer
    batches = tfdet.validation_batches(make_dataset((64, 96, [(5, 5, 60, 60), (40, 10, 90, 50)], [0, 1])), small, 1)
    losses = small.fit(batches.repeat(), epochs=4, steps_per_epoch=1, verbose=0).history["loss"]
    small.set_weights(weights)
    assert losses[0] < 10  # an untrained box is one pixel large, of 3000: log 3000 is 8
    assert np.all(np.diff(losses) < 0)


# --- detections ---


def decode(decoder, levels, size=(100, 100)):
    """levels: for each a list of (box, probabilities, centerness). -> rows (box, score, label).

    The point is three quarters down and to the right.
    """
    outputs = {
        "class_logits": tuple(np.float32([[logit(scores) for _, scores, _ in level]]) for level in levels),
        "centerness_logits": tuple(np.float32([[logit(middle) for *_, middle in level]]) for level in levels),
        "points": tuple(
            np.float32([(x1 / 4 + x2 * 3 / 4, y1 / 4 + y2 * 3 / 4, 8) for (x1, y1, x2, y2), *_ in level])
            for level in levels
        ),
        "sizes": np.float32([size]),
    }
    boxes = [np.float32([box for box, *_ in level]) for level in levels]
    coder = LTRB()
    outputs["distances"] = tuple(coder.encode(p, b)[None] for p, b in zip(outputs["points"], boxes, strict=True))
    found = {name: np.array(value)[0] for name, value in decoder(outputs).items()}
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [(tuple(box), round(score, 4), label) for box, score, label in rows][: found["num_detections"]]


A, NEAR_A, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)

# levels of (box, probabilities of two classes, centerness), expected rows
DETECTIONS = {
    "two classes of one location": ([[(A, (0.25, 0.81), 0.64)]], [(A, 0.72, 1), (A, 0.4, 0)]),
    "a probability of 0.05 does not do": ([[(A, (0.0499, 0.0501), 0.99)]], [(A, 0.2227, 1)]),
    "it counts without the centerness": ([[(A, (0.06, 0.04), 0.01)]], [(A, 0.0245, 0)]),
    "the better of two is that nearer to the middle": (
        [[(A, (0.9, 0.01), 0.1), (NEAR_A, (0.5, 0.01), 0.5), (FAR, (0.9, 0.01), 0.4)]],
        [(FAR, 0.6, 0), (NEAR_A, 0.5, 0)],
    ),
    "of two levels": ([[(A, (0.25, 0.01), 0.25)], [(NEAR_A, (0.36, 0.01), 0.25)]], [(NEAR_A, 0.3, 0)]),
    "classes do not meet": (
        [[(A, (0.36, 0.01), 0.25), (NEAR_A, (0.01, 0.25), 0.25)]],
        [(A, 0.3, 0), (NEAR_A, 0.25, 1)],
    ),
    "an IoU of 0.6 may stay": (
        [[(A, (0.81, 0.01), 0.25), ((0, 0, 10, 6), (0.25, 0.01), 0.25)]],
        [(A, 0.45, 0), ((0, 0, 10, 6), 0.25, 0)],
    ),
    "nothing": ([[(A, (0.01, 0.01), 0.9)], [(A, (0.01, 0.01), 0.9)]], []),
}


@pytest.mark.parametrize(("levels", "expected"), DETECTIONS.values(), ids=DETECTIONS)
def test_detections_by_hand(levels, expected):
    assert decode(FCOSDecoder(LTRB()), levels) == expected


def test_other_scores_and_thresholds():
    level = [(A, (0.25, 0.04), 0.64), (FAR, (0.5, 0.3), 0.1)]
    assert decode(FCOSDecoder(LTRB(), root=False), [level]) == [(A, 0.16, 0), (FAR, 0.05, 0), (FAR, 0.03, 1)]
    torchvisions = FCOSDecoder(LTRB(), class_threshold=0.0, score_threshold=0.2)
    assert decode(torchvisions, [level]) == [(A, 0.4, 0), (FAR, 0.2236, 0)]


def test_settings_are_those_of_the_released_code():
    decoder = FCOSDecoder(LTRB())
    settings = decoder.class_threshold, decoder.score_threshold, decoder.iou_threshold, decoder.pre_nms, decoder.keep
    assert settings == (0.05, 0.0, 0.6, 1000, 100)
    assert decoder.root


def test_distances_are_decoded_and_boxes_clipped_to_each_image():
    outputs = {
        "class_logits": (np.full((2, 1, 1), 2, "float32"),),
        "centerness_logits": (np.full((2, 1), 2, "float32"),),
        "distances": (np.float32([[(1, 0.5, 9, 1)], [(0.5, 9, 1, 0.25)]]),),
        "points": (np.float32([(24, 40, 16)]),),
        "sizes": np.float32([(50, 70), (90, 30)]),
    }
    found = FCOSDecoder(LTRB(in_strides=True))(outputs)
    np.testing.assert_array_equal(found["boxes"][:, 0], [(8, 32, 70, 50), (16, 0, 30, 44)])
    np.testing.assert_array_equal(found["num_detections"], [1, 1])


@pytest.mark.parametrize(("size", "found"), [((50, 70), True), ((40, 70), False), ((50, 24), False)])
def test_a_location_beside_the_image_finds_nothing(size, found):
    outputs = {
        "class_logits": (np.full((1, 1, 1), 2, "float32"),),
        "centerness_logits": (np.full((1, 1), 2, "float32"),),
        "distances": (np.full((1, 1, 4), 20, "float32"),),
        "points": (np.float32([(24, 40, 16)]),),
        "sizes": np.float32([size]),
    }
    np.testing.assert_array_equal(FCOSDecoder(LTRB())(outputs)["num_detections"], [found])


@pytest.mark.parametrize("pre_nms", [1, 4, 10, 100])
def test_of_every_level_the_best_pairs_of_location_and_class_are_looked_at(pre_nms):
    """Levels of 12, 6 and 1 locations with 3 classes, none of which is in the way of another."""
    random = np.random.default_rng(0)
    levels = [
        [((x, y, x + 9, y + 9), random.uniform(0.06, 1, 3), random.uniform(0.1, 0.9)) for x in range(0, n, 10)]
        for y, n in [(0, 120), (20, 60), (40, 1)]
    ]
    expected = {}
    for level in levels:
        pairs = [((box, i), (p * middle) ** 0.5) for box, scores, middle in level for i, p in enumerate(scores)]
        expected.update(sorted(pairs, key=lambda pair: -pair[1])[:pre_nms])
    found = decode(FCOSDecoder(LTRB(), pre_nms=pre_nms), levels, (200, 200))
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
        for name, padding in (("labels", -2), ("distances", 0)):
            for found, expected in zip(together[name], alone[name], strict=True):
                height, width = expected.shape[1:3]
                np.testing.assert_array_equal(found[i, :height, :width], expected[0])
                rest = np.array(found[i])
                rest[:height, :width] = padding
                assert np.all(rest == padding)
        # Neither on the padding to a multiple of 32: these images end at 96, at 64 and at 83.
        height, width = [(64, 96), (96, 64), (64, 83)][i]
        for labels, stride in zip(together["labels"], STRIDES, strict=True):
            y, x, _ = np.nonzero(np.array(labels[i]) != -2)
            assert np.all((y + 0.5) * stride < height) and np.all((x + 0.5) * stride < width)
            positives += np.sum(np.array(labels[i]) >= 0)
    assert positives >= 30


def test_the_loss_does_not_see_the_padding(small, several):
    """Whatever the network says of padded places, the loss is the same."""
    images, targets = several
    outputs = small(images)
    before = small.detection_loss(targets, outputs)
    ignored = [np.array(labels == -2).reshape(3, -1) for labels in targets["labels"]]
    assert sum(part.sum() for part in ignored) > 100
    wrong = dict(outputs)
    for name in ("class_logits", "distances", "centerness_logits"):
        pairs = zip(ignored, outputs[name], strict=True)
        wrong[name] = tuple(np.where(i if values.ndim == 2 else i[..., None], 50, values) for i, values in pairs)
    after = small.detection_loss(targets, wrong)
    assert {name: float(v) for name, v in after.items()} == {name: float(v) for name, v in before.items()}


def test_detections_never_leave_the_image(small, make_dataset):
    """Of a detector that sees something everywhere, and boxes that are larger than all images."""
    weights = small.get_weights()
    small.head.class_conv.bias.assign(np.zeros(2))
    small.head.box_conv.bias.assign([5, 6, 5, 6])
    small.head.box_conv.kernel.assign(small.head.box_conv.kernel * 20)
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


def test_the_settings_of_both(small):
    improved = small.settings["improved"]
    assert [(generator.stride, generator.offset) for generator in small.pyramid.generators] == [
        (stride, 0.5) for stride in (8, 16, 32, 64, 128)
    ]
    assert list(RANGES) == [(0, 64), (64, 128), (128, 256), (256, 512), (512, float("inf"))]
    assert small.encoder.radius == (1.5 if improved else None)
    assert small.encoder.coder.in_strides == small.decoder.coder.in_strides == improved
    assert small.head.improved == improved
    assert small.detection_loss.box_loss is (tfdet.losses.giou_loss if improved else tfdet.losses.iou_loss)
    assert small.class_names == ("red", "blue") and small.head.class_conv.filters == 2


@original_only
def test_the_published_settings(small):
    model = fcos(1, small.backbone)
    assert model.class_names == ("0",)
    assert (model.resizer.short, model.resizer.long, model.settings["channels"]) == (800, 1333, 256)
    assert model.augmentation.short_sides == (800,)
    assert model.encoder.largest == (1333, 1333)
    assert model.neck.extras[0].kernel.shape == (3, 3, 256, 256)  # P6 is made of P5; C5 has 128 channels here
    assert not model.settings["improved"]


@original_only
def test_five_levels_from_p3_to_p7(small):
    outputs = small.compute_output_spec(keras.Input((256, 320, 3)))
    counts = [32 * 40, 16 * 20, 8 * 10, 4 * 5, 2 * 3]
    assert [level.shape[1:] for level in outputs["class_logits"]] == [(n, 2) for n in counts]
    assert [level.shape[1:] for level in outputs["distances"]] == [(n, 4) for n in counts]
    assert [level.shape[1:] for level in outputs["centerness_logits"]] == [(n,) for n in counts]
    assert [level.shape for level in small.pyramid(256, 320)] == [(n, 3) for n in counts]


def test_settings_of_ones_own_are_saved(tmp_path):
    keras.utils.set_random_seed(0)
    more = {"channels": 32, "improved": True, "offset": 0.25, "fitted": True, "thresholds": (0.1, 0.3)}
    model = FCOS(backbones.build("resnet_slim"), ("dog",), (48, 64), 96, **more, name="mine")
    model.head.scales.assign([1, 2, 3, 4, 5])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config, expected = ({k: v for k, v in m.get_config().items() if k != "backbone"} for m in (loaded, model))
    assert config == expected
    assert loaded.name == "mine" and loaded.class_names == ("dog",)
    assert (loaded.resizer.short, loaded.resizer.long) == (64, 96)
    assert (loaded.augmentation.short_sides, loaded.augmentation.long_side) == ((48, 64), 96)
    assert (loaded.decoder.class_threshold, loaded.decoder.score_threshold) == (0.1, 0.3)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    for found, expected in zip(tf.nest.flatten(loaded(image)), tf.nest.flatten(model(image)), strict=True):
        np.testing.assert_array_equal(found, expected)
    # P6 has two cells in 96 pixels, 48 apart, not 64.
    np.testing.assert_array_equal(loaded.pyramid(96, 96)[3][:2], [(12, 12, 64), (60, 12, 64)])
