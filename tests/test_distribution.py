import contextlib
import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfdet import distribution
from tfdet.errors import TfdetError


@pytest.fixture(autouse=True)
def asked_anew():
    """The strategy of a process is found once; here it is another one each time."""
    find = distribution.strategy
    find.cache_clear()
    yield
    find.cache_clear()


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


TWO = ["a:1", "b:2"]
CONFIGS = {
    "alone": ({"worker": ["a:1"]}, "worker", 0, None),
    "no cluster": ({}, "worker", 0, None),
    "first worker": ({"worker": TWO}, "worker", 0, 0),
    "second worker": ({"worker": TWO}, "worker", 1, 1),
    "chief": ({"chief": ["c:0"], "worker": TWO}, "chief", 0, 0),
    "a worker behind a chief": ({"chief": ["c:0"], "worker": TWO}, "worker", 1, 2),
}


def cluster_of(monkeypatch, cluster, kind, number):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": number}}))
    return distribution._cluster()


def strategy_of(monkeypatch, cluster):
    """One that knows its cluster, and has not met it."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    monkeypatch.setattr(type(strategy), "cluster_resolver", cluster)
    return strategy


@pytest.mark.parametrize(("cluster", "kind", "number", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_the_cluster_of_tf_config(monkeypatch, cluster, kind, number, expected):
    found = cluster_of(monkeypatch, cluster, kind, number)
    if expected is None:
        assert found is None
        return
    assert found.cluster_spec().as_dict() == cluster
    strategy = strategy_of(monkeypatch, found)
    assert distribution.worker_number(strategy) == expected
    assert distribution.num_workers(strategy) == sum(map(len, cluster.values()))


BAD = {
    "no such task": ({"worker": TWO}, "worker", 2, "its cluster has no task 2 of the type worker"),
    "of no such kind": ({"worker": TWO}, "chief", 0, "its cluster has no task 0 of the type chief"),
    "parameter server": ({"worker": TWO, "ps": ["p:1"]}, "worker", 0, "has a chief and workers, no ps"),
    "evaluator": ({"worker": TWO, "evaluator": ["p:1"]}, "worker", 0, "has a chief and workers, no evaluator"),
}


@pytest.mark.parametrize(("cluster", "kind", "number", "message"), BAD.values(), ids=BAD)
def test_a_tf_config_that_cannot_be(monkeypatch, cluster, kind, number, message):
    with pytest.raises(TfdetError, match=message):
        cluster_of(monkeypatch, cluster, kind, number)


@pytest.mark.parametrize("text", ["{", '{"cluster": 3}'])
def test_a_tf_config_that_cannot_be_read(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(TfdetError, match="TF_CONFIG cannot be read"):
        distribution._cluster()


def test_the_cluster_of_slurm(monkeypatch):
    """Addresses in the order of the machines, as Slurm counts: 2 before 10."""
    variables = {"PROCID": "3", "STEP_NUM_TASKS": "5", "STEP_NODELIST": "node[2,10]", "STEP_TASKS_PER_NODE": "3,2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    found = distribution._cluster()
    addresses = ["node2:8888", "node2:8889", "node2:8890", "node10:8888", "node10:8889"]
    assert found.cluster_spec().as_dict() == {"worker": addresses}
    assert (found.task_type, found.task_id, found.rpc_layer) == ("worker", 3, "grpc")
    assert found.num_accelerators() == {"GPU": 0}


@pytest.mark.parametrize("tasks", [None, "1"])
def test_a_single_task_of_slurm_is_no_cluster(monkeypatch, tasks):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    if tasks:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    assert distribution._cluster() is None


def test_alone_there_is_nobody_to_tell():
    assert distribution.gathered([1, 2]) == [[1, 2]]
    assert distribution.from_chief("this") == "this"
    assert distribution.dealt_out((1, 2, 3), lambda items: [2 * item for item in items]) == [2, 4, 6]
    assert distribution.is_chief()
    with distribution.one_of_several():
        pass


LOST = {
    "a process that died": (
        tf.errors.UnavailableError,
        "failed to connect\nfrom remote target /job:worker/replica:0/task:1 while calling /RecvBuf",
        "worker 1 of the cluster is gone, so worker 0 of 2 stops, too",
    ),
    "one that is silent": (
        tf.errors.UnavailableError,
        "Error reported from /job:worker/task:0: stopped sending heartbeats:\n/job:worker/replica:0/task:1",
        "worker 1 of the cluster is gone",
    ),
    "a silent chief": (tf.errors.DeadlineExceededError, "Deadline Exceeded", "another worker of the cluster is gone"),
}


@pytest.mark.parametrize(("error", "message", "line"), LOST.values(), ids=LOST)
def test_a_lost_worker_ends_the_others_in_one_line(monkeypatch, error, message, line):
    strategy = strategy_of(monkeypatch, cluster_of(monkeypatch, {"worker": TWO}, "worker", 0))
    monkeypatch.setattr(distribution, "strategy", lambda: strategy)
    with pytest.raises(TfdetError, match=line), distribution.one_of_several():
        raise error(None, None, message)


def test_what_is_no_loss_stays_what_it_is(monkeypatch):
    strategy = strategy_of(monkeypatch, cluster_of(monkeypatch, {"worker": TWO}, "worker", 0))
    monkeypatch.setattr(distribution, "strategy", lambda: strategy)
    with pytest.raises(tf.errors.InvalidArgumentError), distribution.one_of_several():
        raise tf.errors.InvalidArgumentError(None, None, "/job:worker/replica:0/task:1: not an image")


def test_who_waits_in_vain_for_the_others_ends():
    cluster = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "worker", "index": 1}}
    program = "from tfdet import distribution; distribution.PATIENCE = 1; distribution.strategy()"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TF_CONFIG": json.dumps(cluster)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1
    assert "worker 1 waits for the others" in found.stdout
    assert "1 s at most" in found.stdout
    assert "Timeout (0:00:01)!" in found.stderr
