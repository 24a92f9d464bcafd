import numpy as np
import pytest

from tfdet.data.order import random_order


def read(*args, take=None, **kwargs):
    order = random_order(*args, **kwargs)
    return [tuple(map(int, one)) for one in (order if take is None else order.take(take))]


@pytest.mark.parametrize(
    ("count", "batch_size", "per_epoch"), [(7, 1, 7), (7, 2, 6), (7, 7, 7), (1, 1, 1), (64, 16, 64)]
)
def test_an_epoch_has_every_image_once_but_what_fills_no_batch(count, batch_size, per_epoch):
    numbers = [number for number, _ in read(count, batch_size, 3, take=3 * per_epoch)]
    for epoch in np.split(np.array(numbers), 3):
        assert len(set(epoch)) == per_epoch
        assert set(epoch) <= set(range(count))


def test_epochs_differ_in_order_and_lot():
    first, second = np.split(np.array(read(1000, 10, 3, take=2000)), 2)
    assert sorted(first[:, 0]) == sorted(second[:, 0]) == list(range(1000))
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(first[:, 0], range(1000))[0, 1]) < 0.1
    assert len(set(first[:, 1]) | set(second[:, 1])) == 2000
    assert min(first[:, 1]) >= 0


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("start_step", [0, 1, 5, 12])
def test_going_on_is_never_having_stopped(seed, start_step):
    assert read(11, 2, seed, start_step, take=8) == read(11, 2, seed, take=2 * start_step + 8)[2 * start_step :]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 3])
def test_the_parts_of_the_workers_are_the_batches_of_one(workers, start_step):
    parts = [read(50, 8, 1, start_step, worker, workers, take=10 * 8 // workers) for worker in range(workers)]
    together = np.concatenate([np.reshape(part, (10, 8 // workers, 2)) for part in parts], axis=1)
    np.testing.assert_array_equal(together.reshape(-1, 2), read(50, 8, 1, start_step, take=80))


def test_one_epoch_at_a_time():
    order = random_order(10, 3, 5, start_step=None)
    assert int(order.cardinality()) == 9
    epochs = [[tuple(map(int, one)) for one in order] for _ in range(3)]
    assert [len({number for number, _ in epoch}) for epoch in epochs] == [9, 9, 9]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] == read(10, 3, 5, start_step=None)
    assert epochs[0] != read(10, 3, 6, start_step=None)
