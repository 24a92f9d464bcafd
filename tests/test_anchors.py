import math

import keras
import numpy as np
import pytest

from tfdet.anchors import PriorBox, ssd_sizes

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
