import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet import rois

RULES = [(ratio, aligned) for ratio in (1, 2, 3, 0) for aligned in (True, False)]


def box(width, height):
    return 10, 20, 10 + width, 20 + height


LEVELS = {
    "canonical": (box(224, 224), 4),
    "just below": (box(223.9, 224), 3),
    "half": (box(112, 112), 3),
    "half but for rounding": ((0, 0, 112, 111.9999), 3),
    "less than half": (box(112, 111.99), 2),
    "area counts, not shape": (box(56, 224), 3),
    "double": (box(448, 448), 5),
    "less than double": (box(448, 447.9), 4),
    "beyond the last level": (box(3000, 3000), 5),
    "below the first": (box(1, 1), 2),
    "padding": ((0, 0, 0, 0), 2),
    "without width": (box(0, 500), 2),
    "upside down": (box(300, -300), 2),
    "not a number": ((np.nan, 0, 9, 9), 2),
}


@pytest.mark.parametrize(("corners", "level"), LEVELS.values(), ids=LEVELS)
def test_roi_levels(corners, level):
    found = rois.roi_levels(np.float32([[corners]]))
    assert (found.shape, found.dtype) == ((1, 1), tf.int32)
    assert int(found[0, 0]) == level


def test_roi_levels_of_another_pyramid():
    boxes = np.float32([box(side, side) for side in (8, 32, 64, 128, 512, 2000)])
    found = rois.roi_levels(boxes, k0=5, canonical=128, min_level=3, max_level=7)
    assert np.array(found).tolist() == [3, 3, 4, 5, 7, 7]


def ramps(height=8, width=8):
    """A map whose two channels are the column and the row; a bin of it is its centre."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows], axis=-1)[None].astype("float32")


# (box, aligned): the columns and the rows of 2 x 2 bins, in a map of stride 4.
CENTRES = {
    "shifted": ((8, 4, 24, 20), True, (2.5, 4.5), (1.5, 3.5)),
    "not shifted": ((8, 4, 24, 20), False, (3, 5), (2, 4)),
    "no area, shifted": ((8, 12, 8, 12), True, (1.5, 1.5), (2.5, 2.5)),
    "no area is a pixel": ((8, 12, 8, 12), False, (2.25, 2.75), (3.25, 3.75)),
    "less than a pixel": ((8, 12, 9, 28), False, (2.25, 2.75), (4, 6)),
    "less than a pixel, shifted": ((8, 12, 9, 28), True, (1.5625, 1.6875), (3.5, 5.5)),
}


@pytest.mark.parametrize("sampling_ratio", [1, 2, 5])
@pytest.mark.parametrize(("corners", "aligned", "columns", "rows"), CENTRES.values(), ids=CENTRES)
def test_bins_of_a_ramp_are_their_centres(corners, aligned, columns, rows, sampling_ratio):
    found = rois.roi_align(ramps(), np.float32([[corners]]), 2, 4, sampling_ratio, aligned)
    assert found.shape == (1, 1, 2, 2, 2)
    np.testing.assert_allclose(found[0, 0, :, :, 0], [columns, columns], rtol=1e-6)
    np.testing.assert_allclose(found[0, 0, :, :, 1], np.transpose([rows, rows]), rtol=1e-6)


# In a map of ones, 4 x 4 and of stride 1, the mean is the share of points that are not beyond the border. The boxes
# begin at x1 and end at x2, and in the other direction they are inside. One row of 2 bins, 2 points each.
BORDERS = {
    "inside": (0, 4, 1, 1),
    "at -3, -1, 1 and 3: one beyond": (-4, 4, 0.5, 1),
    "at -3.04, -1.01, 1.01, 3.04: two beyond": (-4.05, 4.05, 0, 1),
    "at 3.5, 4, 4.5, 5: the border itself counts": (3.25, 5.25, 1, 0),
    "outside": (6, 9, 0, 0),
    "far outside": (-5000, -4000, 0, 0),
}


@pytest.mark.parametrize(("x1", "x2", "first", "second"), BORDERS.values(), ids=BORDERS)
def test_points_beyond_the_border_are_zero(x1, x2, first, second):
    boxes = np.float32([[(x1, 0, x2, 4), (0, x1, 4, x2)]])
    found = rois.roi_align(np.ones((1, 4, 4, 1), "float32"), boxes, 2, 1, 2, aligned=False)
    np.testing.assert_allclose(found[0, 0, :, :, 0], [(first, second)] * 2, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1, :, :, 0], np.transpose([(first, second)] * 2), rtol=1e-6)


def test_points_up_to_a_pixel_outside_read_the_edge():
    """Columns 0 .. 3 of stride 1; the points are at -0.75, -0.25, 0.25, 0.75 and at 2.25, 2.75, 3.25, 3.75."""
    boxes = np.float32([[(-1, 0, 1, 4), (2, 0, 4, 4)]])
    found = rois.roi_align(ramps(4, 4), boxes, 2, 1, 2, aligned=False)
    np.testing.assert_allclose(found[0, :, 0, :, 0], [(0, 0.5), (2.5, 3)], rtol=1e-6)


def test_adaptive_points_are_at_most_a_pixel_apart():
    """In squares of columns: 3 pixels take points at 1.5, 2.5 and 3.5; 2.4 take 3 as well, at 1.4, 2.2 and 3."""
    boxes = np.float32([[(1, 0, 4, 8), (1, 0, 3.4, 8), (1, 0, 3, 8)]])
    found = rois.roi_align(np.square(ramps()), boxes, 1, 1, 0, aligned=False)
    expected = [(2.5 + 6.5 + 12.5) / 3, (2.2 + 5 + 9) / 3, (2.5 + 6.5) / 2]
    np.testing.assert_allclose(found[0, :, 0, 0, 0], expected, rtol=1e-6)
    for same in (None, -1):
        np.testing.assert_array_equal(rois.roi_align(np.square(ramps()), boxes, 1, 1, same, aligned=False), found)


def test_adaptive_and_aligned_a_box_without_area_has_no_points():
    found = rois.roi_align(ramps(), np.float32([[(8, 8, 8, 8), (8, 8, 8, 20), (20, 20, 8, 8)]]), 3, 4, 0, aligned=True)
    np.testing.assert_array_equal(found, np.zeros((1, 3, 3, 3, 2)))


# torchvision 0.28, roi_align of sin(0.14 * row * column + row - 0.3 * column), 12 x 16, stride 4, 2 x 2 bins.
BOXES = [(3, 5, 50, 40), (20, 10, 24, 13), (-30, -20, 200, 150), (60, 44, 70, 47), (10, 10, 10, 10)]
TORCHVISION = {
    (2, True): [
        (-0.01384, 0.41753, 0.17084, -0.23166),
        (0.68973, 0.68229, 0.1799, 0.15113),
        (0.02579, 0.0, 0.0, 0.0),
        (-0.32484, 0.0, -0.85906, 0.0),
        (0.92521, 0.92521, 0.92521, 0.92521),
    ],
    (2, False): [
        (0.08918, 0.34373, 0.06496, 0.01705),
        (-0.11446, -0.15273, -0.54883, -0.56659),
        (-0.12846, 0.0, 0.0, 0.0),
        (-0.97011, 0.0, -0.97011, 0.0),
        (0.09239, 0.04947, -0.38872, -0.43037),
    ],
    (0, True): [
        (0.03747, 0.06492, 0.09495, -0.03931),
        (0.68973, 0.68229, 0.1799, 0.15113),
        (-0.0036, 0.0, 0.0, 0.0),
        (-0.32484, 0.0, -0.88718, 0.0),
        (0.0, 0.0, 0.0, 0.0),
    ],
    (0, False): [
        (0.0291, 0.11945, 0.051, -0.06386),
        (-0.11446, -0.15273, -0.54883, -0.56659),
        (-0.00718, 0.0, 0.0, 0.0),
        (-0.97011, 0.0, -0.97011, 0.0),
        (0.09239, 0.04947, -0.38872, -0.43037),
    ],
}


@pytest.mark.parametrize("rule", TORCHVISION)
def test_same_as_torchvision(rule):
    rows, columns = np.mgrid[:12, :16]
    features = np.sin(0.14 * rows * columns + rows - 0.3 * columns)[None, :, :, None].astype("float32")
    found = rois.roi_align(features, np.float32([BOXES]), 2, 4, *rule)
    np.testing.assert_allclose(np.reshape(found, (5, 4)), TORCHVISION[rule], atol=1e-5)


def by_loops(features, boxes, bins, stride, ratio, aligned):
    """RoIAlign point by point."""

    def read(image, y, x):
        if not (-1 <= y <= image.shape[0] and -1 <= x <= image.shape[1]):
            return 0
        y, x = np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
        y, x = y - top, x - left
        upper = (1 - x) * image[top, left] + x * image[top, right]
        lower = (1 - x) * image[bottom, left] + x * image[bottom, right]
        return (1 - y) * upper + y * lower

    result = np.zeros((*boxes.shape[:2], bins, bins, features.shape[-1]))
    for b, r in np.ndindex(*boxes.shape[:2]):
        x1, y1, x2, y2 = boxes[b, r].astype(float) / stride - 0.5 * aligned
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        across, down = (ratio, ratio) if ratio else (int(np.ceil(side / bins)) for side in (width, height))
        for i, j in np.ndindex(bins, bins):
            for k, n in np.ndindex(down, across):
                y, x = y1 + (i + (k + 0.5) / down) * height / bins, x1 + (j + (n + 0.5) / across) * width / bins
                result[b, r, i, j] += read(features[b], y, x) / (down * across)
    return result


def random_boxes(rng, batch, count, extent):
    """Of all sizes, from a fraction of a pixel to more than the image, some partly or wholly outside."""
    corners = rng.uniform(-0.3 * extent, extent, (batch, count, 2))
    sizes = np.exp(rng.uniform(np.log(0.1), np.log(1.5 * extent), (batch, count, 2)))
    return np.concatenate([corners, corners + sizes], axis=-1).astype("float32")


@pytest.mark.parametrize(("ratio", "aligned"), RULES)
@pytest.mark.parametrize(("height", "width", "bins"), [(9, 13, 3), (1, 5, 2), (6, 1, 1)])
def test_same_as_the_loops(ratio, aligned, height, width, bins):
    rng = np.random.default_rng(height)
    features = rng.normal(size=(2, height, width, 3)).astype("float32")
    boxes = random_boxes(rng, 2, 12, 4 * width)
    boxes[:, 0] = 0
    found = rois.roi_align(features, boxes, bins, 4, ratio, aligned)
    np.testing.assert_allclose(found, by_loops(features, boxes, bins, 4, ratio, aligned), atol=1e-5)


@pytest.mark.parametrize(("ratio", "aligned"), RULES)
def test_gradient(ratio, aligned):
    """RoIAlign is linear: what a change of the features changes in the result is what their gradient says."""
    rng = np.random.default_rng(0)
    boxes = tf.constant(random_boxes(rng, 2, 9, 40))
    features, change = (rng.normal(size=(2, 7, 10, 3)) for _ in range(2))
    upstream = rng.normal(size=(2, 9, 3, 3, 3))
    with tf.GradientTape() as tape:
        features = tf.constant(features)
        tape.watch([features, boxes])
        result = rois.roi_align(features, boxes, 3, 4, ratio, aligned)
    gradient, of_boxes = tape.gradient(result, [features, boxes], upstream)
    assert of_boxes is None
    for pixel in [(0, 0, 0, 1), (1, 3, 4, 0), (1, 6, 9, 2)]:
        moved = features.numpy()
        moved[pixel] += 1
        difference = np.sum((rois.roi_align(moved, boxes, 3, 4, ratio, aligned) - result) * upstream)
        np.testing.assert_allclose(gradient.numpy()[pixel], difference, atol=1e-5)
    difference = np.sum((rois.roi_align(features + change, boxes, 3, 4, ratio, aligned) - result) * upstream)
    np.testing.assert_allclose(np.sum(gradient * change), difference, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("float64", 1e-5)])
def test_result_and_gradient_have_the_dtype_of_the_features(dtype, tolerance):
    """The coordinates stay float32: half precision does not know the box at 2049."""
    rng = np.random.default_rng(0)
    features = tf.cast(rng.uniform(-1, 1, (1, 4, 300, 2)), dtype)
    boxes = tf.constant([[(2049.0, 1.0, 2051.0, 30.0), (3.3, 2.2, 99.9, 20.1)]])
    with tf.GradientTape() as tape:
        tape.watch(features)
        found = rois.roi_align(features, boxes, 2, 8, 2, aligned=True)
    assert found.dtype == features.dtype == tape.gradient(found, features).dtype
    expected = by_loops(tf.cast(features, "float32").numpy(), boxes.numpy(), 2, 8, 2, True)
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, atol=tolerance)


def test_double_precision_is_kept():
    value = 1 + 1e-12
    found = rois.roi_align(np.full((1, 4, 4, 1), value), np.float32([[(0, 0, 4, 4)]]), 2, 1, 1, aligned=False)
    np.testing.assert_array_equal(found, np.full((1, 1, 2, 2, 1), value))


@pytest.mark.parametrize("ratio", [2, 0])
def test_unknown_numbers_of_images_and_boxes_and_none_of_them(ratio):
    """One graph for all, with the gradient."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])])
    def run(features, boxes):
        with tf.GradientTape() as tape:
            tape.watch(features)
            result = rois.roi_align(features, boxes, 2, 4, ratio, aligned=False)
        assert result.shape.as_list() == [None, None, 2, 2, 3]
        return result, tape.gradient(result, features)

    rng = np.random.default_rng(0)
    for batch, count, height in [(2, 5, 7), (1, 1, 1), (0, 5, 7), (2, 0, 7), (0, 0, 7)]:
        features = rng.normal(size=(batch, height, 6, 3)).astype("float32")
        boxes = random_boxes(rng, batch, count, 24)
        result, gradient = run(features, boxes)
        assert gradient.shape == features.shape
        np.testing.assert_allclose(result, by_loops(features, boxes, 2, 4, ratio, False), atol=1e-5)


def pyramid(rng, batch=2, levels=(2, 3, 4, 5, 6)):
    return {f"P{k}": rng.normal(size=(batch, 256 >> k, 320 >> k, 3)).astype("float32") for k in levels}


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (0, True)])
def test_multilevel_takes_each_box_from_its_level(ratio, aligned):
    rng = np.random.default_rng(0)
    features, sides = pyramid(rng), [300, 20, 0, 150, 240, 60, 500, 112, 224]
    boxes = np.float32([[(5, 3, 5 + side, 3 + side) for side in sides]] * 2)
    boxes[1] = boxes[1, ::-1] + 7
    found = rois.multilevel_roi_align(features, boxes, 3, ratio, aligned)
    assert found.shape == (2, 9, 3, 3, 3)
    levels = [4, 2, 2, 3, 4, 2, 5, 3, 4]
    for image, image_levels in enumerate([levels, levels[::-1]]):
        for place, k in enumerate(image_levels):
            own = features[f"P{k}"][image : image + 1], boxes[image : image + 1, place : place + 1]
            alone = rois.roi_align(*own, 3, 2**k, ratio, aligned)
            np.testing.assert_allclose(found[image, place], alone[0, 0], atol=1e-5)


def test_multilevel_of_other_levels():
    features = pyramid(np.random.default_rng(0), levels=(3, 4))
    boxes = np.float32([[(0, 0, 10, 10), (0, 0, 300, 300)]] * 2)
    found = rois.multilevel_roi_align(features, boxes, 3, 2, False, min_level=3, max_level=4)
    for place, k in enumerate((3, 4)):
        alone = rois.roi_align(features[f"P{k}"], boxes[:, place : place + 1], 3, 2**k, 2, False)
        np.testing.assert_allclose(found[:, place], alone[:, 0], atol=1e-5)


def test_multilevel_gradient_goes_to_the_levels_that_were_read():
    features = {name: tf.constant(values) for name, values in pyramid(np.random.default_rng(0), batch=1).items()}
    with tf.GradientTape() as tape:
        tape.watch(features)
        found = rois.multilevel_roi_align(features, np.float32([[(0, 0, 20, 20), (0, 0, 200, 200)]]), 2, 2, False)
    sums = {name: None if g is None else float(tf.reduce_sum(g)) for name, g in tape.gradient(found, features).items()}
    # 2 x 2 bins of 3 channels, each of which shares out a weight of 1.
    assert sums == {"P2": pytest.approx(12), "P3": pytest.approx(12), "P4": 0, "P5": 0, "P6": None}


class Pool(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, features, boxes):
        return rois.roi_align(features * self.scale, boxes, 2, 4, 2, aligned=False)


def test_two_replicas(two_replicas):
    """Each pools its own image; the gradient of a weight before RoIAlign is that of one replica with both."""
    rng = np.random.default_rng(0)
    features, boxes = rng.normal(size=(2, 8, 8, 3)).astype("float32"), random_boxes(rng, 2, 5, 32)

    def gradient(layer, features, boxes):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(features, boxes))
        return tape.gradient(total, layer.scale.value)

    expected = gradient(Pool(), features, boxes)
    with two_replicas.scope():
        layer = Pool()

    @tf.function
    def step(data):
        total = two_replicas.run(gradient, args=(layer, *data))
        return two_replicas.reduce("sum", total, axis=None)

    dataset = tf.data.Dataset.from_tensor_slices((features, boxes)).batch(2)
    (data,) = two_replicas.experimental_distribute_dataset(dataset)
    np.testing.assert_allclose(step(data), expected, rtol=1e-5, atol=1e-5)


def test_saved_model_with_its_gradient(tmp_path):
    rng = np.random.default_rng(0)
    features, boxes = tf.constant(rng.normal(size=(1, 8, 8, 3)), "float32"), random_boxes(rng, 1, 5, 32)
    module = tf.Module()
    module.pool = tf.function(
        lambda features, boxes: rois.roi_align(features, boxes, 2, 4, 2, aligned=False),
        input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])],
    )
    tf.saved_model.save(module, tmp_path)

    def result_and_gradient(pool):
        with tf.GradientTape() as tape:
            tape.watch(features)
            result = pool(features, boxes)
        return result, tape.gradient(result, features)

    loaded = result_and_gradient(tf.saved_model.load(tmp_path).pool)
    for found, expected in zip(loaded, result_and_gradient(module.pool), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "wrap"), [(1, lambda f: f), (3, lambda f: f), (0, tf.function), (1, tf.function), (3, tf.function)]
)
def test_image_by_image_is_the_function_of_the_batch(count, wrap):
    sizes = []

    def function(levels, boxes):
        sizes.append(levels["P2"].shape[0])
        return {"sum": levels["P2"] + boxes, "product": levels["P2"] * boxes}

    levels, boxes = {"P2": np.random.default_rng(0).random((count, 2, 5), "float32")}, np.float32([[[2.0] * 5]] * count)
    boxes = boxes.reshape(count, 1, 5)
    shapes = {"sum": (2, 5), "product": (None, 5)}
    found = wrap(lambda *batch: rois.image_by_image(function, batch, shapes))(levels, boxes)
    np.testing.assert_array_equal(found["sum"], levels["P2"] + 2)
    np.testing.assert_array_equal(found["product"], levels["P2"] * 2)
    assert set(sizes) <= {1}  # never more than one image at a time
