import numpy as np
import pytest

from tfdet.area import AreaTable


def shrunk(image, height, width):
    """By the definition: each pixel is the mean of those that it touches."""
    rows, columns = image.shape[:2]
    bins = [
        [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        for length, count in ((rows, height), (columns, width))
    ]
    return np.array([[image[row, column].mean(axis=(0, 1)) for column in bins[1]] for row in bins[0]])


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (23, 31, 3)).astype(np.float32)


def test_by_hand():
    row = np.repeat(np.array([[10, 20, 30]], np.float32)[..., None], 3, axis=-1)
    table = AreaTable(row)
    np.testing.assert_allclose(table.resized(1, 2)[0, :, 0], [15, 25])  # the middle pixel is in both
    np.testing.assert_allclose(table.resized(1, 1)[0, :, 0], [20])
    np.testing.assert_allclose(table.resized(2, 5)[1, :, 0], [10, 15, 20, 25, 30])


@pytest.mark.parametrize("size", [(23, 31), (12, 12), (5, 30), (40, 33), (1, 1)])
def test_the_whole_image(image, size):
    np.testing.assert_allclose(AreaTable(image).resized(*size), shrunk(image, *size), rtol=1e-6)


@pytest.mark.parametrize("side", [4, 24])
def test_rectangles_are_black_where_there_is_no_image(image, side):
    corners = np.array([(2, 3), (-5, -4), (20, 15), (100, 100), (0, 0)], np.int32)
    sizes = np.array([(9, 9), (12, 30), (30, 30), (7, 7), (1, 1)], np.int32)
    crops = AreaTable(image).crops(corners, sizes, side)
    padded = np.pad(image, [(200, 200), (200, 200), (0, 0)])
    for crop, (x, y), (width, height) in zip(crops, corners + 200, sizes, strict=True):
        expected = shrunk(padded[y : y + height, x : x + width], side, side)
        np.testing.assert_allclose(crop, expected, rtol=1e-6)
    assert (np.asarray(crops[3]) == 0).all()
    assert AreaTable(image).crops(corners[:0], sizes[:0], side).shape == (0, side, side, 3)


def test_sums_beyond_32_bits_do_not_matter():
    image = np.full((2100, 4200, 3), 255, np.float32)  # 2.2e9 in all
    np.testing.assert_allclose(AreaTable(image).resized(2, 3), 255, rtol=1e-6)
