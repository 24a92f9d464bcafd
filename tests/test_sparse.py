import numpy as np
import pytest
import tensorflow as tf

from tfdet import sparse

INDICES = np.int64([(0, 1), (0, 2), (2, 0), (2, 1), (2, 1)])  # 3 x 4: nothing in row 1 and column 3, twice in (2, 1)
VALUES = np.float32([1, 2, 3, 4, 0.5])


@pytest.mark.parametrize(
    ("dense", "transposed", "expected"),
    [
        ([(1, 10), (2, 20), (3, 30), (4, 40)], False, [(8, 80), (0, 0), (12, 120)]),
        ([(1, 10), (2, 20), (3, 30)], True, [(9, 90), (14.5, 145), (2, 20), (0, 0)]),
    ],
)
def test_matmul(dense, transposed, expected):
    found = sparse.matmul(INDICES, VALUES, np.int64([3, 4]), np.float32(dense), transposed)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(("shape", "transposed"), [((0, 4), False), ((3, 0), True)])
def test_without_rows(shape, transposed):
    dense = tf.ones((shape[0] if transposed else shape[1], 2))
    found = sparse.matmul(INDICES[:0], VALUES[:0], np.int64(shape), dense, transposed)
    assert found.shape == (0, 2)
