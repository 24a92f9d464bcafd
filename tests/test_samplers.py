import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet import samplers

# loss, positive, ratio, chosen
CASES = {
    "the costliest": ([0.1, 9, 0.3, 0.2, 0.5, 0.4], [1], 3, [2, 4, 5]),
    "a ratio of one": ([0.1, 9, 0.3, 0.2, 0.5, 0.4], [1], 1, [4]),
    "two positives": ([1, 2, 3, 4, 5, 6, 7, 8], [0, 7], 2, [3, 4, 5, 6]),
    "no positives": ([1, 2, 3], [], 3, []),
    "all positive": ([1, 2, 3], [0, 1, 2], 3, []),
    "too few negatives": ([1, 2, 3], [2], 3, [0, 1]),
    "a positive that costs most is not chosen": ([5, 1, 1, 1, 2], [0], 1, [4]),
    "a positive that costs least is not chosen": ([-5, 1, 1, 2], [0], 3, [1, 2, 3]),
    "ties go to the earlier one": ([2, 7, 7, 7, 7, 7], [0], 3, [1, 2, 3]),
    "a tie at the edge": ([0, 4, 3, 3, 3, 9], [5], 2, [1, 2]),
    "all alike": ([0, 0, 0, 0, 0, 0], [3], 3, [0, 1, 2]),
    "ratio 0": ([1, 2, 3], [0], 0, []),
    "nothing at all": ([], [], 3, []),
}


def mask(length, places):
    return np.isin(np.arange(length), places)


@pytest.mark.parametrize(("loss", "positive", "ratio", "chosen"), CASES.values(), ids=CASES)
def test_hard_negatives_by_hand(loss, positive, ratio, chosen):
    found = samplers.hard_negatives(np.array(loss, np.float32), mask(len(loss), positive), ratio)
    assert found.dtype == tf.bool
    np.testing.assert_array_equal(found, mask(len(loss), chosen))


def test_hard_negatives_ratio_is_three():
    found = samplers.hard_negatives(np.arange(10.0), mask(10, [4]))
    np.testing.assert_array_equal(found, mask(10, [7, 8, 9]))


def test_hard_negatives_are_counted_image_by_image():
    loss = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    positive = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    expected = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(samplers.hard_negatives(loss, positive, 2), expected)
    found = samplers.hard_negatives(loss[:, None], positive[:, None], 2)
    np.testing.assert_array_equal(found, np.array(expected)[:, None])


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 4))
def test_hard_negatives_exact_number_and_none_costs_less_than_one_left_out(data, length, ratio):
    loss = np.array(data.draw(st.lists(st.integers(0, 9), min_size=length, max_size=length)), np.float32)
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    found = np.array(samplers.hard_negatives(loss, positive, ratio))
    assert found.sum() == min(ratio * positive.sum(), (~positive).sum())
    assert not (found & positive).any()
    left = ~found & ~positive
    if found.any() and left.any():
        assert loss[found].min() >= loss[left].max()
