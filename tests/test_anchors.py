import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.anchors import AnchorGenerator, PriorBox, ssd_sizes

ROOT2, ROOT3 = math.sqrt(2), math.sqrt(3)


def around(x, y, width, height):
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def test_the_priors_of_one_cell_by_hand():
    prior = PriorBox(60, 111, (2, 3), step=16)
    assert prior.num_priors == 6
    middle = math.sqrt(60 * 111)  # 81.609
    expected = [
        around(8, 8, 60, 60),
        around(8, 8, middle, middle),
        around(8, 8, 60 * ROOT2, 60 / ROOT2),
        around(8, 8, 60 / ROOT2, 60 * ROOT2),
        around(8, 8, 60 * ROOT3, 60 / ROOT3),
        around(8, 8, 60 / ROOT3, 60 * ROOT3),
    ]
    np.testing.assert_allclose(prior((1, 1)), expected, rtol=1e-6)


def test_cells_go_row_by_row():
    boxes = np.array(PriorBox(30, 60, (2,), step=8)((2, 3)))
    assert boxes.shape == (2 * 3 * 4, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres[::4], [(4, 4), (12, 4), (20, 4), (4, 12), (12, 12), (20, 12)], rtol=1e-6)
    np.testing.assert_allclose(boxes[0], (-11, -11, 19, 19))
    np.testing.assert_allclose(boxes[4], (-3, -11, 27, 19))
    np.testing.assert_allclose(boxes[-1], around(20, 12, 30 / ROOT2, 30 * ROOT2), rtol=1e-6)


def test_offset_moves_the_centre_inside_the_cell():
    boxes = PriorBox(2, 8, (), step=10, offset=0.25)((1, 2))
    np.testing.assert_allclose(boxes[0], around(2.5, 2.5, 2, 2))
    np.testing.assert_allclose(boxes[3], around(12.5, 2.5, 4, 4))


def test_largest_cuts_the_sides():
    boxes = PriorBox(261, 315, (2,), step=300, largest=300)((1, 1))
    middle = math.sqrt(261 * 315)
    sides = [(261, 261), (middle, middle), (300, 261 / ROOT2), (261 / ROOT2, 300)]
    np.testing.assert_allclose(boxes, [around(150, 150, *side) for side in sides], rtol=1e-6, atol=1e-4)


def test_only_the_size_of_a_feature_map_matters():
    prior = PriorBox(30, 60, (2,), step=8)
    expected = np.array(prior((5, 7)))
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(prior(np.ones((2, 5, 7, 3), np.float32)), expected)
    symbolic = prior(keras.Input((5, 7, 3)))
    assert symbolic.shape == (5 * 7 * 4, 4)
    model_input = keras.Input((5, 7, 3))
    in_a_model = keras.Model(model_input, prior(model_input))(np.ones((1, 5, 7, 3), np.float32))
    np.testing.assert_array_equal(in_a_model, expected)


def test_priors_stay_in_float32_under_mixed_precision():
    boxes = PriorBox(264, 315, (2,), step=300, dtype="mixed_bfloat16")((1, 1))
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[0], around(150, 150, 264, 264))


def test_serialization():
    prior = PriorBox(60, 111, (2, 3), step=16, offset=0.4, largest=90, name="level")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prior))
    assert again.name == "level"
    np.testing.assert_array_equal(again((3, 2)), prior((3, 2)))


# Caffe's released models: min sizes, then the last max size. See weiliu89/caffe, examples/ssd.
RELEASED = {
    "SSD300 VOC": ((300, 6, 0.1, 0.2), (30, 60, 111, 162, 213, 264), 315),
    "SSD300 COCO": ((300, 6, 0.07, 0.15), (21, 45, 99, 153, 207, 261), 315),
    "SSD512 VOC": ((512, 7, 0.07, 0.15), (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8), 537.6),
    "SSD512 COCO": ((512, 7, 0.04, 0.1), (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8), 542.72),
}


@pytest.mark.parametrize(("arguments", "min_sizes", "last"), RELEASED.values(), ids=RELEASED)
def test_sizes_of_the_released_models(arguments, min_sizes, last):
    low, high = ssd_sizes(*arguments)
    np.testing.assert_allclose(low, min_sizes, rtol=1e-9)
    np.testing.assert_allclose(high, (*min_sizes[1:], last), rtol=1e-9)


def test_sizes_by_the_formula_of_the_paper():
    low, high = ssd_sizes(300, 6, 0.1, 0.2, floor_step=False)
    np.testing.assert_allclose(low, (30, 60, 112.5, 165, 217.5, 270))
    np.testing.assert_allclose(high, (60, 112.5, 165, 217.5, 270, 322.5))


def test_the_nine_anchors_of_faster_rcnn_by_hand():
    generator = AnchorGenerator((128, 256, 512), (0.5, 1, 2), stride=16)
    assert generator.num_anchors == 9
    flat = [around(0, 0, size * ROOT2, size / ROOT2) for size in (128, 256, 512)]  # 181.02 x 90.51, ...
    square = [around(0, 0, size, size) for size in (128, 256, 512)]
    tall = [around(0, 0, size / ROOT2, size * ROOT2) for size in (128, 256, 512)]
    np.testing.assert_allclose(generator((1, 1)), flat + square + tall, rtol=1e-6)
    np.testing.assert_allclose(generator((2, 3))[9 * 5], around(32, 16, 128 * ROOT2, 128 / ROOT2), rtol=1e-6)


def test_anchors_go_row_by_row_from_the_corner_of_the_image():
    boxes = np.array(AnchorGenerator((4,), (1, 4), stride=10)((2, 3)))
    assert boxes.dtype == np.float32
    centres = [(0, 0), (10, 0), (20, 0), (0, 10), (10, 10), (20, 10)]
    np.testing.assert_allclose(boxes[::2], [around(x, y, 4, 4) for x, y in centres])
    np.testing.assert_allclose(boxes[1::2], [around(x, y, 2, 8) for x, y in centres])
    middle = np.array(AnchorGenerator((4,), (1, 4), stride=10, offset=0.5)((2, 3)))
    np.testing.assert_allclose(middle, boxes + 5)


@pytest.mark.parametrize(
    ("size_major", "sides"),
    [
        (False, [(4, 1), (8, 2), (1, 4), (2, 8)]),
        (True, [(4, 1), (1, 4), (8, 2), (2, 8)]),
    ],
)
def test_order_of_sizes_and_ratios(size_major, sides):
    generator = AnchorGenerator((2, 4), (0.25, 4), stride=8, size_major=size_major)
    np.testing.assert_allclose(generator((1, 2)), [around(x, 0, *side) for x in (0, 8) for side in sides])


# Upper left corners that torchvision 0.28's AnchorGenerator gives; the lower right ones are the same with a plus.
TORCHVISION = {
    "one level of RetinaNet": ((32, 40, 50), [(23, 11), (28, 14), (35, 18), (16, 16), (20, 20), (25, 25), (11, 23)]),
    "Faster R-CNN on one map": ((128, 256, 512), [(91, 45), (181, 91), (362, 181), (64, 64), (128, 128), (256, 256)]),
    "halves go to even": ((101, 203), [(71, 36), (144, 72), (50, 50), (102, 102), (36, 71), (72, 144)]),
}


@pytest.mark.parametrize(("sizes", "halves"), TORCHVISION.values(), ids=TORCHVISION)
def test_rounded_as_torchvision(sizes, halves):
    boxes = np.array(AnchorGenerator(sizes, (0.5, 1, 2), stride=16, rounded=True)((1, 1)))
    np.testing.assert_array_equal(boxes[: len(halves)], [(-x, -y, x, y) for x, y in halves])


def test_numbers_of_anchors():
    """Of the detectors' pyramids on an image of 512 x 512."""
    fpn = [AnchorGenerator((8 * stride,), (0.5, 1, 2), stride) for stride in (4, 8, 16, 32, 64)]
    assert sum(len(level((512 // level.stride, 512 // level.stride))) for level in fpn) == 65472
    octaves = [2 ** (k / 3) for k in range(3)]
    retinanet = [AnchorGenerator([4 * s * o for o in octaves], (0.5, 1, 2), s) for s in (8, 16, 32, 64, 128)]
    assert sum(len(level((512 // level.stride, 512 // level.stride))) for level in retinanet) == 49104
    sides = np.array(retinanet[0]((1, 1)))[3:6]
    np.testing.assert_allclose(sides, [around(0, 0, s, s) for s in (32, 40.31747, 50.79683)], rtol=1e-6)


def test_anchors_of_a_map_whose_size_is_known_at_run_time_only():
    generator = AnchorGenerator((4, 8), (0.5, 1, 2), stride=8, offset=0.5)
    expected = np.array(generator((3, 5)))
    of_a_map = tf.function(generator, [tf.TensorSpec([None, None, None, 2])])
    np.testing.assert_array_equal(of_a_map(np.zeros((2, 3, 5, 2), np.float32)), expected)
    np.testing.assert_array_equal(of_a_map(np.zeros((1, 1, 1, 2), np.float32)), generator((1, 1)))
    of_a_size = tf.function(lambda h, w: generator((h, w)), [tf.TensorSpec([], tf.int32)] * 2)
    np.testing.assert_array_equal(of_a_size(3, 5), expected)
    inputs = keras.Input((None, None, 2))
    assert generator(inputs).shape == (None, 4)
    in_a_model = keras.Model(inputs, generator(inputs))
    np.testing.assert_array_equal(in_a_model(np.zeros((1, 3, 5, 2), np.float32)), expected)


def test_anchors_stay_in_float32_under_mixed_precision():
    generator = AnchorGenerator((301,), (1,), stride=301, dtype="mixed_bfloat16")
    boxes = generator(tf.zeros((1, 1, 3, 1), tf.bfloat16))
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes[2], around(602, 0, 301, 301))


def test_serialization_of_anchors():
    generator = AnchorGenerator((8, 9), (0.5, 3), 16, offset=0.5, size_major=True, rounded=True, name="level")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(generator))
    assert again.name == "level"
    assert again.num_anchors == 4
    np.testing.assert_array_equal(again((3, 2)), generator((3, 2)))
