import itertools

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


def matched_with(positives, negatives, ignored):
    """An assigner's answer with so many of each, mixed up."""
    matched = np.repeat([3, -1, -2], [positives, negatives, ignored]).astype(np.int32)
    return np.random.default_rng(0).permutation(matched)


# (num, pos_fraction, neg_pos_ub), (positives, negatives, ignored) that there are, (positives, negatives) to be drawn
COUNTS = {
    "more than enough of both": ((8, 0.5), (20, 20, 5), (4, 4)),
    "negatives fill up for positives": ((8, 0.5), (1, 20, 5), (1, 7)),
    "positives do not fill up for negatives": ((8, 0.5), (20, 2, 5), (4, 2)),
    "few of both": ((8, 0.5), (2, 3, 20), (2, 3)),
    "the share of positives is cut to a whole number": ((10, 0.25), (20, 20, 0), (2, 8)),
    "and so is one that is nearly whole": ((50, 0.58), (60, 60, 0), (28, 22)),  # 50 * 0.58 = 28.999999999999996
    "no positives": ((8, 0.5), (0, 20, 5), (0, 8)),
    "no negatives": ((8, 0.5), (20, 0, 5), (4, 0)),
    "all ignored": ((8, 0.5), (0, 0, 20), (0, 0)),
    "positives only": ((8, 1.0), (20, 20, 5), (8, 0)),
    "positives only, but there are few": ((8, 1.0), (3, 20, 5), (3, 5)),
    "negatives only": ((8, 0.0), (20, 20, 5), (0, 8)),
    "more wanted than there are samples": ((100, 0.5), (2, 3, 1), (2, 3)),
    "exactly as many as there are": ((8, 0.5), (4, 4, 0), (4, 4)),
    "one sample": ((8, 0.5), (0, 1, 0), (0, 1)),
    "a bound that holds": ((20, 0.5, 1.5), (4, 30, 0), (4, 6)),
    "a bound cut to a whole number": ((20, 0.5, 1.5), (3, 30, 0), (3, 4)),
    "a bound of the positives that are drawn, not of all": ((8, 0.25, 1.5), (20, 30, 0), (2, 3)),
    "a bound that is out of reach": ((20, 0.5, 5), (4, 30, 0), (4, 16)),
    "a bound without positives: they count as one": ((20, 0.5, 1.5), (0, 30, 0), (0, 1)),
    "the note's 1000, 200 and 1.5": ((1000, 0.5, 1.5), (200, 900, 0), (200, 300)),
    "the note's 1000 and 200 without a bound": ((1000, 0.5), (200, 900, 0), (200, 800)),
    "a bound of 0": ((8, 0.5, 0), (2, 20, 0), (2, 0)),
    "a bound in binary, nearly whole": ((200, 0.5, 0.29), (100, 90, 0), (100, 28)),  # 0.29 * 100 = 28.999999999999996
    "nothing wanted": ((0, 0.5), (2, 3, 1), (0, 0)),
}


@pytest.mark.parametrize(("arguments", "there", "expected"), COUNTS.values(), ids=COUNTS)
def test_random_sampler_counts(arguments, there, expected):
    sampler, matched = samplers.RandomSampler(*arguments), matched_with(*there)
    for seed in range(3):
        positive, negative = (np.array(mask) for mask in sampler(matched, seed))
        assert positive.dtype == negative.dtype == bool
        assert (positive.sum(), negative.sum()) == expected
        assert (matched[positive] >= 0).all()
        assert (matched[negative] == -1).all()


def test_random_sampler_counts_image_by_image():
    batch = np.stack([matched_with(*there) for there in ((9, 9, 2), (1, 19, 0), (0, 3, 17), (20, 0, 0))])
    sampler = samplers.RandomSampler(6, 0.5, neg_pos_ub=4)
    positive, negative = sampler(batch, [1, 2, 3, 4])
    np.testing.assert_array_equal(np.sum(positive, axis=1), [3, 1, 0, 3])
    np.testing.assert_array_equal(np.sum(negative, axis=1), [3, 4, 3, 0])
    for image, seed in enumerate((1, 2, 3, 4)):
        alone = sampler(batch[image], seed)
        np.testing.assert_array_equal(positive[image], alone[0])
        np.testing.assert_array_equal(negative[image], alone[1])
    folded = sampler(batch.reshape(2, 2, 20), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(folded[0], np.reshape(positive, (2, 2, 20)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2, -1, -1, 0, 5]), min_size=1, max_size=40),
    st.integers(1, 30),
    st.floats(0, 1),
    st.sampled_from([-1, 0, 0.5, 1, 3]),
    st.integers(-(2**31), 2**31 - 1),
)
def test_random_sampler_draws_exactly(matched, num, pos_fraction, neg_pos_ub, seed):
    matched = np.array([matched], np.int32)
    sampler = samplers.RandomSampler(num, pos_fraction, neg_pos_ub)
    positive, negative = (np.array(mask) for mask in sampler(matched, [seed]))
    positives = min(int(num * pos_fraction), (matched >= 0).sum())
    negatives = min(num - positives, (matched == -1).sum())
    if neg_pos_ub >= 0:
        negatives = min(negatives, int(neg_pos_ub * max(1, positives)))
    assert (positive.sum(), negative.sum()) == (positives, negatives)
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == -1).all()

    indices, valid = (np.array(part)[0] for part in sampler.pick(matched, [seed]))
    assert indices.shape == valid.shape == (num,)
    expected = np.concatenate([np.flatnonzero(positive), np.flatnonzero(negative)])
    np.testing.assert_array_equal(indices, np.pad(expected, (0, num - len(expected))))
    np.testing.assert_array_equal(valid, np.arange(num) < len(expected))


def test_pick_by_hand():
    matched = np.array([[-2, -1, 7, -2, -1, 0], [-1, -2, -2, -2, -2, -2]], np.int32)
    indices, valid = samplers.RandomSampler(5, 0.6).pick(matched, [8, 9])
    assert indices.dtype == tf.int32
    np.testing.assert_array_equal(indices, [[2, 5, 1, 4, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(valid, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])


def test_every_positive_and_negative_is_equally_likely():
    matched = np.tile(np.array([-1, 4, -1, 0, 0, -2, -1, 2, -1, -1], np.int32), (6000, 1))  # 4 positives, 5 negatives
    positive, negative = (np.array(mask) for mask in samplers.RandomSampler(4, 0.5)(matched, np.arange(6000)))
    for drawn, places in ((positive, [1, 3, 4, 7]), (negative, [0, 2, 6, 8, 9])):
        pairs = list(itertools.combinations(places, 2))
        counts = [drawn[:, pair].all(axis=1).sum() for pair in pairs]
        assert sum(counts) == 6000
        assert chi_square(counts) < 30  # 5 and 9 degrees of freedom: so much one time in 65,000, and in 2,300


def test_draws_depend_on_the_seed_alone():
    matched = np.stack([matched_with(300, 2000, 100)] * 3)
    sampler = samplers.RandomSampler(64, 0.25)
    expected = sampler(matched, [5, 6, 5])
    for mask in map(np.array, expected):
        np.testing.assert_array_equal(mask[0], mask[2])
        assert (mask[0] & mask[1]).sum() < mask[0].sum() / 2
    compiled = tf.function(sampler, jit_compile=True)(tf.constant(matched), tf.constant([5, 6, 5], tf.int64))
    unknown = tf.function(sampler, [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int64)])
    rows = tf.data.Dataset.from_tensor_slices((matched, [5, 6, 5])).map(sampler, num_parallel_calls=2).batch(3)
    for masks in (compiled, unknown(matched, [5, 6, 5]), next(iter(rows))):
        np.testing.assert_array_equal(masks[0], expected[0])
        np.testing.assert_array_equal(masks[1], expected[1])
    picked = tf.function(sampler.pick, jit_compile=True)(tf.constant(matched), tf.constant([5, 6, 5]))
    np.testing.assert_array_equal(picked[0], sampler.pick(matched, [5, 6, 5])[0])


def test_equal_lots_do_not_change_the_number(monkeypatch):
    monkeypatch.setattr(samplers, "noise", lambda seed, count: np.zeros((len(seed), count), np.float32))
    positive, negative = samplers.RandomSampler(5, 0.4)(matched_with(9, 9, 2), 0)
    assert (np.sum(positive), np.sum(negative)) == (2, 3)


def test_candidates_begin_with_the_objects():
    proposals, boxes = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.ones((2, 2, 4), np.float32)
    valid = np.array([[True, True, False], [True, False, False]])
    labels = np.array([[4, -1], [0, 2]], np.int32)
    rois, usable = samplers.RandomSampler(8, 0.5, add_gt_as_proposals=True).candidates(proposals, valid, boxes, labels)
    np.testing.assert_array_equal(rois, np.concatenate([boxes, proposals], axis=1))
    np.testing.assert_array_equal(usable, [[1, 0, 1, 1, 0], [1, 1, 1, 0, 0]])
    rois, usable = samplers.RandomSampler(8, 0.5).candidates(proposals, valid, boxes, labels)
    np.testing.assert_array_equal(rois, proposals)
    np.testing.assert_array_equal(usable, valid)


def noise_reference(seed, count):
    """The same in Python's integers."""

    def mix(bits):  # fmix32 of MurmurHash3
        bits = (bits ^ bits >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        bits = (bits ^ bits >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return bits ^ bits >> 16

    assert mix(1) == 0x514E28B7
    key = mix(seed & 0xFFFFFFFF ^ mix(seed >> 31 & 0xFFFFFFFF))
    other = mix(key + 2**31 & 0xFFFFFFFF)
    return [(mix(mix(place + key & 0xFFFFFFFF) ^ other) >> 8) / 2**24 for place in range(count)]


def test_noise_is_that_of_the_reference():
    seeds = np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40 + 3, -(2**60)], np.int64)
    numbers = samplers.noise(seeds, 50)
    assert numbers.dtype == tf.float32
    np.testing.assert_array_equal(numbers, [noise_reference(int(seed), 50) for seed in seeds])
    np.testing.assert_array_equal(samplers.noise(seeds[:5].astype(np.int32), 50), numbers[:5])
    np.testing.assert_array_equal(samplers.noise(7, 50), noise_reference(7, 50))


def chi_square(counts):
    return ((np.array(counts) - np.mean(counts)) ** 2 / np.mean(counts)).sum()


# The first and the second number of a pair; each should fall everywhere in [0, 1) x [0, 1) alike.
PAIRS = {
    "of one seed": lambda: (samplers.noise(3, 200001)[:-1], samplers.noise(3, 200001)[1:]),
    "of neighbouring seeds": lambda: (samplers.noise(100, 200000), samplers.noise(101, 200000)),
    "of seeds that differ in the highest bit": lambda: (samplers.noise(1, 200000), samplers.noise(1 - 2**31, 200000)),
    "of an int64": lambda: (samplers.noise(np.int64(5), 200000), samplers.noise(np.int64(5 + 2**32), 200000)),
    "of one place": lambda: np.array(samplers.noise(np.arange(200000), 2)).T,
    "of neighbouring seeds, a place apart": lambda: (samplers.noise(8, 200001)[1:], samplers.noise(9, 200001)[:-1]),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_noise_is_uniform_and_independent(pair):
    first, second = (np.array(numbers) for numbers in pair())
    assert first.min() >= 0
    assert first.max() < 1
    # 255 and 1023 degrees of freedom: more than this one time in ten thousand.
    assert chi_square(np.histogram2d(first, second, bins=16, range=[[0, 1]] * 2)[0].ravel()) < 347
    assert chi_square(np.histogram(first, bins=1024, range=(0, 1))[0]) < 1198
