import numpy as np
import pytest
from PIL import Image

from tfdet.alignment import PLACES, aligned, similarity


@pytest.mark.parametrize(("angle", "scale", "shift"), [(0, 1, (0, 0)), (90, 2, (3, -4)), (-30, 0.1, (100, 7))])
def test_a_similarity_is_found_again(angle, scale, shift):
    points = np.array([(0, 0), (10, 1), (4, 7), (-3, 2)], float)
    cos, sin = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    matrix = np.array([(cos, -sin, shift[0]), (sin, cos, shift[1])])
    targets = points @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(similarity(points, targets), matrix, atol=1e-9)


def test_the_best_one_by_hand():
    """Two points 2 apart shall come 4 apart, and a third one spoils it in no direction: only the scale is between."""
    points, targets = [(-1, 0), (1, 0), (0, 0)], [(-2, 0), (2, 0), (0, 0)]
    np.testing.assert_allclose(similarity(points, targets), [(2, 0, 0), (0, 2, 0)], atol=1e-12)
    # A mirror image is none: the best it can do is to shrink all to the middle.
    np.testing.assert_allclose(similarity([(1, 0), (0, 1), (-1, 0), (0, -1)], [(1, 0), (0, -1), (-1, 0), (0, 1)])[0], 0)


@pytest.mark.parametrize("scale", [0.5, 1, 4.5])
def test_landmarks_come_to_their_places(scale):
    """White squares on black at the landmarks of a face that is turned by 90 degrees."""
    x, y = np.array(PLACES).T
    landmarks = np.stack([120 - y, x], axis=1) * scale + 20
    image = np.zeros((700, 700, 3), np.uint8)
    half = max(1, 3 * scale)
    for a, b in landmarks:
        image[round(b - half) : round(b + half), round(a - half) : round(a + half)] = 255
    picture = np.asarray(aligned(image, landmarks), float)
    assert picture.shape == (112, 112, 3)
    for place in PLACES:
        column, row = (round(value) for value in place)
        assert picture[row, column].min() > 150
    assert picture.mean() < 5 * (2 * max(3, 1 / scale) + 2) ** 2 * 255 / 112**2


def test_size_and_what_lies_beside_the_photograph():
    landmarks = np.array(PLACES) - 56
    picture = aligned(np.full((50, 50, 3), 200, np.uint8), landmarks, side=224)
    assert isinstance(picture, Image.Image)
    pixels = np.asarray(picture)
    assert pixels.shape == (224, 224, 3)
    assert (pixels[:105, :105] == 0).all()
    assert (pixels[120:200, 120:200] == 200).all()
