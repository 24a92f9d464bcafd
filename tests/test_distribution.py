import contextlib

import pytest
import tensorflow as tf

from tfdet import distribution


def replica_number():
    return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)


@pytest.mark.parametrize(("replicas", "total"), [(1, 10.0), (2, 10.0 + 11.0)])
def test_sum_over_replicas(two_replicas, replicas, total):
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("CPU:0")

    @tf.function
    def step():
        value = distribution.sum_over_replicas(10.0 + replica_number())
        return value, tf.constant(distribution.num_replicas())

    sums, counts = strategy.run(step)
    assert [float(value) for value in strategy.experimental_local_results(sums)] == [total] * replicas
    assert [int(value) for value in strategy.experimental_local_results(counts)] == [replicas] * replicas


def test_without_a_strategy_there_is_one_replica():
    value = tf.constant(10.0)
    assert distribution.num_replicas() == 1
    assert distribution.sum_over_replicas(value) is value


def test_where_there_is_no_replica_the_sum_is_the_value(two_replicas):
    with two_replicas.scope():
        assert distribution.num_replicas() == 2
        assert float(distribution.sum_over_replicas(tf.constant(10.0))) == 10


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_strategy_is_for_several_gpus_only(monkeypatch, gpus):
    devices = [tf.config.list_logical_devices("CPU")[0]] * gpus
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "GPU" else [None, None])
    with distribution.strategy_scope():
        assert not tf.distribute.has_strategy()


def test_several_gpus_are_used_together(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [None, None])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: tf.distribute.OneDeviceStrategy("CPU:1"))
    with distribution.strategy_scope() as scope:
        assert tf.distribute.has_strategy()
    assert not isinstance(scope, contextlib.nullcontext)
