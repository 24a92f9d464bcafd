import numpy as np
import pytest
import tensorflow as tf

from tfdet.resizers import KeepSize, ShortSide, Warp, rescale, size_without_padding, without_padding


def grey(rows):
    return np.repeat(np.array(rows)[..., None], 3, axis=-1)


# Pixel centres lie at halves: pixel i of the result looks at (i + 1/2) * old / new - 1/2, held inside the image.
CASES = {
    "the same size": (2, [[0, 100], [200, 40]], [[0, 100], [200, 40]]),
    "twice as large": (
        4,
        [[0, 100], [200, 40]],
        [[0, 25, 75, 100], [50, 58.75, 76.25, 85], [150, 126.25, 78.75, 55], [200, 160, 80, 40]],
    ),
    "half as large": (2, [[0, 100, 8, 8], [200, 40, 0, 0], [1, 1, 2, 2], [3, 3, 2, 2]], [[85, 4], [2, 2]]),
    "a quarter, not smoothed": (1, [[99, 99, 99, 99], [99, 0, 8, 99], [99, 4, 4, 99], [99] * 4], [[4]]),
    "wide": (2, [[0, 10, 20, 30]], [[5, 25], [5, 25]]),
    "a single pixel": (3, [[7]], [[7] * 3] * 3),
}


@pytest.mark.parametrize(("size", "image", "expected"), CASES.values(), ids=CASES)
def test_warp_by_hand(size, image, expected):
    warped = Warp(size)(grey(image).astype(np.uint8))
    assert warped.dtype == tf.float32
    np.testing.assert_allclose(warped, grey(expected), atol=1e-4)


def test_warp_keeps_channels_apart():
    image = np.zeros((1, 2, 3), np.float32)
    image[0, 0], image[0, 1] = (0, 50, 100), (40, 90, 20)
    np.testing.assert_allclose(Warp(2)(image)[1], [(0, 50, 100), (40, 90, 20)])


def test_warp_of_a_batch_is_that_of_each():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    together = Warp(4)(images)
    assert together.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(together, [Warp(4)(image) for image in images], rtol=1e-6)


def test_scale_takes_boxes_to_the_fed_image():
    scale = Warp(300).scale(height=100, width=600)
    np.testing.assert_allclose(scale, [0.5, 3, 0.5, 3])
    np.testing.assert_allclose(np.array([0, 0, 600, 100]) * scale, [0, 0, 300, 300])
    many = Warp(300).scale(np.array([100, 300]), np.array([600, 150]))
    np.testing.assert_allclose(many, [[0.5, 3, 0.5, 3], [2, 1, 2, 1]])


def test_in_a_graph_that_does_not_know_the_size():
    warp = tf.function(Warp(4), [tf.TensorSpec([None, None, 3], tf.uint8)])
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_allclose(warp(image), Warp(4)(image))


# Height and width; the short and the long side wanted -> the size, and the size with padding. The side that is not
# asked for is rounded down: torchvision takes the floor of side * scale.
SIZES = {
    "1066.7 pixels wide": ((480, 640), (800, 1333), (800, 1066), (800, 1088)),
    "1066.7 pixels high": ((640, 480), (800, 1333), (1066, 800), (1088, 800)),
    "the long side is at its limit": ((300, 1000), (800, 1333), (399, 1333), (416, 1344)),  # 399.9
    "the same, upright": ((1000, 300), (800, 1333), (1333, 399), (1344, 416)),
    "both limits at once": ((400, 666), (600, 999), (600, 999), (608, 1024)),
    "just too wide for the short side": ((400, 667), (600, 999), (599, 999), (608, 1024)),  # 599.1
    "smaller": ((3000, 4000), (800, 1333), (800, 1066), (800, 1088)),
    "square": ((100, 100), (333, 500), (333, 333), (352, 352)),
    "a single pixel": ((1, 1), (33, 50), (33, 33), (64, 64)),
    "very wide": ((3, 5000), (800, 1333), (1, 1333), (32, 1344)),  # 0.8, but a side has one pixel at least
    "very high": ((5000, 3), (800, 1333), (1333, 1), (1344, 32)),
    "it fits": ((600, 1000), (600, 1000), (600, 1000), (608, 1024)),
    "it fits, and needs no padding": ((64, 96), (64, 96), (64, 96), (64, 96)),
    # A scale in float32 makes 799 and 1332 of these.
    "no less than the short side": ((193, 238), (800, 1333), (800, 986), (800, 992)),
    "no less than the long side": ((69, 655), (800, 1333), (140, 1333), (160, 1344)),
}


@pytest.mark.parametrize(("image", "sides", "size", "padded"), SIZES.values(), ids=SIZES)
def test_short_side_by_hand(image, sides, size, padded):
    resize = ShortSide(*sides)
    assert tuple(map(int, resize.size(*image))) == size
    fed = resize(np.zeros((*image, 3), np.uint8))
    assert fed.shape == (*padded, 3)
    assert fed.dtype == tf.float32
    is_image = np.zeros(padded, bool)
    is_image[: size[0], : size[1]] = True  # padding lies at the right and at the bottom
    np.testing.assert_array_equal(fed, np.where(is_image[..., None], np.zeros(3), np.nan))
    y, x = size[0] / image[0], size[1] / image[1]
    np.testing.assert_allclose(resize.scale(*image), (x, y, x, y), rtol=1e-6)


def test_short_side_looks_at_pixels_as_warp_does():
    expected = CASES["twice as large"][2]
    fed = ShortSide(4, 9)(grey([[0, 100], [200, 40]]).astype(np.uint8)).numpy()
    assert fed.shape == (32, 32, 3)
    np.testing.assert_allclose(fed[:4, :4], grey(expected), atol=1e-4)
    assert np.isnan(fed[4:]).all() and np.isnan(fed[:, 4:]).all()


def test_short_side_leaves_an_image_that_fits_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    np.testing.assert_array_equal(ShortSide(64, 200)(image), image)


def test_short_side_of_many_sizes_at_once():
    heights, widths = np.array([[480, 640], [300, 3]]), np.array([[640, 480], [1000, 5000]])
    found = ShortSide(800, 1333).size(heights, widths)
    np.testing.assert_array_equal(found, [[[800, 1066], [399, 1]], [[1066, 800], [1333, 1333]]])
    scale = ShortSide(800, 1333).scale(heights, widths)
    assert scale.shape == (2, 2, 4)
    np.testing.assert_allclose(scale[1, 0], (1.333, 1.33, 1.333, 1.33), rtol=1e-6)


def test_short_side_keeps_both_limits_for_any_image():
    """And no side is a pixel or more below what the ratio asks for, not even by rounding in floating point."""
    random = np.random.default_rng(0)
    heights, widths = random.integers(1, 5000, (2, 20000))
    for short, long in ((800, 1333), (800, 800), (333, 500), (1, 1)):
        found = np.array(ShortSide(short, long).size(heights, widths))
        assert found.min() >= 1
        assert (found.min(axis=0) <= short).all() and (found.max(axis=0) <= long).all()
        assert ((found.min(axis=0) == short) | (found.max(axis=0) == long)).all()
        exact = np.minimum(short / np.minimum(heights, widths), long / np.maximum(heights, widths)) * (heights, widths)
        assert (found > exact - 1).all() and (found <= np.maximum(exact, 1) + 1e-6).all()


def test_boxes_come_back_to_the_pixels_of_the_original():
    resize = ShortSide(800, 1333)
    scale = resize.scale(300, 1000)
    whole = np.float32([0, 0, 1000, 300])
    np.testing.assert_allclose(whole * scale, (0, 0, 1333, 399), rtol=1e-6)  # the image, not its padding
    box = np.float32([12.5, 7, 990, 30])
    np.testing.assert_allclose(box * scale / scale, box, rtol=1e-6)


def test_short_side_in_a_graph_that_does_not_know_the_size():
    resize = ShortSide(40, 70)
    one = tf.function(resize, [tf.TensorSpec([None, None, 3], tf.uint8)])
    many = tf.function(resize, [tf.TensorSpec([None, None, None, 3], tf.uint8)])
    for shape in ((30, 50, 3), (90, 20, 3)):
        images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
        expected = resize(images).numpy()
        np.testing.assert_array_equal(many(images), expected)
        np.testing.assert_allclose(one(images[1]), expected[1], rtol=1e-6)


def fed_images():
    """Three of 4 x 5 pixels: whole, 2 x 3 pixels of image, and a single one."""
    images = np.random.default_rng(0).uniform(0, 255, (3, 4, 5, 3)).astype(np.float32)
    images[1, 2:], images[1, :, 3:] = np.nan, np.nan
    images[2, 1:], images[2, :, 1:] = np.nan, np.nan
    return images


def test_a_batch_tells_what_of_it_is_image():
    images = fed_images()
    np.testing.assert_array_equal(size_without_padding(images), [(4, 2, 1), (5, 3, 1)])
    for image, size in zip(images, ((4, 5), (2, 3), (1, 1)), strict=True):
        height, width = size_without_padding(image)
        assert (int(height), int(width)) == size
    np.testing.assert_array_equal(np.stack(size_without_padding(images[None])), [[(4, 2, 1)], [(5, 3, 1)]])


def test_without_padding_there_is_the_mean_colour():
    images = fed_images()
    filled, sizes = without_padding(images)
    assert sizes.dtype == tf.float32
    np.testing.assert_array_equal(sizes, [(4, 5), (2, 3), (1, 1)])
    padding = np.isnan(images)
    np.testing.assert_array_equal(filled.numpy()[~padding], images[~padding])
    mean = 255 * np.array([0.485, 0.456, 0.406])  # of ImageNet, RGB
    np.testing.assert_allclose(filled.numpy()[padding], np.broadcast_to(mean, images.shape)[padding], rtol=1e-6)


@pytest.mark.parametrize("shape", [(30, 50), (90, 20), (1, 1), (1, 400)])
def test_what_short_side_pads_is_read_back(shape):
    resize = ShortSide(40, 70)
    fed = resize(np.full((1, *shape, 3), 255, np.uint8))
    _, sizes = without_padding(fed)
    np.testing.assert_array_equal(sizes[0], resize.size(*shape))


# --- images in their own size ---


@pytest.mark.parametrize(
    ("size", "multiple", "padded"),
    [((30, 50), 32, (32, 64)), ((64, 96), 32, (64, 96)), ((65, 1), 32, (96, 32)), ((30, 200), 128, (128, 256))],
)
def test_images_keep_their_size(size, multiple, padded):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resize = KeepSize(multiple)
    fed = resize(image)
    assert (fed.shape, fed.dtype) == ((*padded, 3), tf.float32)
    np.testing.assert_array_equal(fed[: size[0], : size[1]], image)
    assert np.isnan(fed[size[0] :]).all() and np.isnan(fed[:, size[1] :]).all()
    np.testing.assert_array_equal(resize.scale(*size), np.ones(4))
    np.testing.assert_array_equal(resize.scale(np.array([3, 4]), np.array([5, 6])), np.ones((2, 4)))


def test_short_side_pads_to_another_multiple():
    assert ShortSide(40, 100, 128)(np.zeros((40, 80, 3), np.uint8)).shape == (128, 128, 3)


@pytest.mark.parametrize(("size", "padded"), [((30, 31), (31, 31)), ((32, 63), (63, 63)), ((64, 1), (95, 31))])
def test_one_pixel_less_than_a_multiple(size, padded):
    """As the released CornerNet's `side | 31`."""
    image = np.zeros((*size, 3), np.uint8)
    assert KeepSize(32, 31)(image).shape == (*padded, 3)
    assert ShortSide(min(size), max(size), 32, 31)(image).shape == (*padded, 3)
    assert rescale(KeepSize(32, 31)(image), 2, 32, 31).shape == (*(2 * side + 1 for side in padded), 3)


def test_padding_gets_the_colour_that_is_given():
    images = np.full((1, 4, 4, 3), 9, np.float32)
    images[:, 3:], images[:, :, 2:] = np.nan, np.nan
    filled, sizes = without_padding(images, 0.0)
    np.testing.assert_array_equal(sizes, [(3, 2)])
    expected = np.zeros((4, 4))
    expected[:3, :2] = 9
    np.testing.assert_array_equal(filled[0], grey(expected))


@pytest.mark.parametrize(("factor", "size", "fed"), [(0.5, (10, 12), (32, 32)), (1.5, (30, 36), (64, 64))])
def test_rescaled_fed_images_keep_their_padding(factor, size, fed):
    """Images of 20 x 24 pixels, and of 32 x 32, in one batch."""
    images = np.full((2, 32, 32, 3), 100, np.float32)
    images[0, 20:], images[0, :, 24:] = np.nan, np.nan
    result = rescale(images, factor, 32).numpy()
    assert result.shape == (2, *fed, 3)
    sizes = np.stack(size_without_padding(result), axis=-1)
    np.testing.assert_array_equal(sizes, [size, (32 * factor, 32 * factor)])
    inner = result[0, : size[0] - 1, : size[1] - 1]  # at its border it blends with black
    np.testing.assert_allclose(inner, np.full_like(inner, 100), rtol=1e-5)


def test_rescaled_once_nothing_changes():
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 32, 3)).astype(np.float32)
    images[:, 50:] = np.nan
    np.testing.assert_array_equal(rescale(images, 1.0, 32), images)
