import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.anchors import AnchorGenerator, AnchorPyramid, PointGenerator, PriorBox, inside, per_anchor, ssd_sizes

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


# Stride and offset of the generator, the strides that are asked for (vertical, horizontal) -> centres of 2 x 3 cells.
STRIDES = {
    "its own": (10, 0.0, None, [(0, 0), (10, 0), (20, 0), (0, 10), (10, 10), (20, 10)]),
    "others": (10, 0.0, (7, 11), [(0, 0), (11, 0), (22, 0), (0, 7), (11, 7), (22, 7)]),
    "the offset is in cells of these": (10, 0.5, (8, 12), [(6, 4), (18, 4), (30, 4), (6, 12), (18, 12), (30, 12)]),
}


@pytest.mark.parametrize(("stride", "offset", "strides", "centres"), STRIDES.values(), ids=STRIDES)
def test_strides_that_are_not_the_generators_own(stride, offset, strides, centres):
    generator = AnchorGenerator((5,), (1,), stride, offset, rounded=True)  # half of 5 goes to the even 2
    np.testing.assert_array_equal(generator((2, 3), strides), [around(x, y, 4, 4) for x, y in centres])


def pyramid(*strides, fitted=False):
    """Of two anchors a cell, as wide as the stride, and half as wide and twice as high."""
    return AnchorPyramid([AnchorGenerator((stride,), (1, 4), stride) for stride in strides], fitted)


def steps(anchors):
    """(vertical, horizontal) between the first two cells of a level; nan where there is only one."""
    middle = np.unique((anchors[:, :2] + anchors[:, 2:]) / 2, axis=0)
    x, y = np.unique(middle[:, 0]), np.unique(middle[:, 1])
    return tuple(values[1] if len(values) > 1 else np.nan for values in (y, x))


# Height and width of an image -> sizes of the maps of strides 32, 64 and 128, and torchvision's strides there (nan: a
# single cell shows none).
MAPS = {
    "each division is exact": ((256, 384), [(8, 12), (4, 6), (2, 3)], [(32, 32), (64, 64), (128, 128)]),
    "padded to such a size": ((230, 353), [(8, 12), (4, 6), (2, 3)], [(32, 32), (64, 64), (128, 128)]),
    "not exact": ((800, 1333), [(25, 42), (13, 21), (7, 11)], [(32, 32), (61, 64), (114, 122)]),
    "odd at every level": ((224, 672), [(7, 21), (4, 11), (2, 6)], [(32, 32), (56, 61), (112, 112)]),
    "a single cell": ((1, 1), [(1, 1)] * 3, [(np.nan, np.nan)] * 3),
    "a row": ((20, 100), [(1, 4), (1, 2), (1, 1)], [(np.nan, 32), (np.nan, 64), (np.nan, np.nan)]),
}


@pytest.mark.parametrize(("size", "maps", "fitted"), MAPS.values(), ids=MAPS)
def test_a_pyramid_for_an_image_of_any_size(size, maps, fitted):
    levels = zip((32, 64, 128), maps, pyramid(32, 64, 128)(*size), strict=True)
    for stride, (height, width), level in levels:
        np.testing.assert_array_equal(level, AnchorGenerator((stride,), (1, 4), stride)((height, width)))

    levels = zip(maps, fitted, pyramid(32, 64, 128)(*size), pyramid(32, 64, 128, fitted=True)(*size), strict=True)
    for (height, width), strides, level, moved in levels:
        assert moved.shape == (height * width * 2, 4)
        np.testing.assert_array_equal(steps(np.array(moved)), strides)
        np.testing.assert_allclose(moved[:2], level[:2])  # only the centres move


def test_the_last_anchor_of_torchvisions_last_level():
    """RetinaNet's P7 on 800 x 1344 pixels: 7 x 11 cells, 114 and 122 pixels apart."""
    generator = AnchorGenerator((512,), (1,), 128)
    (level,) = AnchorPyramid([generator], fitted=True)(800, 1344)
    np.testing.assert_array_equal(level[-1], around(1220, 684, 512, 512))
    (level,) = AnchorPyramid([generator])(800, 1344)
    np.testing.assert_array_equal(level[-1], around(1280, 768, 512, 512))


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("known", ["neither", "height", "width"])
def test_a_pyramid_in_a_graph_that_does_not_know_the_size(fitted, known):
    """Or one side of it only: what a step is traced for after images of another width."""
    levels, number = pyramid(32, 64, fitted=fitted), tf.TensorSpec([], tf.int32)
    for height, width in ((100, 333), (31, 65)):
        traced = {
            "neither": lambda h, w: tf.function(levels, [number, number])(h, w),
            "height": lambda h, w: tf.function(lambda w: levels(h, w), [number])(w),
            "width": lambda h, w: tf.function(lambda h: levels(h, w), [number])(h),
        }[known]
        for level, expected in zip(traced(height, width), levels(height, width), strict=True):
            np.testing.assert_array_equal(level, expected)


# Boxes, on an image that is 40 high and 60 wide -> its centre is inside, it is inside as a whole.
INSIDE = {
    "in the middle": ((10, 10, 20, 20), True, True),
    "the whole image": ((0, 0, 60, 40), True, True),
    "over the left border": ((-1, 10, 20, 20), True, False),
    "over the upper border": ((10, -0.5, 20, 20), True, False),
    "over the right border": ((50, 10, 61, 20), True, False),
    "over the lower border": ((10, 30, 20, 40.5), True, False),
    "larger than the image": ((-100, -100, 150, 130), True, False),
    "its centre on the corner": ((-10, -10, 10, 10), True, False),
    "its centre on the other corner": ((50, 30, 70, 50), True, False),
    "its centre left of it": ((-11, 10, 10, 20), False, False),
    "its centre above it": ((10, -11, 20, 10), False, False),
    "its centre right of it": ((51, 10, 70, 20), False, False),
    "its centre below it": ((10, 31, 20, 50), False, False),
    "inside if height and width were exchanged": ((10, 45, 30, 55), False, False),
    "far away": ((100, 100, 110, 110), False, False),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", [int, np.int32, np.float32])
def test_which_anchors_are_on_the_image(whole, kind):
    boxes, by_centre, as_a_whole = zip(*INSIDE.values(), strict=True)
    found = inside(np.float32(boxes), kind(40), kind(60), whole=whole)
    expected = as_a_whole if whole else by_centre
    assert dict(zip(INSIDE, np.array(found).tolist(), strict=True)) == dict(zip(INSIDE, expected, strict=True))


def test_a_list_of_anchors_splits_into_maps_and_back():
    levels, size = pyramid(16, 32, 64), (50, 70)  # padded: 64 x 96; maps 4 x 6, 2 x 3, 1 x 2
    numbers = np.arange((24 + 6 + 2) * 2)
    maps = levels.split(numbers, *size)
    assert [m.shape for m in maps] == [(4, 6, 2), (2, 3, 2), (1, 2, 2)]
    np.testing.assert_array_equal(maps[0][1, 2], (16, 17))  # row 1, column 2: cell 8
    np.testing.assert_array_equal(maps[1][1, 0], (54, 55))  # 24 cells, then cell 3
    np.testing.assert_array_equal(maps[2][0], [(60, 61), (62, 63)])
    np.testing.assert_array_equal(levels.join([m[None] for m in maps]), [numbers])

    boxes = np.random.default_rng(0).normal(size=(2, 64, 4)).astype(np.float32)
    both = [levels.split(image, *size) for image in boxes]
    assert [m.shape for m in both[0]] == [(4, 6, 2, 4), (2, 3, 2, 4), (1, 2, 2, 4)]
    np.testing.assert_array_equal(levels.join([np.stack(pair) for pair in zip(*both, strict=True)], 4), boxes)


def test_a_map_is_split_where_its_generator_says():
    """Levels with another number of anchors a cell."""
    levels = AnchorPyramid([AnchorGenerator((8,), (1,), 16), AnchorGenerator((8, 16), (1, 2), 32)])
    values = np.arange(4 + 4)
    maps = levels.split(values, 32, 32)
    assert [m.shape for m in maps] == [(2, 2, 1), (1, 1, 4)]
    np.testing.assert_array_equal(levels.join([m[None] for m in maps]), [values])


def test_maps_of_images_that_differ_in_size_still_fit_the_anchors_of_their_batch():
    """Padded map by map: anchor n of the batch is then what it was in its own image, or one on the padding."""
    levels, sizes = pyramid(16, 32, 64), ((64, 160), (150, 90))
    batch = np.concatenate(levels(160, 160))
    maps = [levels.split(np.concatenate(levels(*size)), *size) for size in sizes]
    for own in maps:
        padded = []
        for level, (height, width) in zip(own, ((10, 10), (5, 5), (3, 3)), strict=True):
            room = [(0, height - level.shape[0]), (0, width - level.shape[1]), (0, 0), (0, 0)]
            padded.append(np.pad(level, room, constant_values=np.nan)[None])
        (joined,) = np.array(levels.join(padded, 4))
        is_own = ~np.isnan(joined)
        assert is_own.sum() == sum(np.size(level) for level in own)
        np.testing.assert_array_equal(joined[is_own], batch[is_own])


def test_points_by_hand():
    middle = PointGenerator(8)
    assert middle.num_anchors == 1
    rows = [(4, 4, 8), (12, 4, 8), (20, 4, 8), (4, 12, 8), (12, 12, 8), (20, 12, 8)]
    np.testing.assert_array_equal(middle((2, 3)), rows)
    np.testing.assert_array_equal(middle(np.zeros((5, 2, 3, 7), np.float32)), rows)
    corner = PointGenerator(8, offset=0)
    np.testing.assert_array_equal(corner((2, 2)), [(0, 0, 8), (8, 0, 8), (0, 8, 8), (8, 8, 8)])
    # The steps are others (vertical, horizontal), the stride stays.
    np.testing.assert_array_equal(corner((2, 2), (6, 7)), [(0, 0, 8), (7, 0, 8), (0, 6, 8), (7, 6, 8)])
    assert PointGenerator(8, dtype="mixed_bfloat16")((1, 200)).dtype == np.float32
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(PointGenerator(16, 0.25)))
    np.testing.assert_array_equal(again((1, 1)), [(4, 4, 16)])


def test_a_pyramid_of_points():
    levels = AnchorPyramid([PointGenerator(stride) for stride in (16, 32)])
    fine, coarse = levels(40, 60)  # padded: 64 x 64
    assert fine.shape == (16, 3)
    np.testing.assert_array_equal(coarse, [(16, 16, 32), (48, 16, 32), (16, 48, 32), (48, 48, 32)])
    assert [m.shape for m in levels.split(np.zeros((20, 4)), 40, 60)] == [(4, 4, 1, 4), (2, 2, 1, 4)]
    fitted = AnchorPyramid([PointGenerator(64, 0)], fitted=True)
    np.testing.assert_array_equal(fitted(96, 40)[0], [(0, 0, 64), (0, 48, 64)])


def test_what_a_network_says_of_each_anchor():
    """Two anchors in each of 1 x 2 cells, three channels."""
    feature_map = tf.reshape(tf.range(12, dtype=tf.bfloat16), (1, 1, 2, 6))
    found = per_anchor(feature_map, 3)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, [[(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]])
    np.testing.assert_array_equal(per_anchor(feature_map, 1)[0, :, 0], np.arange(12))
